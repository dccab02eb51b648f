"""Names in a corpus: of its own files, and of volumes and labels, which are names of folders.

The corpus' own files lie in a folder of theirs, which is an array of no elements to Zarr: into
arrays its readers do not look, while of any other file in a group they warn. Up to format 2 they
lie in the root, and stay there.

What may stand in the names of volumes and labels is asked at opening.

The converter makes only such names (`convert.volume_ids`). A corpus from elsewhere may hold any,
and one such as `../elsewhere` would have its reader read, and its exporter write, outside.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mim3d.dataio.errors import CorpusError

OWN = "mim3d"
OWN_METADATA = f"{OWN}/zarr.json"
MANIFEST, TABLE, HEAD = "manifest.jsonl", "chunks.table", "chunks.json"
LONGEST = 160
NAME = re.compile(r"(?![.-])(?!.*\.\.)[A-Za-z0-9._-]{1,160}")
REMEDY = (
    "no version of mim3d writes such a name: get the corpus again from somebody you trust, or "
    "convert its sources"
)
ALLOWED = np.zeros(256, bool)
ALLOWED[[c for c in range(128) if chr(c).isalnum() or chr(c) in "._-"]] = True


class Holds(Protocol):
    """What tells whether it has an object."""

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        ...


def store_around(place: Path) -> Path | None:
    """The Zarr store that a folder is or lies in, None where it is in none: a corpus deletes what
    is not its own."""
    own = place.resolve()
    return next((each for each in (own, *own.parents) if (each / "zarr.json").exists()), None)


def own_key(store: Holds, name: str) -> str:
    """Key of one of the corpus' own files."""
    return name if is_flat(store.exists) else f"{OWN}/{name}"


def own_folder(root: Path) -> Path:
    """Where a corpus on this machine has its own files."""
    return root if is_flat(lambda key: (root / key).is_file()) else root / OWN


def own_file(corpus: str | Path, name: str) -> Path:
    """One of the corpus' own files, on this machine."""
    return own_folder(Path(corpus)) / name


def is_flat(exists: Callable[[str], bool]) -> bool:
    """Whether a corpus has its own files in its root, as those begun up to format 2."""
    return not exists(f"{OWN}/{MANIFEST}") and any(map(exists, (MANIFEST, TABLE, HEAD)))


def own_array() -> dict[str, Any]:
    """zarr.json of the folder of the corpus' own files."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [0],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        "attributes": {"about": "manifest, chunk table and notes of mim3d: no voxels"},
        "storage_transformers": [],
    }


def check_names(names: Iterable[str], where: str) -> None:
    """CorpusError for a name of a volume or label that is no plain folder name."""
    for name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise bad_name(str(name), where)


def bad_name(name: str, where: str) -> CorpusError:
    """The error for a name that could lead out of the corpus."""
    return CorpusError(f"{where}: {name[:80]!r} is not the name of a volume or label; {REMEDY}")


def check_packed_names(blob: np.ndarray, offsets: np.ndarray, where: str) -> None:
    """The same of names end to end in `blob` (uint8), `offsets` (n + 1) saying where each begins;
    a million take some tens of milliseconds."""
    ends = np.asarray(offsets).astype(np.int64)
    lengths = np.diff(ends)
    if len(ends) == 0 or ends[0] != 0 or ends[-1] != len(blob) or (lengths < 0).any():
        raise CorpusError(f"{where}: the offsets of its names do not fit; {REMEDY}")
    letters = np.asarray(blob)
    bad = ~ALLOWED[letters]
    if len(letters):
        dots = letters == ord(".")
        bad[1:] |= dots[1:] & dots[:-1]
        first = ends[:-1][lengths > 0]
        bad[first] |= dots[first] | (letters[first] == ord("-"))
    wrong = np.flatnonzero((lengths < 1) | (lengths > LONGEST))
    if bad.any():
        at = int(np.searchsorted(ends, int(np.flatnonzero(bad)[0]), side="right")) - 1
        wrong = np.array([at])
    if len(wrong):
        row = int(wrong[0])
        name = letters[ends[row] : ends[row + 1]].tobytes().decode("utf-8", "replace")
        raise bad_name(name, where)
