"""The chunk codec: bytes, blosc (lz4 or zstd), crc32c; and its Zarr v3 description.

One blosc frame of 64 KiB blocks per chunk, so that a 16^3 chunk of any dtype, and a 32^3 int16
chunk, is one block a GPU library can decode; without the crc32c most single-bit flips would decode
to wrong voxels unnoticed.

Shuffling lays bytes or bits of equal weight side by side before lz4 or zstd. By bits, lz4 finds
long matches in the high bits and one run of literals in the low ones, where noise in bytes gives
it many short matches: half to an eighth of the sequences, so fewer bytes and faster decoding.
"""

import math
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue]

from mim3d.dataio.errors import ChunkError, Mim3dError

BLOCK_BYTES = 64 * 1024
COMPRESSORS = {"lz4": 5, "zstd": 1}
SHUFFLES = {"byte": blosc.SHUFFLE, "bit": blosc.BITSHUFFLE}
ZARR_SHUFFLES = {"byte": "shuffle", "bit": "bitshuffle"}
BYTES_CODEC = {"name": "bytes", "configuration": {"endian": "little"}}
INDEX_CODECS = [BYTES_CODEC, {"name": "crc32c"}]


def single_threaded() -> None:
    """Keep blosc in the calling thread and free of its global lock; results do not depend on it."""
    blosc.use_threads = False


@dataclass(frozen=True)
class ChunkCodec:
    """Encodes and decodes chunks of one array; `compressor` is "lz4" or "zstd".

    `shuffle` is "byte", "bit", or "auto": by bits for lz4 and voxels of several bytes.
    """

    compressor: str
    dtype: str
    chunk_shape: tuple[int, ...]
    shuffle: str = "auto"

    def __post_init__(self) -> None:
        if self.compressor not in COMPRESSORS:
            raise Mim3dError(f"codec {self.compressor!r} is none of {', '.join(COMPRESSORS)}")
        if self.shuffle not in {"auto", *SHUFFLES}:
            raise Mim3dError(f"shuffle {self.shuffle!r} is none of auto, {', '.join(SHUFFLES)}")
        if not all(1 <= size <= 1024 for size in self.chunk_shape):
            raise Mim3dError(f"chunk {self.chunk_shape}: each side must be 1 to 1024")

    @property
    def itemsize(self) -> int:
        """Bytes per voxel."""
        return np.dtype(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of a decoded chunk."""
        return math.prod(self.chunk_shape) * self.itemsize

    @property
    def frame_shuffle(self) -> str:
        """How frames are shuffled, "byte" or "bit".

        blosc leaves the last voxels of a block that is no multiple of eight as they are, which no
        GPU path here undoes: such chunks are shuffled by bytes whatever was asked for.
        """
        wanted = self.shuffle
        if wanted == "auto":
            wanted = "bit" if self.compressor == "lz4" and self.itemsize > 1 else "byte"
        return wanted if self.nbytes // self.itemsize % 8 == 0 else "byte"

    @cached_property
    def empty(self) -> tuple[bytes, bytes]:
        """Frame and checksum of a chunk of zeros; such chunks are left out of the shard."""
        return self.frame(np.zeros(self.chunk_shape, self.dtype))

    def frame(self, chunk: np.ndarray) -> tuple[bytes, bytes]:
        """Frame and checksum of a C-contiguous chunk of `chunk_shape` and `dtype`."""
        level = COMPRESSORS[self.compressor]
        shuffle = SHUFFLES[self.frame_shuffle]
        frame = blosc.compress(chunk, self.compressor.encode(), level, shuffle, BLOCK_BYTES)
        return frame, struct.pack("<I", google_crc32c.value(frame))

    def encode(self, chunk: np.ndarray) -> bytes:
        """Frame and checksum, as they stand in a shard."""
        return b"".join(self.frame(chunk))

    def decode(self, data: bytes, where: str) -> np.ndarray:
        """The chunk; ChunkError naming `where` if a bit of `data` is not what was written."""
        frame = data[:-4]
        if len(data) < 20 or google_crc32c.value(frame) != struct.unpack("<I", data[-4:])[0]:
            raise ChunkError(f"{where}: fails its crc32c checksum")
        try:
            voxels = blosc.decompress(frame)
        except RuntimeError as error:
            raise ChunkError(f"{where}: blosc cannot decode it ({error})") from error
        if len(voxels) != self.nbytes:
            raise ChunkError(f"{where}: decodes to {len(voxels)} bytes, not {self.nbytes}")
        return np.frombuffer(voxels, self.dtype).reshape(self.chunk_shape)

    @property
    def metadata(self) -> list[dict[str, Any]]:
        """The inner codecs as zarr.json has them."""
        plain: dict[str, Any] = {"name": "bytes"}
        settings = {
            "typesize": self.itemsize,
            "cname": self.compressor,
            "clevel": COMPRESSORS[self.compressor],
            "shuffle": ZARR_SHUFFLES[self.frame_shuffle],
            "blocksize": BLOCK_BYTES,
        }
        first = BYTES_CODEC if self.itemsize > 1 else plain
        return [first, {"name": "blosc", "configuration": settings}, {"name": "crc32c"}]


def shard_metadata(
    shape: tuple[int, ...],
    codec: ChunkCodec,
    names: tuple[str, ...],
    attributes: dict[str, Any],
    separator: str = "/",
) -> dict[str, Any]:
    """zarr.json of an array of `shape` stored as one shard, absent chunks being 0; `separator`
    parts the numbers of a chunk's key."""
    shard = [-(-size // side) * side for size, side in zip(shape, codec.chunk_shape, strict=True)]
    sharding = {
        "chunk_shape": list(codec.chunk_shape),
        "codecs": codec.metadata,
        "index_codecs": INDEX_CODECS,
        "index_location": "end",
    }
    fill = 0.0 if np.dtype(codec.dtype).kind == "f" else 0
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": codec.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}},
        "fill_value": fill,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": list(names),
        "attributes": attributes,
        "storage_transformers": [],
    }
