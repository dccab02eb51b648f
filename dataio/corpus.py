"""A corpus opened for reading."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mim3d.dataio.chunk_table import HEAD, ChunkTable, check_manifest
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.manifest import MANIFEST, VolumeRecord, iter_manifest, latest
from mim3d.dataio.root import read_root


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
