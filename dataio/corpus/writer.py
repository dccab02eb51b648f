"""A corpus opened for writing: what it holds, and how that grows, shrinks and is committed.

Commit protocol: a volume's folder is written whole under a temporary name and renamed; at most a
second later everything written is synced and lines are appended to the manifest: of volumes, and of
volumes that are no more. At the end the chunk table, one file, is exchanged at once, and the
manifest is rewritten sorted, so the result does not depend on the order of the work or on how often
it was interrupted. Until then the old table stands, and tells of what was there before.
"""

import json
import re
import time
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version

from typing_extensions import Buffer

from mim3d.dataio.corpus import ome
from mim3d.dataio.corpus.arrays import has_nothing_else
from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.history import (
    HISTORY,
    Barred,
    Event,
    event_line,
    history_text,
    parse_history,
)
from mim3d.dataio.corpus.manifest import (
    VolumeRecord,
    gone_ids,
    gone_line,
    intact_records,
    manifest_bytes,
    record_line,
)
from mim3d.dataio.corpus.names import HEAD, MANIFEST, TABLE, own_key
from mim3d.dataio.corpus.quarantine import QUARANTINE, quarantine_bytes
from mim3d.dataio.corpus.replacing import REPLACING, note_replacing
from mim3d.dataio.corpus.root import check_options, check_recipe, mend_own_folder, root_document
from mim3d.dataio.corpus.seen_files import SEEN, SeenFile, parse_seen, seen_bytes
from mim3d.dataio.corpus.table_reuse import reusing, table_that_stands
from mim3d.dataio.corpus.table_rows import OLD_TABLE_FILES
from mim3d.dataio.corpus.table_writer import table_objects
from mim3d.dataio.errors import CorpusError, Rejection
from mim3d.dataio.storage.store import LOCK, LocalStore, Store

COMMIT_INTERVAL_S = 1.0
ASIDE = re.compile(r".+--lost(-\d+)?")  # ids have `--` only before a hash or a frame


