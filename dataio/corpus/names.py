"""Names of volumes and labels are names of folders: what may stand in them, asked at opening.

The converter makes only such names (`convert.volume_ids`). A corpus from elsewhere may hold any,
and one such as `../elsewhere` would have its reader read, and its exporter write, outside.
"""

import re
from collections.abc import Iterable

import numpy as np

from mim3d.dataio.errors import CorpusError

LONGEST = 160
NAME = re.compile(r"(?![.-])(?!.*\.\.)[A-Za-z0-9._-]{1,160}")
REMEDY = (
    "no version of mim3d writes such a name: get the corpus again from somebody you trust, or "
    "convert its sources"
)
ALLOWED = np.zeros(256, bool)
ALLOWED[[c for c in range(128) if chr(c).isalnum() or chr(c) in "._-"]] = True


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
