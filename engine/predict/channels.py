"""Files that are channels of one scan, where names alone tell: for networks of several channels."""

import posixpath
import re
from collections import defaultdict
from dataclasses import replace

from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.nifti.names import stem
from mim3d.dataio.sources.channels import stacked
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.engine.runs.scan_recipe import ScanRecipe

NUMBERED = re.compile(r"(.+)_(\d{4})")


def with_channels(found: Discovery, recipe: ScanRecipe) -> Discovery:
    """The scans with their channels together, as many as the network takes, and a note of it.

    By names CASE_0000, CASE_0001, ... as nnU-Net has them; else by the channels' words in file
    names, where the network's channels have names. Scans that are whole already stay.
    """
    if recipe.channels == 1 or any(len(source.images) > 1 for source in found.sources):
        return found
    if any(number_of(source) is not None for source in found.sources):
        return by_number(found, recipe.channels)
    if len(recipe.channel_names) == recipe.channels:
        try:
            made = stacked(found, recipe.channel_names, found.root)
        except SourceError:
            return found  # no name tells; each scan then says what it lacks
        note = f"channels are told by the words {', '.join(recipe.channel_names)} in file names"
        return replace(made, notes=(*made.notes, note))
    return found


def number_of(source: Source) -> tuple[str, int] | None:
    """Folder and case of a source, and its channel; None where its name has no number."""
    match = NUMBERED.fullmatch(stem(source.images[0]))
    if match is None:
        return None
    return posixpath.join(posixpath.dirname(source.images[0]), match[1]), int(match[2])


def by_number(found: Discovery, channels: int) -> Discovery:
    """Sources by their names' numbers; a case that lacks one is left out, and told."""
    cases: dict[str, dict[int, Source]] = defaultdict(dict)
    others: list[Source] = []
    for source in found.sources:
        number = number_of(source)
        if number is None:
            others.append(source)
        else:
            cases[number[0]][number[1]] = source
    made: list[Source] = []
    skipped = list(found.skipped)
    for case, parts in cases.items():
        if sorted(parts) == list(range(channels)):
            images = tuple(parts[i].images[0] for i in range(channels))
            made.append(replace(parts[0], id=posixpath.basename(case), images=images))
            continue
        have = ", ".join(f"_{i:04d}" for i in sorted(parts))
        detail = f"has the channels {have}, and the network takes _0000 to _{channels - 1:04d}"
        path = parts[min(parts)].images[0]
        skipped.append(Rejection(path, "missing-channel", f"{detail}: add what is missing"))
    note = f"{len(made)} scans of {channels} channels, by names that end in _0000, _0001, ..."
    return replace(
        found,
        sources=(*made, *others),
        skipped=tuple(skipped),
        notes=(*found.notes, note),
    )
