"""The address of one label made of several mask files: which file is which class."""

import json
import posixpath
from collections.abc import Sequence

from mim3d.dataio.nifti.names import stem

SCHEME = "merge:"
MOST_VALUES = 8  # named in a note
JOINED = r"mask .+ holds (?P<values>.+), which all become class (?P<number>\d+)"
"""What a volume's warnings say of a mask of several values, after its label's name."""


def merged_path(parts: Sequence[tuple[int, str]]) -> str:
    """One address for (class, path) of every mask, in the order in which they are laid."""
    folders = [posixpath.dirname(path) for _, path in parts]
    folder = folders[0] if len(set(folders)) == 1 else ""
    skip = len(folder) + 1 if folder else 0
    files = {str(number): path[skip:] for number, path in parts}
    return SCHEME + json.dumps({"folder": folder, "masks": files}, separators=(",", ":"))


def joined_note(path: str, number: int, values: Sequence[int]) -> str:
    """JOINED of one mask."""
    shown = ", ".join(map(str, values[:MOST_VALUES]))
    more = f" and {len(values) - MOST_VALUES} more" if len(values) > MOST_VALUES else ""
    return f"mask {stem(path)!r} holds {shown}{more}, which all become class {number}"


def masks_of(path: str) -> list[tuple[int, str]]:
    """(class, path) of every mask of such an address; empty for the path of a single file."""
    if not path.startswith(SCHEME):
        return []
    address = json.loads(path[len(SCHEME) :])
    folder = address["folder"]
    return [
        (int(number), posixpath.join(folder, file) if folder else file)
        for number, file in address["masks"].items()
    ]
