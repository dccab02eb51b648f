"""What may be wrong with who is who and what is what in a corpus, though every byte is right."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.inspect.class_numbers import number_doubts
from mim3d.dataio.inspect.guesses import guesses
from mim3d.dataio.inspect.merged_masks import merged_doubts
from mim3d.dataio.subjects.declared import ACCEPTED
from mim3d.dataio.subjects.grouping import CASES, Grouping, Scan, counted, grouping, some
from mim3d.dataio.subjects.inferred import PLAIN_FOLDER, is_passage
from mim3d.dataio.subjects.words import person_folder

BY_PLACE = frozenset({"BIDS names", "file names", "folders", CASES})  # names that are not worldwide
FEW = 3  # copies and values named in a line
FEW_LEVELS = 8  # to a standard deviation, below which a quantised channel is doubted


def subjects_in(records: Iterable[VolumeRecord]) -> Grouping:
    """N volumes of M subjects, by the rules that the manifest keeps."""
    return grouping(
        Scan(r.subject or r.id, r.sources[0], r.subject_from, r.subject_doubt, r.group)
        for r in records
    )


def corpus_doubts(records: Sequence[VolumeRecord]) -> tuple[str, ...]:
    """Everything a person should look at: who is who, copies, label maps among the images, channels
    that lost their levels."""
    open_ = [record for record in records if record.subject_from != ACCEPTED]
    who = (*subjects_in(open_).doubts, *merged_data_sets(open_))
    found = who, copies(open_), label_maps(open_, len(records)), headers(open_), flattened(open_)
    splits = across_splits((r.subject, r.split, r.id) for r in open_)
    tables = (
        shared_labels(open_),
        splits,
        two_names(open_),
        merged_doubts(open_),
        number_doubts(open_),
    )
    return tuple(line for lines in (*found, *tables, guesses(open_)) for line in lines)


def merged_data_sets(records: Iterable[VolumeRecord]) -> list[str]:
    """A line where one subject's volumes lie in two places: another data set's `sub-01`?"""
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for record in records:
        if record.subject_from in BY_PLACE:
            found = place_above(record.sources[0], record.subject)
            places[record.subject].setdefault(found, record.sources[0])
    several = {subject: found for subject, found in places.items() if len(found) > 1}
    if not several:
        return []
    subject, found = next(iter(several.items()))
    files = " and ".join(list(found.values())[:FEW])
    return [
        f"{counted(len(several), 'subject')} with volumes in several places (such as {subject}: "
        f"{files}): if they are other people of the same name, convert each data set with "
        "--dataset NAME into a new corpus; else --accept-doubts"
    ]


def place_above(path: str, subject: str) -> str:
    """Folders above the part of a path that names a subject, without visits and kinds of image.

    Numbered ones stay: `data` and `data2` may be two sites'.
    """
    parts, name = path.split("/"), subject.rsplit("/", 1)[-1].lower()
    at = next((i for i, part in enumerate(parts) if name in part.lower()), len(parts) - 1)
    return "/".join(person_folder(part) for part in parts[:at] if tells_place(part))


def tells_place(folder: str) -> bool:
    """Whether a folder's name may part one data set from another."""
    is_numbered = bool(PLAIN_FOLDER.fullmatch(folder)) and folder[-1].isdigit()
    return bool(folder) and (is_numbered or not is_passage(folder))


def headers(records: Iterable[VolumeRecord]) -> list[str]:
    """A line for each kind of header that disagrees with itself, with the values of the first."""
    several = [record for record in records if record.header_doubt]
    if not several:
        return []
    first = several[0]
    return [
        f"{counted(len(several), 'header')} disagree with themselves (such as {first.sources[0]}: "
        f"{first.header_doubt}): look which is right and convert with --believe sform, qform or "
        "pixdim into a new corpus, or --accept-doubts"
    ]


def conversion_warnings(records: Iterable[VolumeRecord]) -> list[str]:
    """What the conversion remarked on volumes, a line a kind: how many, and the first in full."""
    kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for record in records:
        for warning in record.warnings:
            if warning != record.header_doubt:
                kinds[re.sub(r"[\d.e+-]+", "#", warning)].append((record.id, warning))
    return [
        f"{counted(len(several), 'volume')} (such as {several[0][0]}): {several[0][1]}"
        for several in kinds.values()
    ]


def copies(records: Iterable[VolumeRecord]) -> list[str]:
    """A line where files of the same content, or volumes of the same voxels (as of a file packed
    anew), belong to several subjects: splits would leak.

    What stands for a missing modality is alike and says nothing.
    """
    owners: dict[str, dict[str, str]] = defaultdict(dict)
    for record in records:
        for path, hash in telling_files(record):
            owners[hash].setdefault(record.subject or record.id, path)
        if record.intensity.minimum != record.intensity.maximum:
            voxels = f"{record.array_shape} {record.dtype} {record.shard_sha256}"
            owners[voxels].setdefault(record.subject or record.id, record.sources[0])
    shared: list[dict[str, str]] = []
    held: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for paths in sorted((p for p in owners.values() if len(p) > 1), key=len, reverse=True):
        # What the voxels found the files may find again.
        if not any(paths.items() <= other.items() for other in held[next(iter(paths.items()))]):
            shared.append(paths)
            for item in paths.items():
                held[item].append(paths)
    if not shared:
        return []
    whose: dict[str, list[str]] = defaultdict(list)  # one file may be several people's itself
    for subject, path in list(shared[0].items())[:FEW]:
        whose[path].append(subject)
    files = " and ".join(f"{path} of {' and of '.join(who)}" for path, who in whose.items())
    return [
        f"{counted(len(shared), 'file')} of the same content under several subjects (such as "
        f"{files}): leave the copies out, give them one subject with --subjects FILE.csv, or "
        "--accept-doubts"
    ]


