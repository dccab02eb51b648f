"""A corpus opened for reading."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mim3d.dataio.corpus.channel_rows import CHANNELS
from mim3d.dataio.corpus.chunk_table import (
    CHECKED,
    HEAD,
    OFFSETS,
    POINTS,
    SIZES,
    ChunkTable,
    check_manifest,
)
from mim3d.dataio.corpus.manifest import MANIFEST, VolumeRecord, iter_manifest, latest
from mim3d.dataio.corpus.quarantine import QUARANTINE, parse_quarantine
from mim3d.dataio.corpus.root import read_root
from mim3d.dataio.errors import CorpusError, Rejection
from mim3d.dataio.reader.local_shards import LocalShards
from mim3d.dataio.reader.remote_shards import RemoteShards
from mim3d.dataio.reader.shard_reader import Shards
from mim3d.dataio.storage.remote import ADDRESS
from mim3d.dataio.storage.store import open_store

LOCAL_COPIES = ("zarr.json", MANIFEST, HEAD, *CHECKED, CHANNELS, OFFSETS, SIZES, POINTS)


class Corpus:
    """A corpus folder; records and table are read when first asked for.

    One that is half written opens too: `records` are what is committed, `table` raises with the
    remedy. `address` names a corpus of which only the table lies in the folder.
    """

    def __init__(self, root: Path, attributes: dict[str, Any], address: str | None = None) -> None:
        self.root, self.attributes, self.address = root, attributes, address

    @classmethod
    def open(cls, path: str | Path, *, address: str | None = None) -> "Corpus":
        """Open a corpus; CorpusError if it is missing, damaged or of another format."""
        root = Path(path)
        file = root / "zarr.json"
        if not file.is_file():
            what = "no such folder" if not root.exists() else "not a corpus: it has no zarr.json"
            raise CorpusError(f"{root}: {what}; `mim3d convert SRC {root}` makes one")
        return cls(root, read_root(file.read_bytes(), address or str(root)), address)

    @cached_property
    def records(self) -> list[VolumeRecord]:
        """Every committed volume, sorted by id once the conversion is complete.

        CorpusError where a line is damaged, or the manifest is not the one the chunk table knows.
        """
        file = self.root / MANIFEST
        if not file.is_file():
            raise CorpusError(f"{self.root}: nothing is committed yet; run mim3d convert again")
        complete = (self.root / HEAD).is_file()
        text = file.read_bytes()
        records = latest(iter_manifest(text, str(file)))
        if complete and (self.root / HEAD).is_file():  # else a conversion goes on
            check_manifest(self.root, text)
        return records

    @cached_property
    def table(self) -> ChunkTable:
        """The packed chunk table, memory-mapped."""
        table = ChunkTable.open(self.root)
        return table if self.address is None else replace(table, root=self.address)


def _open_remote(address: str) -> tuple[Corpus, RemoteShards, tempfile.TemporaryDirectory[str]]:
    """Open a corpus in an object store; its table lies in a folder that dies with the third."""
    shards = RemoteShards(address)
    folder = tempfile.TemporaryDirectory(prefix="mim3d-table-")
    for name in LOCAL_COPIES:
        data = shards.whole(name)
        if data is not None:
            (Path(folder.name) / name).write_bytes(data)
    if not (Path(folder.name) / "zarr.json").exists():
        raise CorpusError(f"{address}: no corpus here (it has no zarr.json)")
    return Corpus.open(folder.name, address=shards.address), shards, folder


@contextmanager
def opened_corpus(place: str | Path | Corpus) -> Iterator[tuple[Corpus, Shards]]:
    """The one way to open a corpus by folder or address; closed at the end.

    CorpusError where there is none. A remote table is fetched first; an open `Corpus` of a folder
    is taken as it is.
    """
    if isinstance(place, Corpus) and place.address is None:
        yield place, LocalShards(place.root)
    elif isinstance(place, Corpus) or is_address(place):
        address = place.address if isinstance(place, Corpus) else place
        corpus, shards, folder = _open_remote(str(address))
        with folder:
            yield corpus, shards
    else:
        corpus = Corpus.open(place)
        yield corpus, LocalShards(corpus.root)


def is_address(place: str | Path) -> bool:
    """Whether a corpus is named by an address such as s3://bucket/corpus.zarr."""
    return bool(ADDRESS.match(str(place)))


def quarantined(place: str | Path) -> list[Rejection]:
    """What the conversion left out; none where it did not finish."""
    store = open_store(place)
    if not store.exists(QUARANTINE):
        return []
    return parse_quarantine(store.get(QUARANTINE), f"{place}/{QUARANTINE}")
