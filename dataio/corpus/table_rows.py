"""What the chunk table's arrays are called, and of what their rows consist."""

import numpy as np

from mim3d.dataio.corpus.channel_rows import CHANNEL_DTYPE, CHANNELS
from mim3d.dataio.corpus.names import HEAD

TABLE_FORMAT = 5
READABLE_FORMATS = (1, 2, 3, 4, 5)
ONE_FILE = 5
VOLUMES, ARRAYS = "chunks.volumes.npy", "chunks.arrays.npy"
SIZES, POINTS = "chunks.sizes.npy", "chunks.points.npy"
OFFSETS = "chunks.offsets.npy"  # format 1
CHUNKS = {1: OFFSETS, 2: SIZES, 3: SIZES, 4: SIZES, 5: SIZES}
STRINGS = ("ids", "subjects")
CHECKED = (
    VOLUMES,
    ARRAYS,
    *(f"chunks.{name}{part}.npy" for name in STRINGS for part in ("", "_offsets")),
)
OLD_TABLE_FILES = (HEAD, OFFSETS, SIZES, POINTS, CHANNELS, *CHECKED)
# label -1 is the image, else an index into label_names; shape and chunk are z, y, x; `shard` is the
# beginning of its hash in the manifest, `layout` that of its folder; older tables lack both.
ARRAY_DTYPE = np.dtype([
    ("volume", "<u4"), ("label", "<i2"), ("dtype", "S8"), ("channels", "<u2"),
    ("shape", "<u4", 3), ("chunk", "<u2", 3), ("first_chunk", "<u8"), ("n_chunks", "<u4"),
    ("slope", "<f8"), ("intercept", "<f8"), ("shard_bytes", "<u8"), ("shard", "<u8"),
    ("layout", "u1"),
])  # fmt: skip
OLD_ARRAY_DTYPE = np.dtype([
    (name, *field) for name, *field in ARRAY_DTYPE.descr if name not in ("shard", "layout")
])  # fmt: skip
VOLUME_DTYPE = np.dtype([
    ("image", "<u4"), ("shape", "<u4", 3), ("spacing_mm", "<f4", 3),
    ("foreground_box", "<u4", (2, 3)),
    ("minimum", "<f4"), ("maximum", "<f4"), ("mean", "<f4"), ("std", "<f4"),
    ("p005", "<f4"), ("p995", "<f4"),
    ("foreground_mean", "<f4"), ("foreground_std", "<f4"),
    ("foreground_p005", "<f4"), ("foreground_p995", "<f4"),
    ("subject", "<u4"), ("first_label", "<u4"), ("n_labels", "<u2"),
])  # fmt: skip
# Format 1. nbytes 0: the chunk is absent and holds the fill value 0.
CHUNK_DTYPE = np.dtype([("offset", "<u8"), ("nbytes", "<u4")])
# Up to 64 voxels of each foreground class of each label array, for foreground oversampling.
POINT_DTYPE = np.dtype([("array", "<u4"), ("cls", "<u2"), ("zyx", "<u4", 3)])
SECTIONS = {
    "volumes": [VOLUME_DTYPE],
    "arrays": [ARRAY_DTYPE],
    "channels": [CHANNEL_DTYPE],
    "sizes": [np.dtype("<u2"), np.dtype("<u4")],
    "points": [POINT_DTYPE],
    **{name: [np.dtype("u1")] for name in STRINGS},
    **{f"{name}_offsets": [np.dtype("<u8")] for name in STRINGS},
}
"""What the one file holds, and of which dtypes."""
FIRST_POINTS, POINT_CRCS = "points_first", "points_crcs"
LATER_SECTIONS = {FIRST_POINTS: [np.dtype("<u8")], POINT_CRCS: [np.dtype("<u4")]}
"""What files have since: where the points of each array begin, and a checksum of each block of
POINTS_TOGETHER points, so that those of one array need not all others read."""
POINTS_TOGETHER = 1024


def section_of(name: str) -> str:
    """Name of an array within the one file, by that of the .npy it once was."""
    return name.removeprefix("chunks.").removesuffix(".npy")
