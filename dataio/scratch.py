"""Large buffers that a process uses again and again, one volume after the other.

Fresh memory costs a page fault per page, and many times that where a hypervisor takes back what a
guest does not use. Buffers begin at a page, as direct I/O wants it.
"""

import mmap
import weakref

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
