"""What may be wrong with who is who and what is what in a corpus, though every byte is right."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.subjects.grouping import Grouping, Scan, counted, grouping, some

ACCEPTED = "accepted"
FEW = 3  # copies and values named in a line


def people_in(records: Iterable[VolumeRecord]) -> Grouping:
    """N volumes of M subjects, by the rules that the manifest keeps."""
    return grouping(
        Scan(r.subject or r.id, r.sources[0], r.subject_from, r.subject_doubt) for r in records
    )


def corpus_doubts(records: Sequence[VolumeRecord]) -> tuple[str, ...]:
    """Everything a person should look at: who is who, copies, label maps among the images."""
    open_ = [record for record in records if record.subject_from != ACCEPTED]
    who = people_in(open_).doubts
    return (*who, *copies(open_), *label_maps(open_, len(records)), *headers(open_))


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


def told_of_volumes(records: Iterable[VolumeRecord]) -> list[str]:
    """What the conversion told of volumes, a line a kind: how many, and of the first in full."""
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
    """A line where files of the same content belong to several subjects: splits would leak."""
    owners: dict[str, dict[str, VolumeRecord]] = defaultdict(dict)
    for record in records:
        for hash in record.source_hash:
            owners[hash].setdefault(record.subject or record.id, record)
    shared = [list(found.values()) for found in owners.values() if len(found) > 1]
    if not shared:
        return []
    files = " and ".join(record.sources[0] for record in shared[0][:FEW])
    return [
        f"{counted(len(shared), 'file')} of the same content under several subjects (such as "
        f"{files}): leave the copies out, give them one subject with --subjects FILE.csv, or "
        "--accept-doubts"
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
