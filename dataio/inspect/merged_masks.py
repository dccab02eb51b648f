"""Doubts about labels merged of masks: classes that became one, and masks that others have."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.inspect.guesses import NEW
from mim3d.dataio.nifti.merged import JOINED, masks_of
from mim3d.dataio.nifti.names import stem
from mim3d.dataio.subjects.grouping import counted, some


def merged_doubts(records: Sequence[VolumeRecord]) -> list[str]:
    """A line for each kind of doubt about merged labels."""
    return [*joined_classes(records), *lacking_masks(records)]


def joined_classes(records: Iterable[VolumeRecord]) -> list[str]:
    """A line for masks of several values, each of which became one class."""
    found: dict[tuple[str, int], tuple[str, str]] = {}
    for record in records:
        for label in record.labels:
            masks = dict(masks_of(label.source))
            of_label = re.escape(f"label {label.name!r}: ")
            for match in (re.fullmatch(of_label + JOINED, note) for note in record.warnings):
                if match and (path := masks.get(int(match["number"]))):
                    organ = label.class_names.get(int(match["number"]), stem(path))
                    found[path, int(match["number"])] = organ, match["values"]
    if not found:
        return []
    (path, number), (organ, values) = next(iter(found.items()))
    return [
        f"{counted(len(found), 'mask')} of several values (such as {path}: {values}), which all "
        f"become one class ({number}): if they are classes, take {organ} out of the map of "
        f"--merge-labels and convert {NEW}; else --accept-doubts"
    ]


def lacking_masks(records: Iterable[VolumeRecord]) -> list[str]:
    """A line for each label of which a volume lacks masks that others have, where their voxels
    count as background; or that is a file of its own in a volume."""
    merged: dict[str, dict[str, dict[int, str]]] = defaultdict(dict)
    single: dict[str, list[str]] = defaultdict(list)
    for record in records:
        for label in record.labels:
            if masks := masks_of(label.source):
                own = {number: stem(mask) for number, mask in masks}
                merged[label.name][record.sources[0]] = own
            else:
                single[label.name].append(label.source)
    lines = []
    for name, by_image in merged.items():
        every = {number: mask for masks in by_image.values() for number, mask in masks.items()}
        lacking = {
            image: [every[number] for number in sorted(every.keys() - masks.keys())]
            for image, masks in by_image.items()
            if every.keys() - masks.keys()
        }
        if lacking:
            image, masks = next(iter(lacking.items()))
            lines.append(
                f"label {name!r} is merged of fewer masks in {counted(len(lacking), 'volume')} "
                f"(such as {image}: no {some(masks)}), where what they would hold counts as "
                "background: bring the masks, or leave the volume out, and convert again; if there "
                "is nothing to draw, --accept-doubts"
            )
        if alone := single[name]:
            lines.append(
                f"label {name!r} is merged of masks, but a file of its own in "
                f"{counted(len(alone), 'volume')} (such as {alone[0]}): give the file another "
                f"name and convert {NEW}; else --accept-doubts"
            )
    return lines