class CorpusWriter:
    """The records of a corpus and what happens to them; only the lock's holder may have one."""

    def __init__(self, store: Store, conversion: Conversion) -> None:
        self.store, self.conversion = store, conversion
        self.records: dict[str, VolumeRecord] = {}
        self.seen: dict[str, SeenFile] = {}
        self.events: list[Event] = []
        self.damaged: set[str] = set()
        """Volumes whose damage was told already."""
        self.unlisted: list[str] = []
        """Volumes that were committed and whose manifest line is lost."""
        self.is_bare = False
        """Whether the folder of the corpus' own files was lost."""
        self._new: dict[str, VolumeRecord] = {}
        self._gone: set[str] = set()
        self._committed = time.monotonic()

    def own(self, name: str) -> str:
        """Key of one of the corpus' own files."""
        return own_key(self.store, name)

    def look(self) -> None:
        """Read what stands there and write nothing; CorpusError where a conversion is refused."""
        if self.store.exists("zarr.json") or self.store.exists(self.own(TABLE)):
            check_options(self.store, self.conversion)
            self._read()
        else:
            refuse_foreign(self.store)

    def open(self) -> None:
        """Check what stands there and drop what was never committed."""
        if self.store.exists("zarr.json") or self.store.exists(self.own(TABLE)):
            check_recipe(self.store, self.conversion)
        else:
            refuse_foreign(self.store)
            document = root_document(self.conversion, version("mim3d"))
            self.store.replace("zarr.json", [ome.json_bytes(document)])
        is_torn = self._read()
        if is_torn:  # and would swallow the next line that is appended
            self._rewrite()
        mend_own_folder(self.store)
        text, key = history_text(self.store), self.own(HISTORY)
        if text != (self.store.get(key) if self.store.exists(key) else b""):
            self.store.replace(key, [text])
        for name in orphans(self.store, self.records):
            if name not in self.unlisted:
                self.store.delete(name)
        if not self.unlisted:
            self._begin()

    def _begin(self) -> None:
        """An empty manifest before the first volume: where there is none, it was lost."""
        if not self.store.exists(self.own(MANIFEST)):
            self.store.replace(self.own(MANIFEST), [b""])

    def add_events(self, *events: Event) -> None:
        """Add lines to the history, all or none, before what they tell of is done."""
        self.store.append(self.own(HISTORY), b"".join(map(event_line, events)))
        self.events += events

    def set_aside(self) -> None:
        """Give volumes whose line is lost another name, before others may get theirs: nothing else
        may have their voxels."""
        for id in self.unlisted:
            set_aside(self.store, id)
        self.unlisted = []
        self._begin()

    def lost(self) -> list[Rejection]:
        """Volumes that were set aside, but those that were converted again, which are dropped."""
        self.commit()
        places = {name: name for name in self._set_aside_before()}
        found = self._aside(places, self.records)
        for name in places.keys() - found.keys():
            self.store.delete(name)
        return self._of_bare() + list(found.values())

    def lost_after(self, records: Mapping[str, VolumeRecord]) -> list[Rejection]:
        """The same where the corpus would hold these records, and nothing is written."""
        places = {name: name for name in self._set_aside_before()}
        places |= {name_aside(self.store, id): id for id in self.unlisted}
        return self._of_bare() + list(self._aside(places, records).values())

    def _set_aside_before(self) -> set[str]:
        return {*filter(ASIDE.fullmatch, self.store.folders())}

    def _of_bare(self) -> list[Rejection]:
        detail = (
            f"was lost, and with it which subjects were removed from {self.store.url} on request: "
            "if some were, take them out again by `mim3d remove`"
        )
        return [Rejection(self.own(HISTORY), "lost", detail)] if self.is_bare else []

    def _aside(
        self, places: Mapping[str, str], records: Mapping[str, VolumeRecord]
    ) -> dict[str, Rejection]:
        """By the name that they have aside, volumes in these folders that no record is of."""
        found = {}
        for name, folder in sorted(places.items()):
            id = name.rsplit("--lost", 1)[0]
            again, chunk = records.get(id), self.conversion.chunk
            if again is None or not has_nothing_else(self.store, folder, again, chunk):
                detail = (
                    f"the manifest line of volume {id} was lost and its source is not among those "
                    f"given: it is kept as {name}, which is no volume of the corpus; convert its "
                    "source, or merge the corpus that it was of, or delete it by "
                    f"`mim3d remove {self.store.url} --volume {name}`"
                )
                found[name] = Rejection(id, "lost", detail)
        return found

    def refuse_unlisted(self) -> None:
        """CorpusError where volumes have lost their manifest lines: only a conversion mends it."""
        if self.unlisted:
            raise CorpusError(
                f"{self.store.url}/{self.own(MANIFEST)}: lacks the line of volume "
                f"{self.unlisted[0]}; run the same `mim3d convert` again, which makes anew what it "
                "told of"
            )

    def _read(self) -> bool:
        """Read the records, the history and what was seen of sources; whether lines of the manifest
        are damaged, or the last one is torn."""
        key = self.own(MANIFEST)
        text = self.store.get(key) if self.store.exists(key) else b""
        records, damaged = intact_records(text, f"{self.store.url}/{key}")
        self.records = {record.id: record for record in records}
        whole = text.endswith(b"\n")
        was_complete = self.store.exists(self.own(TABLE)) or self.store.exists(self.own(HEAD))
        is_damaged = bool(damaged) or (not whole and was_complete)
        self.unlisted = without_line(self.store, self.records, text, is_damaged=is_damaged)
        self.is_bare = bool(self.unlisted) and not self.store.exists(self.own("zarr.json"))
        self.events = parse_history(history_text(self.store))
        removed = {id for event in Barred(self.events).events for id in event.volumes}
        self.unlisted = [id for id in self.unlisted if id not in removed]
        if self.store.exists(self.own(SEEN)):
            self.seen = parse_seen(self.store.get(self.own(SEEN)))
        return bool(damaged) or (bool(text) and not whole)

    def _rewrite(self) -> bytes:
        text = manifest_bytes(self.records.values())
        self.store.replace(self.own(MANIFEST), [text])
        return text

    def take(self, records: Iterable[VolumeRecord], stale: Collection[str]) -> None:
        """Keep records for the next commit, at most a second away, in place of the stale ones."""
        new = {record.id: record for record in records}
        if new:
            self._new |= new
            self._gone = (self._gone | set(stale)) - set(new)
        if time.monotonic() - self._committed > COMMIT_INTERVAL_S:
            self.commit()

    def remove(self, ids: Collection[str]) -> None:
        """Take volumes out: their folders, and with the next commit their records."""
        self._gone |= set(ids)

    def commit(self) -> None:
        """Sync the data of all that was taken, then append the lines that tell of it."""
        gone = self._gone & set(self.records)
        if self._new or gone:
            self.store.sync()
        if gone:
            note_replacing(self.store, sorted(gone))
        self.records.update(self._new)
        self.records = {id: r for id, r in self.records.items() if id not in gone}
        lines = [record_line(record) for record in self._new.values()]
        lines += [gone_line(id) for id in sorted(gone)]
        if lines:
            self.store.append(self.own(MANIFEST), "".join(line + "\n" for line in lines).encode())
        for id in sorted(gone):
            self.store.delete(id)
        self._new, self._gone = {}, set()
        self._committed = time.monotonic()

    def close(self, rejections: set[Rejection]) -> list[Rejection]:
        """Write quarantine, chunk table and sorted manifest, in this order, and drop the notes of
        what was replaced; what turned out to be damaged on the way is returned, and quarantined."""
        self.commit()
        ordered = [self.records[id] for id in sorted(self.records)]
        text = manifest_bytes(ordered)
        with ExitStack() as held:
            old = table_that_stands(self.store, held)
            parts, lost = self._table(ordered, text, old)
            self.store.replace(self.own(QUARANTINE), [quarantine_bytes(rejections | set(lost))])
            self.store.replace(self.own(SEEN), [seen_bytes(self._seen_of(ordered))])
            self.store.replace(self.own(TABLE), parts)
        self.store.replace(self.own(MANIFEST), [text])
        for name in OLD_TABLE_FILES if self.store.exists(self.own(HEAD)) else ():
            self.store.delete(name)
        if self.store.exists(self.own(REPLACING)):
            self.store.delete(self.own(REPLACING))
        return lost

    def _table(
        self, ordered: list[VolumeRecord], text: bytes, old: ChunkTable | None
    ) -> tuple[Sequence[Buffer], list[Rejection]]:
        """The table's file, and volumes that are damaged though nothing told of it before."""
        lost: dict[str, Rejection] = {}

        def damaged(path: str, error: Exception) -> None:
            id = path.split("/", maxsplit=1)[0]
            if id not in self.damaged:
                detail = f"is damaged ({error}); `mim3d verify {self.store.url} --mend` mends it"
                lost[id] = Rejection(id, "damaged", f"volume {id} {detail}")

        readers = reusing(self.store, old, ordered, damaged)
        chunk = self.conversion.chunk
        objects = table_objects(self.store, ordered, text, chunk, readers=readers)
        return objects[TABLE], list(lost.values())

    def _seen_of(self, records: list[VolumeRecord]) -> dict[str, SeenFile]:
        """What was seen of the files that the records tell of, and of no others."""
        paths = {path for record in records for path in record.source_paths}
        return {path: self.seen[path] for path in paths if path in self.seen}


