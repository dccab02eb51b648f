"""Large buffers that a process uses again and again, one volume after the other.

Fresh memory costs a page fault per page, and many times that where a hypervisor takes back what a
guest does not use. Buffers begin at a page, as direct I/O wants it.
"""

import mmap
import weakref
from contextlib import suppress
from typing import Any

import numpy as np

LEAST_BYTES = 1 << 20
MOST_BYTES = 1 << 29
KEPT = 4
_free: list[mmap.mmap] = []


def scratch(nbytes: int) -> np.ndarray:
    """Return `nbytes` of uint8 with any content, the holder's alone while a view of them lives.

    MemoryError where there is no room.
    """
    if nbytes < LEAST_BYTES:
        return np.empty(nbytes, np.uint8)
    buffer = _fitting(nbytes) or _fresh(nbytes)
    # Views of an array lead to the array whose base is no array: this one, told by its finalizer.
    lent = np.frombuffer(buffer, np.uint8, nbytes)
    weakref.finalize(lent, _give_back, buffer).atexit = False
    return lent


def forget() -> None:
    """Let go of what is free, before work that needs room for something else."""
    _free.clear()


def _fitting(nbytes: int) -> mmap.mmap | None:
    """The smallest free buffer that is large enough, unless it would waste most of itself."""
    for buffer in sorted(_free, key=len):
        if nbytes <= len(buffer) <= 4 * nbytes:
            try:
                _free.remove(buffer)
            except ValueError:  # another thread took it
                continue
            return buffer
    return None


def _fresh(nbytes: int) -> mmap.mmap:
    """A new buffer instead of the largest that was too small."""
    small = [buffer for buffer in list(_free) if len(buffer) < nbytes]
    if small and len(_free) >= KEPT:
        _free.remove(max(small, key=len))
    try:
        buffer = mmap.mmap(-1, -(-nbytes // LEAST_BYTES) * LEAST_BYTES)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no room for {nbytes} bytes") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            buffer.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without huge pages
            return buffer
    return buffer


def _give_back(buffer: mmap.mmap) -> None:
    if len(buffer) <= MOST_BYTES and len(_free) < KEPT:
        _free.append(buffer)


def room_for(voxels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """An array of the voxels' shape to write plane by plane, behind where they are read.

    That is the voxels' own memory where it is writable, in one piece and each voxel no larger.
    """
    if in_one_piece(voxels) and dtype.itemsize <= voxels.dtype.itemsize:
        return np.ndarray(voxels.shape, dtype, voxels.data)
    return np.empty(voxels.shape, dtype)


def in_one_piece(voxels: np.ndarray) -> bool:
    """Whether voxels may be written and follow each other without gaps, in their own order."""
    return voxels.flags.writeable and voxels.flags.c_contiguous


class Room(mmap.mmap):
    """Memory a volume is made in; a type of its own, so that `trim` can tell it."""


def room(nbytes: int) -> np.ndarray:
    """`nbytes` of fresh uint8 that `trim` can shorten; MemoryError where there is no room."""
    try:
        memory = Room(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no room for {nbytes} bytes") from error
    _advise(memory, "MADV_HUGEPAGE")
    return np.frombuffer(memory, np.uint8, nbytes)


def trim(voxels: np.ndarray) -> None:
    """Give back what lies behind voxels at the front of a `room`; of other memory nothing.

    What is given back reads as zeros; nobody may count on it any more.
    """
    owner: Any = voxels
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if isinstance(owner, Room) and voxels.flags.c_contiguous:
        front = voxels.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
        end = -(-(front + voxels.nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        if end < len(owner):
            _advise(owner, "MADV_DONTNEED", end, len(owner) - end)


def _advise(memory: mmap.mmap, advice: str, *span: int) -> None:
    """Tell the kernel about memory; where it does not take advice, that is only held longer."""
    with suppress(OSError, AttributeError):
        memory.madvise(getattr(mmap, advice), *span)
