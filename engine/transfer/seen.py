"""Whom an encoder was pretrained on, kept with its run, and who of a split was among them."""

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mim3d.engine.errors import CheckpointError
from mim3d.engine.runs.address import local_run
from mim3d.engine.runs.files import read_json, write_json

TRAINED_ON = "trained_on.json"
"""File of a run's folder: its subjects, and hashes of the files they came from."""
SHOWN = 5


class Volume(Protocol):
    """What is asked of a volume; a corpus's `VolumeRecord` has it."""

    @property
    def subject(self) -> str:
        """Whom it shows."""
        ...

    @property
    def source_hash(self) -> Sequence[str]:
        """Hashes of its files."""
        ...


def keep_trained_on(run: Path, volumes: Sequence[Volume], source: str = "") -> None:
    """Add volumes to those that a run was trained on, and those of the weights it began with."""
    file = run / TRAINED_ON
    before = read_json(file) if file.exists() else {"subjects": [], "sources": []}
    subjects = {*before["subjects"], *(volume.subject for volume in volumes)}
    sources = {*before["sources"], *(one for volume in volumes for one in volume.source_hash)}
    with suppress(CheckpointError, OSError):  # what it began with may have gone since
        if source and (began := trained_on(source)) is not None:
            subjects, sources = subjects | began.subjects, sources | began.sources
    write_json(file, {"subjects": sorted(subjects), "sources": sorted(sources)})


@dataclass(frozen=True)
class TrainedOn:
    """Who is known to have been trained on."""

    subjects: frozenset[str]
    sources: frozenset[str]


def trained_on(source: str) -> TrainedOn | None:
    """Of the run that weights lie in; None where that is not told."""
    place = local_run(source)
    folders = [place, *place.parents[:3]] if place.is_dir() else list(place.parents[:1])
    for folder in folders:
        try:
            stored: dict[str, Any] = json.loads((folder / TRAINED_ON).read_text())
            return TrainedOn(frozenset(stored["subjects"]), frozenset(stored["sources"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def seen_among(
    source: str, volumes: Sequence[Volume], subjects: Collection[str]
) -> tuple[set[str], set[str]]:
    """Subjects that weights were trained on: by their files, and others by name alone."""
    known = trained_on(source)
    if known is None:
        return set(), set()
    own = [volume for volume in volumes if volume.subject in subjects]
    seen = {volume.subject for volume in own if known.sources.intersection(volume.source_hash)}
    return seen, set(subjects) & known.subjects - seen


def seen_lines(
    source: str, volumes: Sequence[Volume], subjects: Collection[str], split: str, others: str = ""
) -> list[str]:
    """Loud lines where subjects of a split were pretrained on, by their files or by name alone.

    `others` is how to have other subjects in the split; by default the option of that name.
    """
    seen, alike = seen_among(source, volumes, subjects)
    lines = []
    if seen:
        lines.append(
            f"{len(seen)} OF {len(subjects)} {split.upper()} SUBJECTS WERE PRETRAINED ON by "
            f"{source}: {few(seen)}. Their scores are not those of subjects never seen: pretrain "
            f"with --data.held-out-subjects, or {others or f'name others with --{split}'}"
        )
    if alike:
        lines.append(
            f"{len(alike)} of {len(subjects)} {split} subjects bear names that {source} was "
            f"pretrained on, of other files: {few(alike)}. Are they the same people?"
        )
    return lines


def few(names: Collection[str]) -> str:
    """The first of many names."""
    shown = sorted(names)[:SHOWN]
    return ", ".join(shown) + " and so on" * (len(names) > SHOWN)
