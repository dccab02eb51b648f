"""sources.jsonl: the files of the sources as a run saw them, so that the next reads what changed.

A note to save time and nothing else: it may be deleted, and a line that fails its checksum is
passed over. While corpora are merged, a line of it has the command, for whoever finds the corpus
half-made. A file whose size, time of change and number on the disk (or, in a bucket, tag) are
those of its line has the hash of its line.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from mim3d.dataio.corpus.manifest import open_line, sealed_line
from mim3d.dataio.corpus.names import own_key
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.storage.remote import ADDRESS, locate
from mim3d.dataio.storage.store import Store

SEEN = "sources.jsonl"
MERGE = "merge"
SETTLED_NS, COARSE_SETTLED_NS = 50_000_000, 2_100_000_000
"""A file changed so shortly before could change again without its time telling: clocks of file
systems tick every few milliseconds, coarse ones every one or two seconds."""


@dataclass(frozen=True)
class SeenFile:
    """A file's `stamp` (see `stamp_of`) and its hash, as the manifest has it."""

    stamp: str
    hash: str


def stamp_of(paths: tuple[str, ...]) -> str:
    """Size, time of change and number of each file, or tag of each object, in words; empty where
    that cannot be told, or says too little because a file was changed just now."""
    try:
        return " ".join(map(_stamp, paths))
    except (OSError, ValueError):
        return ""


def _stamp(path: str) -> str:
    if ADDRESS.match(path):
        return _remote_stamp(path)
    found = os.stat(path)  # noqa: PTH116
    changed = max(found.st_mtime_ns, found.st_ctime_ns)
    settled = COARSE_SETTLED_NS if found.st_ctime_ns % 1_000_000_000 == 0 else SETTLED_NS
    if time.time_ns() - changed < settled:
        raise ValueError(path)
    return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}:{found.st_ino}"


def _remote_stamp(path: str) -> str:
    import obstore

    store, key = locate(path)
    try:
        found = store.head(key)
    except obstore.exceptions.BaseError as error:
        raise ValueError(path) from error
    if not found["e_tag"]:
        raise ValueError(path)
    return f"{found['size']}:{found['e_tag']}:{found['version']}"


def seen_bytes(seen: Mapping[str, SeenFile]) -> bytes:
    """The file, sorted by path."""
    lines = (
        sealed_line({"path": path, "stamp": seen[path].stamp, "hash": seen[path].hash}) + "\n"
        for path in sorted(seen)
    )
    return "".join(lines).encode()


def parse_seen(text: bytes) -> dict[str, SeenFile]:
    """What the file tells, without lines that are damaged."""
    found = {}
    for line in text.decode("utf-8", "replace").split("\n"):
        if line:
            try:
                fields = open_line(line, SEEN)
                found[str(fields["path"])] = SeenFile(str(fields["stamp"]), str(fields["hash"]))
            except (CorpusError, KeyError, TypeError):
                continue
    return found


def note_merge(store: Store, command: str) -> None:
    """Note the command of a merge that begins; its end writes the file anew, without the note."""
    store.append(own_key(store, SEEN), (sealed_line({MERGE: command}) + "\n").encode())


def merge_under_way(text: bytes) -> str:
    """The command of a merge that did not end; empty where there is none."""
    for line in text.decode("utf-8", "replace").split("\n"):
        if f'"{MERGE}":' in line:
            try:
                return str(open_line(line, SEEN)[MERGE])
            except (CorpusError, KeyError):
                continue
    return ""


def remedy_of_unfinished(text: bytes) -> str:
    """What completes a corpus that is half-made, by this file of it."""
    command = merge_under_way(text)
    return f"run `{command}` again" if command else "run the same `mim3d convert` again"