def shared_labels(records: Iterable[VolumeRecord]) -> list[str]:
    """A line where one file is the label of several subjects' images: a row of a table that was
    copied and not mended."""
    owners: dict[str, dict[str, str]] = defaultdict(dict)
    for record in records:
        for label in record.labels:
            owners[label.source].setdefault(record.subject or record.id, record.sources[0])
    several = {path: found for path, found in owners.items() if len(found) > 1}
    if not several:
        return []
    path, found = next(iter(several.items()))
    images = " and ".join(f"{image} of {who}" for who, image in list(found.items())[:FEW])
    return [
        f"{counted(len(several), 'label')} of several subjects' images (such as {path}: {images}): "
        "name each image's own in the table and convert again; else --accept-doubts"
    ]


def across_splits(volumes: Iterable[tuple[str, str, str]]) -> list[str]:
    """A line where one subject's volumes are of several splits: what is tested was learned from.

    Given are subject, split and id of each.
    """
    splits: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for subject, split, id in volumes:
        if split:
            splits[subject or id][split].append(id)
    several = {subject: found for subject, found in splits.items() if len(found) > 1}
    if not several:
        return []
    subject, found = next(iter(several.items()))
    shown = "; ".join(f"{split}: {some(ids)}" for split, ids in found.items())
    return [
        f"{counted(len(several), 'subject')} with volumes in several splits (such as {subject}: "
        f"{shown}): give all volumes of a subject one split in a CSV (columns image, subject, "
        "split) and convert it again, or --accept-doubts"
    ]


def two_names(records: Iterable[VolumeRecord]) -> list[str]:
    """A line for each number of a label that has one name in a volume and another in the next."""
    known: dict[tuple[str, int], tuple[str, str]] = {}
    lines: dict[tuple[str, int], str] = {}
    for record in records:
        for label in record.labels:
            for number, name in label.class_names.items():
                key = label.name, number
                first, id = known.setdefault(key, (name, record.id))
                if first.strip().casefold() != name.strip().casefold():
                    lines.setdefault(
                        key,
                        f"label {label.name}: {number} is {first!r} in {id} and {name!r} in "
                        f"{record.id}: a network learns both as one class; convert one of them "
                        "with the numbers and names of the other into a new corpus, or "
                        "--accept-doubts",
                    )
    return list(lines.values())


def telling_files(record: VolumeRecord) -> list[tuple[str, str]]:
    """Path and hash of each image of a volume that is not one value everywhere."""
    files = list(zip(record.sources, record.source_hash, strict=True))
    if len(files) == record.channels > 1:
        constant = record.constant_channels
        return [file for i, file in enumerate(files) if i not in constant]
    return files


def flattened(records: Iterable[VolumeRecord]) -> list[str]:
    """A line where a window or scale for all channels leaves few levels to one of them."""
    lost = [record for record in records if flat_channels(record)]
    if not lost:
        return []
    first = lost[0]
    which = ", ".join(map(str, flat_channels(first)))
    return [
        f"{counted(len(lost), 'volume')} with a channel that one window or scale of integers for "
        f"all channels leaves fewer than {FEW_LEVELS} levels to a standard deviation (such as "
        f"{first.id}, channel {which}): convert without --window and with --dtype float32 or "
        "native, or --accept-doubts"
    ]


def flat_channels(record: VolumeRecord) -> list[int]:
    """Channels of several, from 0, that one window or scale of integers left few levels."""
    if record.channels == 1:
        return []
    quantised = record.cast_max_error > 0 and np.dtype(record.dtype).kind in "iu"
    enough = FEW_LEVELS * abs(record.slope) if quantised else 0.0
    return [
        i
        for i, each in enumerate(record.channel_records)
        if each.is_lost or (not each.is_constant and each.intensity.std < enough)
    ]


def label_maps(records: Sequence[VolumeRecord], n_all: int) -> list[str]:
    """A line where images hold few integer values, as label maps do."""
    suspects = [record for record in records if record.n_values]
    if not suspects:
        return []
    first = suspects[0]
    among = f" of {n_all}" if len(suspects) < n_all else ", all there are,"
    names = some([record.sources[0] for record in suspects])
    return [
        f"{counted(len(suspects), 'image')}{among} hold few whole numbers ({first.n_values} in "
        f"{first.sources[0]}), as label maps do ({names}): leave them out, list images and labels "
        "in a CSV (columns image, label), or --accept-doubts"
    ]


def classes_of_parts(parts: Mapping[str, Sequence[VolumeRecord]]) -> list[str]:
    """A line for each label of which corpora that were merged know other classes: where a part did
    not draw one, its voxels count as background."""
    classes: dict[str, dict[str, set[int]]] = defaultdict(dict)
    for part, records in parts.items():
        for label in (label for record in records for label in record.labels):
            known = {number for number, n in label.classes.items() if n} | {*label.class_names}
            classes[label.name].setdefault(part, set()).update(known - {0})
    lines = []
    for name, by_part in classes.items():
        every = set.union(*by_part.values())
        lacking = {part: sorted(every - have) for part, have in by_part.items() if every - have}
        if lacking:
            what = "; ".join(f"no {some(list(map(str, n)))} in {p}" for p, n in lacking.items())
            lines.append(
                f"label {name!r} has other classes in the corpora that are merged ({what}): if a "
                "class was not drawn there, its voxels count as background: convert that corpus "
                "anew with another name for the label (column label:NAME of a CSV), or merge "
                "without it; if it was drawn and nothing was there, --accept-doubts"
            )
    return lines
