"""A corpus opened for reading."""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.corpus.manifest import VolumeRecord, iter_manifest, latest
from mim3d.dataio.corpus.names import HEAD, MANIFEST, TABLE, own_file, own_key
from mim3d.dataio.corpus.quarantine import QUARANTINE, parse_quarantine
from mim3d.dataio.corpus.replacing import REPLACING
from mim3d.dataio.corpus.root import read_root
from mim3d.dataio.corpus.table_head import known_records, manifest_size, read_head, remedy_here
from mim3d.dataio.corpus.table_rows import OLD_TABLE_FILES
from mim3d.dataio.errors import CorpusError, CorpusWarning, Rejection
from mim3d.dataio.reader.local_shards import LocalShards
from mim3d.dataio.reader.remote_shards import RemoteShards, being_replaced
from mim3d.dataio.reader.shards import Shards
from mim3d.dataio.remote.limits import RemoteLimits
from mim3d.dataio.storage.remote import ADDRESS
from mim3d.dataio.storage.store import open_store


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
            if own_file(root, TABLE).is_file():
                raise CorpusError(
                    f"{address or root}: its zarr.json is missing; `mim3d verify {address or root} "
                    "--mend` makes it anew"
                )
            what = "no such folder" if not root.exists() else "not a corpus: it has no zarr.json"
            raise CorpusError(f"{root}: {what}; `mim3d convert SRC {root}` makes one")
        return cls(root, read_root(file.read_bytes(), address or str(root)), address)

    @cached_property
    def records(self) -> list[VolumeRecord]:
        """Every committed volume, sorted by id once the conversion is complete; where one goes on
        or was interrupted, those that the chunk table knows.

        CorpusError where a line is damaged, or the manifest is not the one the chunk table knows.
        """
        file = own_file(self.root, MANIFEST)
        text = file.read_bytes() if file.is_file() else b""
        has_table = any(own_file(self.root, name).is_file() for name in (TABLE, HEAD))
        if not file.is_file() or not (text or has_table):
            raise CorpusError(f"{self.root}: nothing is committed yet; {remedy_here(self.root)}")
        if has_table:
            return known_records(self.root, text)
        return latest(iter_manifest(text, str(file)))  # a first conversion goes on

    @cached_property
    def table(self) -> ChunkTable:
        """The packed chunk table, memory-mapped; a CorpusWarning tells where it is not all."""
        table = ChunkTable.open(self.root)
        name = self.address or str(self.root)
        beyond = manifest_size(self.root) - read_head(self.root)["manifest_bytes"]
        replacing = "volumes are being replaced" if table.replaced != frozenset() else ""
        newer = f"{beyond} bytes of the manifest are newer than the chunk table" if beyond else ""
        if signs := " and ".join(filter(None, (newer, replacing))):
            warnings.warn(
                f"{name}: {signs}: a conversion or a merge goes on, or was interrupted "
                f"({remedy_here(self.root)} then); what was there before is read",
                CorpusWarning,
                stacklevel=2,
            )
        return replace(table, root=name)


def _open_remote(
    address: str, limits: RemoteLimits | None
) -> tuple[Corpus, RemoteShards, tempfile.TemporaryDirectory[str]]:
    """Open a corpus in an object store; its table lies in a folder that dies with the third."""
    shards = RemoteShards(address, limits)
    folder = tempfile.TemporaryDirectory(prefix="mim3d-table-")
    held = {"zarr.json": shards.whole("zarr.json")}
    held |= {name: shards.whole(shards.own(name)) for name in (TABLE, MANIFEST)}
    held[REPLACING] = being_replaced(address)
    if held[TABLE] is None:
        held |= {name: shards.whole(name) for name in OLD_TABLE_FILES}
    for name, data in held.items():
        if data is not None:
            (Path(folder.name) / name).write_bytes(data)
    if held["zarr.json"] is None and held[TABLE] is None:
        raise CorpusError(f"{address}: no corpus here (it has no zarr.json)")
    return Corpus.open(folder.name, address=shards.address), shards, folder


@contextmanager
def opened_corpus(
    place: str | Path | Corpus, limits: RemoteLimits | None = None
) -> Iterator[tuple[Corpus, Shards]]:
    """The one way to open a corpus by folder or address; closed at the end.

    CorpusError where there is none. A remote table is fetched first; an open `Corpus` of a folder
    is taken as it is. `limits` are for what is asked of a store.
    """
    if isinstance(place, Corpus) and place.address is None:
        yield place, LocalShards(place.root)
    elif isinstance(place, Corpus) or is_address(place):
        address = place.address if isinstance(place, Corpus) else place
        corpus, shards, folder = _open_remote(str(address), limits)
        with folder, closing(shards):
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
    key = own_key(store, QUARANTINE)
    return parse_quarantine(store.get(key), f"{place}/{key}") if store.exists(key) else []
