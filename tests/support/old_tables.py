"""The chunk table in its older formats, and parts of the one file, for tests."""

from pathlib import Path

import numpy as np

from mim3d.dataio.corpus.manifest import MANIFEST, read_manifest
from mim3d.dataio.corpus.table_file import TABLE, read_file_head
from mim3d.dataio.corpus.table_rows import SECTIONS
from mim3d.dataio.corpus.table_writer import table_objects
from mim3d.dataio.storage.store import open_store


def write_as_format(root: Path, format: int, chunk: int) -> None:
    """Put the table of a corpus as older versions wrote it in the place of its own."""
    manifest = (root / MANIFEST).read_bytes()
    store = open_store(str(root))
    for name, parts in table_objects(store, read_manifest(root), manifest, chunk, format).items():
        (root / name).write_bytes(b"".join(map(bytes, parts)))
    (root / TABLE).unlink()


def section(root: Path, name: str) -> tuple[int, int]:
    """Offset and bytes of an array within the one file; `head` is all before the arrays."""
    sections = read_file_head(root / TABLE)["sections"]
    if name == "head":
        return 0, min(each["offset"] for each in sections.values())
    return sections[name]["offset"], sections[name]["nbytes"]


def rewrite_section(root: Path, name: str, array: np.ndarray) -> None:
    """Put other values into the one file, under the checksum of those that stood there."""
    begin, nbytes = section(root, name)
    content = bytearray((root / TABLE).read_bytes())
    content[begin : begin + nbytes] = array.tobytes()
    (root / TABLE).write_bytes(content)


def read_section(root: Path, name: str) -> np.ndarray:
    """The values of one array of the file, as the head says of which dtype."""
    begin, nbytes = section(root, name)
    descr = read_file_head(root / TABLE)["sections"][name]["dtype"]
    (dtype,) = [d for d in SECTIONS[name] if len(SECTIONS[name]) == 1 or d.str == descr]
    return np.frombuffer((root / TABLE).read_bytes()[begin : begin + nbytes], dtype).copy()
