"""Names of classes and modalities as dataset.json has them, in the Decathlon's way or nnU-Net's."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mim3d.dataio.sources.source import Source


def classes_of(described: Mapping[str, Any]) -> tuple[dict[int, str], int | None]:
    """Names by class, and the class that means untold.

    `{"0": "background", "1": "Anterior"}`, or `{"background": 0, "RV": 1, "ignore": 3}`; nnU-Net's
    regions of several classes have no name here.
    """
    labels = described.get("labels")
    classes: dict[int, str] = {}
    for key, value in labels.items() if isinstance(labels, dict) else ():
        number, name = (key, value) if str(key).isdigit() else (value, key)
        if isinstance(number, int | str) and str(number).isdigit():
            classes[int(number)] = str(name)
    ignore = next((number for number, name in classes.items() if name.lower() == "ignore"), None)
    return {n: name for n, name in sorted(classes.items()) if n != ignore}, ignore


def modalities_of(described: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the channels in their order."""
    names = described.get("channel_names") or described.get("modality") or ()
    if isinstance(names, str):
        return (names,)
    if isinstance(names, dict):
        names = [name for _, name in sorted(names.items(), key=lambda pair: str(pair[0]).zfill(4))]
    return tuple(map(str, names)) if isinstance(names, list) else ()


def with_names(
    source: Source, channels: Sequence[str], classes: Mapping[int, str], ignore: int | None
) -> Source:
    """The source with the names of its channels and of its labels' classes."""
    names = {label: dict(classes) for label in source.labels} if classes else {}
    untold = dict.fromkeys(source.labels, ignore) if ignore is not None else {}
    return replace(source, channel_names=tuple(channels), class_names=names, ignore=untold)
