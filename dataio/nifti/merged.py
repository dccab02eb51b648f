"""The address of one label made of several mask files: which file is which class."""

import json
import posixpath
from collections.abc import Sequence

SCHEME = "merge:"


def merged_path(parts: Sequence[tuple[int, str]]) -> str:
    """One address for (class, path) of every mask, in the order in which they are laid."""
    folders = [posixpath.dirname(path) for _, path in parts]
    folder = folders[0] if len(set(folders)) == 1 else ""
    skip = len(folder) + 1 if folder else 0
    files = {str(number): path[skip:] for number, path in parts}
    return SCHEME + json.dumps({"folder": folder, "masks": files}, separators=(",", ":"))


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
