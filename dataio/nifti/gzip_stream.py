"""Inflating untrusted gzip: to end of stream, every CRC and length checked, output bounded.

libdeflate inflates a single member in one call; what it cannot do (several members, a header
alone, telling what is wrong), and all where it is not there, isal does in a stream.
"""

import struct
from typing import cast

from isal import isal_zlib

from mim3d.dataio.errors import SourceError
from mim3d.dataio.nifti.libdeflate import inflate_whole

IsalError = cast(type[Exception], isal_zlib.error)  # its stub names no class
MAGIC = b"\x1f\x8b"
GZIP_WBITS = 31
# Deflate cannot expand further than 1032 to 1; what declares more is not an honest file.
MAX_RATIO = 1032
# Bytes after the voxels that some writers leave; more than this is not a NIfTI file's tail.
SLACK = 1 << 20
STEP = 1 << 20
PEEKED = (1 << 11, 1 << 16)


def is_gzip(data: bytes | memoryview) -> bool:
    """Whether the bytes begin like a gzip member."""
    return data[:2] == MAGIC


def peek(data: bytes | memoryview, nbytes: int, path: str) -> bytes:
    """The first bytes inside, unverified: enough to know how much room the whole may take."""
    found = b""
    try:
        for given in PEEKED:  # what is left over is copied: not of more than is needed
            found = isal_zlib.decompressobj(GZIP_WBITS).decompress(data[:given], nbytes)
            if len(found) == nbytes:
                break
    except IsalError as error:
        raise SourceError("corrupt-gzip", path, f"the gzip stream is damaged: {error}") from error
    return found


def inflate(data: bytes | memoryview, expected: int, path: str) -> memoryview:
    """All bytes inside, verified by CRC and length; never more than `expected` and a little.

    Raises SourceError corrupt-gzip, truncated, trailing-garbage or too-long.
    """
    if expected > MAX_RATIO * len(data):
        detail = f"declares {expected} bytes, more than {MAX_RATIO} times its own {len(data)}"
        raise SourceError("implausible-ratio", path, f"{detail}: not an honest file")
    if len(data) > 18 and (struct.unpack("<I", data[-4:])[0] - expected) % 2**32 <= SLACK:
        out = inflate_whole(memoryview(data), expected + min(SLACK, MAX_RATIO * len(data)))
        if out is not None:
            return out
    return memoryview(inflate_members(data, expected + SLACK, path))


def inflate_members(data: bytes | memoryview, limit: int, path: str) -> bytearray:
    """Inflate one member after the other, as bgzip and `cat` make them; zeros may follow."""
    out = bytearray()
    rest = memoryview(data)
    while True:
        rest = _inflate_member(rest, out, limit, path)
        if not len(rest) or not any(rest):
            return out
        if bytes(rest[:2]) != MAGIC:
            detail = f"{len(rest)} bytes after the end of the gzip stream are not gzip"
            raise SourceError("trailing-garbage", path, f"{detail}; download or copy it again")


def _inflate_member(data: memoryview, out: bytearray, limit: int, path: str) -> memoryview:
    """Append one member's bytes to `out`; what follows the member."""
    stream = isal_zlib.decompressobj(GZIP_WBITS)
    position = 0
    while not stream.eof:
        piece = stream.unconsumed_tail or bytes(data[position : position + STEP])
        if not stream.unconsumed_tail:
            position += len(piece)
        try:
            got = stream.decompress(piece, STEP)
        except IsalError as error:
            detail = f"the gzip stream is damaged: {error}"
            raise SourceError(
                "corrupt-gzip", path, f"{detail}; download or copy it again"
            ) from error
        out += got
        if len(out) > limit:
            detail = f"inflates to more than the {limit - SLACK} bytes its header declares"
            raise SourceError("too-long", path, detail)
        if not piece and not got:
            detail = f"the gzip stream ends early, after {len(out)} bytes of content"
            raise SourceError("truncated", path, f"{detail}; download or copy it again")
    return data[position - len(stream.unused_data) :]
