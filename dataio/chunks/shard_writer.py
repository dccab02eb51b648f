"""One array to one Zarr v3 shard: chunks in C order, then the index with its checksum."""

import hashlib
import struct
from collections.abc import Iterator
from math import prod

import google_crc32c
import numpy as np
from typing_extensions import Buffer

from mim3d.dataio.chunks.codec import ChunkCodec
from mim3d.dataio.chunks.encode import ChunkEncoder
from mim3d.dataio.chunks.gather import gathered_rows

CRC_BYTES = 4
ABSENT = np.uint64(2**64 - 1)


class ShardStream:
    """A shard in parts, each valid until the next is asked for; encoded as they are asked for.

    Its voxels are a (c,) z, y, x array of any strides and byte order; chunks of zeros are left out.
    `sha256` (as `shard_digest`) and `nbytes` are known when all parts were taken, which happens
    once.
    """

    def __init__(self, voxels: np.ndarray, codec: ChunkCodec) -> None:
        self._voxels, self._codec = voxels, codec
        self.shape = voxels.shape
        self.nbytes = 0
        self.sha256 = ""

    def __iter__(self) -> Iterator[Buffer]:
        found = [np.empty((0, 2), np.uint32)]
        for part, marks in encoded_parts(self._voxels, self._codec):
            found.append(marks)
            yield part
        lengths, crcs = np.concatenate(found).astype(np.uint64).T
        present = lengths > 0
        ends = lengths.cumsum(dtype=np.uint64)
        table = np.stack([ends - lengths, lengths], axis=1)
        table[~present] = ABSENT
        index = table.astype("<u8").tobytes()
        index += struct.pack("<I", google_crc32c.value(index))
        yield index
        self.sha256 = shard_digest(index, crcs[present].astype("<u4").tobytes())
        self.nbytes = int(lengths.sum()) + len(index)


def shard_digest(index: bytes, crcs: bytes) -> str:
    """SHA-256 of a shard's checksums: of its index, whole, and of each chunk's crc32c in order.

    Between them these cover every bit. A SHA-256 of the whole shard would say little more and take
    a quarter of the time that inflating and encoding take together.
    """
    return hashlib.sha256(index + crcs).hexdigest()


def checked_digest(data: bytes, n_chunks: int) -> str:
    """The digest worked out from a shard's content, not from the checksums stored in it.

    ValueError where the index is damaged or does not account for every byte.
    """
    table = chunk_index(data, n_chunks)
    crcs, end = [], 0
    for offset, nbytes in table.tolist():
        if nbytes:
            if offset != end or nbytes <= CRC_BYTES:
                raise ValueError("the shard's index leaves bytes out")
            end = offset + nbytes
            crc = google_crc32c.value(data[offset : end - CRC_BYTES])
            if data[end - CRC_BYTES : end] != struct.pack("<I", crc):
                return ""
            crcs.append(struct.pack("<I", crc))
    index = data[end:]
    if len(index) != n_chunks * 16 + CRC_BYTES:
        raise ValueError("the shard's index leaves bytes out")
    return shard_digest(index, b"".join(crcs))


def encoded_parts(voxels: np.ndarray, codec: ChunkCodec) -> Iterator[tuple[Buffer, np.ndarray]]:
    """Frames with their checksums, many at once, and marks as `ChunkEncoder` gives them.

    Chunks are in C order of their grid; a part is valid until the next is asked for.
    """
    encoder = ChunkEncoder(codec)
    for volume in voxels if voxels.ndim == 4 else voxels[None]:
        for row in gathered_rows(volume, codec.chunk_shape[-3:], codec.dtype):
            yield from encoder.parts(row)


def chunk_index(tail: bytes, n_chunks: int) -> np.ndarray:
    """Offsets and lengths (n, 2) from the last bytes of a shard; ValueError on a failed checksum.

    Absent chunks have length 0.
    """
    size = n_chunks * 16
    index, crc = tail[-size - 4 : -4], tail[-4:]
    if len(index) != size or google_crc32c.value(index) != struct.unpack("<I", crc)[0]:
        raise ValueError("the shard's index fails its crc32c checksum")
    table = np.frombuffer(index, "<u8").reshape(n_chunks, 2).copy()
    table[table[:, 1] == ABSENT] = 0
    return table


def n_chunks(shape: tuple[int, ...], chunk_shape: tuple[int, ...]) -> int:
    """Number of chunks that cover an array."""
    return prod(-(-size // side) for size, side in zip(shape, chunk_shape, strict=True))