def orphans(store: Store, records: Container[str]) -> list[str]:
    """Volumes without a manifest line, but those that were set aside."""
    found = (n for n in store.folders() if n not in records and not ASIDE.fullmatch(n))
    return [name for name in found if _is_volume(store, name)]


def without_line(
    store: Store, records: Container[str], text: bytes, *, is_damaged: bool
) -> list[str]:
    """Volumes that were committed and have lost their line, among those that an interrupted run
    left without one: the chunk table knows them, if it stands and no line is damaged.

    Where nothing tells, a volume may be one: of a corpus that was finished once, or whose manifest
    is not there, which stands empty before the first volume is written.
    """
    gone = gone_ids(text)
    found = [name for name in orphans(store, records) if name not in gone]
    if not found or is_damaged:
        return found
    with ExitStack() as held:
        if table := table_that_stands(store, held):
            return [name for name in found if table.ids.find(name) >= 0]
    finished = any(store.exists(own_key(store, n)) for n in (TABLE, HEAD, QUARANTINE))
    return found if finished or not store.exists(own_key(store, MANIFEST)) else []


def set_aside(store: Store, id: str) -> str:
    """Give a volume's folder a name that no volume has; returns it."""
    name = name_aside(store, id)
    if isinstance(store, LocalStore):
        store.path(id).rename(store.path(name))
    else:
        keys = [key.removeprefix(f"{id}/") for key in store.sizes(id)]
        store.put_folder(name, {key: [store.get(f"{id}/{key}")] for key in keys})
        store.delete(id)
    return name


def name_aside(store: Store, id: str) -> str:
    """The name of a volume that is set aside."""
    taken, number = set(store.folders()), 1
    while (name := f"{id}--lost" + (f"-{number}" if number > 1 else "")) in taken:
        number += 1
    return name


def _is_volume(store: Store, name: str) -> bool:
    """Whether a folder was written by a conversion; anything else is somebody's own."""
    if not store.exists(f"{name}/zarr.json"):
        return False
    try:
        return "mim3d" in json.loads(store.get(f"{name}/zarr.json"))["attributes"]
    except (ValueError, KeyError, TypeError):
        return False


def refuse_foreign(store: Store) -> None:
    """A folder with anything else in it is not ours to tidy."""
    other = next((key for key in store.walk() if key != LOCK), None)
    if other is not None:
        raise CorpusError(
            f"{store.url}: not a corpus, but not empty either (it holds {other}); "
            "choose a new destination"
        )
