"""Guesses of a conversion for a person to look at: frames for modalities, 255 for a class."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from mim3d.dataio.corpus.manifest import IGNORED, MASK_OF_255, VolumeRecord
from mim3d.dataio.subjects.grouping import counted

MOST_MODALITIES = 8  # more frames are a time series
MOST_CLASSES = 200  # of a label; parcellations of a brain have fewer, grey values more
NEW = "into a new corpus"


def guesses(records: Sequence[VolumeRecord]) -> list[str]:
    """A line for each kind of guess."""
    return [
        *frames_doubt(split_files(records)),
        *mixed_masks(records),
        *masks_ignored(records),
        *crowded_labels(records),
    ]


def split_files(records: Iterable[VolumeRecord]) -> list[tuple[str, int, str]]:
    """Path, number of frames and modalities (or nothing) of files that may hold modalities of one
    scan and became a volume a frame: modalities are named, or all frames share one label."""
    files: dict[str, list[VolumeRecord]] = defaultdict(list)
    for record in records:
        if record.frame >= 0 and 1 < record.n_frames <= MOST_MODALITIES:
            files[record.sources[0]].append(record)
    found = []
    for path, frames in files.items():
        names = [name for frame in frames for name in frame.channel_names]
        named = ", ".join(names) if len({*names}) > 1 else ""
        labels = {tuple(label.shard_sha256 for label in frame.labels) for frame in frames}
        if named or (len(frames) > 1 and len(labels) == 1 and labels != {()}):
            found.append((path, frames[0].n_frames, named))
    return found


def frames_doubt(files: Sequence[tuple[str, int, str]]) -> list[str]:
    """A line where files of several modalities became a volume for each."""
    if not files:
        return []
    path, n_frames, named = files[0]
    names = f", {named}" if named else ""
    return [
        f"{counted(len(files), 'file')} of few frames become a volume for each (such as {path}: "
        f"{n_frames} frames{names}): if they are modalities of one scan, convert with --time-axis "
        f"channels {NEW}; else --accept-doubts"
    ]


def mixed_masks(records: Iterable[VolumeRecord]) -> list[str]:
    """A line where 255 was taken for a class in some volumes, and other volumes of that label have
    other classes: there it may mean what nobody drew."""
    masks: dict[str, list[str]] = defaultdict(list)
    others: dict[str, list[str]] = defaultdict(list)
    for record in records:
        for label in record.labels:
            note = f"label {label.name!r}: {MASK_OF_255}"
            if note in record.warnings:
                masks[label.name].append(record.id)
            elif label.ignore == IGNORED or max(label.classes, default=0) > 1:
                others[label.name].append(record.id)
    return [
        f"label {name!r} holds 0 and 255 alone in {counted(len(found), 'volume')} (such as "
        f"{found[0]}), where 255 is stored as class 1, but has other values in {others[name][0]}: "
        f"if 255 is no class, convert with --ignore-label {IGNORED} {NEW}; else --accept-doubts"
        for name, found in masks.items()
        if others[name]
    ]


def crowded_labels(records: Iterable[VolumeRecord]) -> list[str]:
    """A line for labels of so many classes that they may be images."""
    found = [
        (label, record)
        for record in records
        for label in record.labels
        if len(label.classes) > MOST_CLASSES
    ]
    if not found:
        return []
    label, record = found[0]
    return [
        f"{counted(len(found), 'label')} with more than {MOST_CLASSES} classes (such as "
        f"{label.source}: {len(label.classes)}, label {label.name!r} of {record.id}): if it is an "
        "image, list images and labels in a CSV; else --accept-doubts"
    ]


def some_numbers(numbers: Sequence[int]) -> str:
    """The first few, and whether there are more."""
    more = ", ..." if len(numbers) > MOST_MODALITIES else ""
    return ", ".join(map(str, numbers[:MOST_MODALITIES])) + more


def masks_ignored(records: Iterable[VolumeRecord]) -> list[str]:
    """A line for each label that holds nothing but voxels of 255 that count as ignored: masks of 0
    and 255, as earlier versions stored them."""
    voxels: dict[str, int] = defaultdict(int)
    drawn = set()
    for record in records:
        for label in record.labels:
            voxels[label.name] += label.n_ignored if label.ignore == IGNORED else 0
            if any(label.classes[number] for number in label.classes if number):
                drawn.add(label.name)
    return [
        f"label {name!r} holds no class, and {n} voxels of 255, which count as ignored: a mask of "
        f"0 and 255 that an earlier version stored, or --ignore-label {IGNORED}; convert without "
        f"that {NEW}, which makes 255 class 1; else --accept-doubts"
        for name, n in voxels.items()
        if n and name not in drawn
    ]
