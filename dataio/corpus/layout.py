"""How a volume's folder is laid out: which objects there are, and where an array has its shard.

Layout 1 has a shard five folders deep, ID/0/c/0/0/0, and the NIfTI header as an array of its own
beside: 12 files and folders a volume, 22 with a label. Layout 2 parts chunk keys by dots, as in
ID/0/c.0.0.0, and keeps the header in the group's zarr.json: 5, and 7 more with a label. Fewer than
these no label can have that OME-Zarr finds at labels/NAME and any Zarr reader at labels/NAME/0.
"""

import re

NEWEST = 2
SHARD = re.compile(r"(labels/[^/]+/)?0/c[./][0-9./]+")
FILES, FILES_OF_LABELS, FILES_OF_A_LABEL, FILES_OF_A_CORPUS = 5, 2, 5, 6
"""Files and folders of layout 2: of a volume, of all its labels, of each; and at the root."""


def shard_key(path: str, n_axes: int, layout: int) -> str:
    """Key of the one shard of an array at `path`."""
    if layout == 1:
        return f"{path}/c" + "/0" * n_axes
    return f"{path}/c" + ".0" * n_axes


def separator(layout: int) -> str:
    """What parts the numbers of a chunk's key, as zarr.json says."""
    return "/" if layout == 1 else "."


def is_shard(key: str) -> bool:
    """Whether a key of a volume's folder is that of an array's shard."""
    return SHARD.fullmatch(key) is not None


def header_keys(layout: int) -> list[str]:
    """Objects of the NIfTI header, where it has its own."""
    return ["nifti/zarr.json", "nifti/c/0"] if layout == 1 else []


def n_files(n_labels: int) -> int:
    """Files and folders of a new volume."""
    return FILES + (FILES_OF_LABELS + FILES_OF_A_LABEL * n_labels if n_labels else 0)
