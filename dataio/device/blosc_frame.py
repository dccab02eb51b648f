"""blosc frames taken apart into raw lz4 and zstd streams, as batched GPU decompressors want them.

The c-blosc 1 format: 16 bytes of header, a table of block offsets, then per block one stream per
byte of the voxel (lz4) or one stream (zstd), each with its length; a stream as long as its content
is stored uncompressed. Such a stream is wrapped, as an lz4 block of literals only or a zstd frame
of one raw block, so that one batched call decodes every stream. What comes out is still shuffled.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

HEADER_BYTES = 16
SHUFFLED, STORED, BITSHUFFLED, UNSPLIT = 1, 2, 4, 16
CODECS = {1: "lz4", 4: "zstd"}
MIN_SPLIT_VOXELS = 128


@dataclass(frozen=True)
class Stream:
    """One stream: `data` uint8 decodes to `size` bytes that lie at byte `at` of the chunk."""

    data: np.ndarray
    at: int
    size: int


@dataclass(frozen=True)
class Frame:
    """A chunk's streams; `codec` is "lz4" or "zstd".

    `shuffle` is "byte" or "bit", and `block_bytes` how far shuffling reaches.
    """

    codec: str
    shuffle: str
    block_bytes: int
    streams: tuple[Stream, ...]


def parse_frame(frame: np.ndarray, chunk_bytes: int, itemsize: int) -> Frame:
    """Take a blosc frame apart; ValueError where it is damaged or of a kind not written here."""
    if len(frame) < HEADER_BYTES:
        raise ValueError(f"a blosc frame has {HEADER_BYTES} bytes of header, this has {len(frame)}")
    flags, typesize = int(frame[2]), int(frame[3])
    nbytes, block = (int(value) for value in frame[4:12].view("<u4"))
    if nbytes != chunk_bytes or typesize != itemsize or not 0 < block <= max(nbytes, 1):
        raise ValueError(
            f"frame of {nbytes} bytes, voxels of {typesize}, blocks of {block}: a chunk has "
            f"{chunk_bytes} bytes in voxels of {itemsize}"
        )
    bits = bool(flags & BITSHUFFLED)
    if itemsize > 1 and not flags & (SHUFFLED | BITSHUFFLED | STORED):
        raise ValueError(f"flags {flags:#x}: only shuffled frames are written here")
    if bits and (nbytes // itemsize % 8 or block // itemsize % 8):
        raise ValueError(
            f"{nbytes // itemsize} voxels in blocks of {block // itemsize}: shuffled by bits they "
            "must be multiples of 8"
        )
    shuffle = "bit" if bits else "byte"
    codec = CODECS.get(flags >> 5, "lz4" if flags & STORED else "")
    if not codec:
        raise ValueError(f"flags {flags:#x}: compressor is neither lz4 nor zstd")
    if flags & STORED:
        if len(frame) - HEADER_BYTES < nbytes:
            raise ValueError(f"a stored frame of {nbytes} bytes has {len(frame) - HEADER_BYTES}")
        plain = frame[HEADER_BYTES : HEADER_BYTES + nbytes].reshape(-1, itemsize)
        return Frame(codec, shuffle, block, tuple(_stored(plain, block, bits, codec)))
    split = not flags & UNSPLIT
    streams: list[Stream] = []
    for number, begin in enumerate(range(0, nbytes, block)):
        size = min(block, nbytes - begin)
        parts = itemsize if split and size == block and block // itemsize >= MIN_SPLIT_VOXELS else 1
        at = _le32(frame, HEADER_BYTES + 4 * number)
        for part in range(parts):
            length = _le32(frame, at)
            data = frame[at + 4 : at + 4 + length]
            if len(data) != length:
                raise ValueError(f"a stream of {length} bytes at {at} overruns the frame")
            share = size // parts
            packed = wrap(data, codec) if length == share else data
            streams.append(Stream(packed, begin + part * share, share))
            at += 4 + length
    return Frame(codec, shuffle, block, tuple(streams))


def wrap(plain: np.ndarray, codec: str) -> np.ndarray:
    """Uncompressed bytes as a valid stream of the codec."""
    return literal_lz4(plain) if codec == "lz4" else raw_zstd(plain)


def literal_lz4(plain: np.ndarray) -> np.ndarray:
    """An lz4 block of literals only: a token, the length in 255s, the bytes."""
    n = len(plain)
    if n < 15:
        head = bytes([n << 4])
    else:
        head = bytes([0xF0]) + b"\xff" * ((n - 15) // 255) + bytes([(n - 15) % 255])
    return np.concatenate([np.frombuffer(head, np.uint8), plain])


def raw_zstd(plain: np.ndarray) -> np.ndarray:
    """A zstd frame of raw blocks (RFC 8878): magic, single segment with 4-byte size, blocks."""
    parts = [b"\x28\xb5\x2f\xfd\xa0" + len(plain).to_bytes(4, "little")]
    largest = 128 * 1024
    for begin in range(0, max(len(plain), 1), largest):
        piece = plain[begin : begin + largest]
        last = begin + largest >= len(plain)
        parts += [(len(piece) << 3 | last).to_bytes(3, "little"), piece.tobytes()]
    return np.frombuffer(b"".join(parts), np.uint8)


def _stored(voxels: np.ndarray, block: int, bits: bool, codec: str) -> Iterator[Stream]:
    """Blocks of a frame stored whole, (voxels, bytes), shuffled to be like all others."""
    itemsize = voxels.shape[1]
    for begin in range(0, len(voxels), block // itemsize):
        piece = voxels[begin : begin + block // itemsize]
        planes = shuffled_bits(piece) if bits else piece.T
        yield Stream(wrap(planes.reshape(-1), codec), begin * itemsize, piece.size)


def shuffled_bits(voxels: np.ndarray) -> np.ndarray:
    """Bytes of voxels (n, itemsize), n a multiple of 8, as bit planes (8 itemsize, n / 8)."""
    bits = np.unpackbits(voxels, axis=1, bitorder="little")
    return np.packbits(bits.T, axis=1, bitorder="little")


def _le32(frame: np.ndarray, at: int) -> int:
    if not 0 <= at <= len(frame) - 4:
        raise ValueError(f"a length at {at} lies outside the frame of {len(frame)} bytes")
    return int.from_bytes(frame[at : at + 4].tobytes(), "little")
