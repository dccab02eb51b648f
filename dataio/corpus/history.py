"""history.jsonl: what was taken out of a corpus, when, and that it is not to come back by itself.

A line tells of one removal. Whoever withdrew consent is known by the subject, by the hashes of the
files, of the voxels as they were stored, and of the files' paths: a conversion that meets one of
them leaves the source out, until it is readmitted. A file packed anew has the same voxels; one that
other software resampled or changed has not, and is known by name and path alone. No path is kept,
as it may name a person. The chunk table repeats the file, so that one damaged bit readmits nobody.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from mim3d.dataio.corpus.manifest import VolumeRecord, open_line, sealed_line
from mim3d.dataio.corpus.names import own_key
from mim3d.dataio.corpus.table_file import stored_head
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.storage.store import Store

HISTORY = "history.jsonl"
Kind = Literal["removed", "pruned", "readmitted"]


@dataclass(frozen=True)
class Event:
    """Volumes removed on request, pruned because their sources were gone, or names readmitted.

    `subjects` are those removed whole; `files` and `paths` are hashes of the sources' content, as
    the manifest has them, and of their paths; `voxels` of the images as stored, none of those that
    have one value everywhere.
    """

    kind: Kind
    time: str
    volumes: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    voxels: tuple[str, ...] = ()

    @property
    def names(self) -> set[str]:
        """Volumes and subjects."""
        return {*self.volumes, *self.subjects}

    def in_words(self) -> str:
        """One line for a person."""
        of = f" (subjects {', '.join(self.subjects)})" if self.subjects else ""
        return f"{self.time[:10]}: {self.kind} {', '.join(self.volumes) or 'names'}{of}"


def removal(kind: Kind, records: Iterable[VolumeRecord], subjects: Iterable[str] = ()) -> Event:
    """The event of taking out these volumes, now."""
    gone = list(records)
    return Event(
        kind,
        now(),
        tuple(sorted(record.id for record in gone)),
        tuple(sorted(set(subjects))),
        tuple(sorted({hash for record in gone for hash in record.source_hash})),
        tuple(sorted({path_hash(path) for record in gone for path in record.sources})),
        tuple(sorted(voxel_hashes(gone))),
    )


def voxel_hashes(records: Iterable[VolumeRecord]) -> set[str]:
    """Hashes of images as stored; those of one value everywhere say nothing of whose they are."""
    return {r.shard_sha256 for r in records if r.intensity.minimum != r.intensity.maximum}


def removed_before(name: str, event: Event, corpus: str) -> str:
    """Why something is left out, and how it is let in: by a name that was removed, which may be
    another one where a file of the same content was."""
    known = name if name in event.names else (event.subjects or event.volumes)[0]
    other = "" if known == name else f" is a file of {known!r}, which"
    return (
        f"{name!r}{other} was removed on {event.time[:10]}; `mim3d remove {corpus} --readmit "
        f"{known}` lets what was removed by that name in again"
    )


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def path_hash(path: str) -> str:
    """What stands for a path."""
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def event_line(event: Event) -> bytes:
    """The line of an event."""
    return (sealed_line(asdict(event)) + "\n").encode()


def parse_history(text: bytes) -> list[Event]:
    """Events of the file's bytes; CorpusError if a line is not what was written."""
    lines = text.decode("utf-8", "replace").split("\n")
    if lines.pop():
        raise CorpusError(f"{HISTORY}: ends within a line")
    events = []
    for number, line in enumerate(lines, start=1):
        fields = open_line(line, f"{HISTORY}, line {number}")
        listed: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
        events.append(Event(**listed))
    return events


def history_text(store: Store) -> bytes:
    """The file where it is intact, else what the chunk table repeats of it; CorpusError where
    there was one and neither is."""
    repeated = _repeated(store)
    key = own_key(store, HISTORY)
    text = store.get(key) if store.exists(key) else b""
    try:
        known = parse_history(text)
    except CorpusError:
        known = None
    if known is not None and (repeated is None or text.startswith(repeated)):
        return text
    if repeated is not None:
        return repeated
    raise CorpusError(
        f"{store.url}/{key}: is damaged, and the chunk table, which repeats it, too; it tells "
        "what may not come back: delete it, and remove again what was removed"
    )


def _repeated(store: Store) -> bytes | None:
    head = stored_head(store)
    return str(head.get("history", "")).encode() if head else None


def still_removed(event: Event, readmitted: Collection[str]) -> Event | None:
    """What of a removal stands once names are let in again; None where nothing does.

    Of an event of several people, as earlier versions wrote them, nothing tells whose the hashes
    are: they stand until all are let in.
    """
    whose = {*(event.subjects or event.volumes)}
    if whose <= {*readmitted}:
        return None
    return replace(
        event,
        subjects=tuple(name for name in event.subjects if name not in readmitted),
        volumes=tuple(name for name in event.volumes if name not in readmitted),
    )


class Barred:
    """What was removed on request and not readmitted since."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events: list[Event] = []
        for event in events:
            if event.kind == "removed":
                self.events.append(event)
            elif event.kind == "readmitted":
                left = (still_removed(each, event.names) for each in self.events)
                self.events = [each for each in left if each is not None]

    def event(
        self,
        *,
        subject: str = "",
        paths: Collection[str] = (),
        files: Collection[str] = (),
        voxels: Collection[str] = (),
    ) -> Event | None:
        """The removal that this is of; None where nothing was removed."""
        hashes = {path_hash(path) for path in paths}
        for event in self.events:
            of_content = {*files} & {*event.files} or {*voxels} & {*event.voxels}
            if subject in event.subjects or hashes & {*event.paths} or of_content:
                return event
        return None

    def event_of(self, record: VolumeRecord) -> Event | None:
        """The removal that a volume is of, by its subject, paths, files or voxels."""
        return self.event(
            subject=record.subject,
            paths=record.sources,
            files=record.source_hash,
            voxels=voxel_hashes([record]),
        )

    def copies_held(self, records: Iterable[VolumeRecord], corpus: str) -> list[str]:
        """A line for each volume that is there and has the content of one that was removed."""
        found = []
        for record in records:
            files, voxels = record.source_hash, voxel_hashes([record])
            if event := self.event(files=files, voxels=voxels):
                removed = ", ".join(event.subjects or event.volumes)
                found.append(
                    f"{record.id} of {record.subject!r} ({record.sources[0]}) has the content of "
                    f"{removed}, removed on {event.time[:10]}, and is still there: `mim3d remove "
                    f"{corpus} --volume {record.id}` takes it out"
                )
        return found
