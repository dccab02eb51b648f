"""Memory as a kernel sees it, with the faults that a GPU has, or hides."""

import ctypes

import numpy as np
import torch

WARP = 32


class Fault(Exception):
    """What a kernel must not do."""


class GlobalMemory:
    """The tensors of a launch at their own addresses; everything else is out of bounds."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._pieces: dict[int, np.ndarray] = {}
        for tensor in tensors:
            storage = tensor.untyped_storage()
            size = storage.nbytes()
            if size:
                place = (ctypes.c_uint8 * size).from_address(storage.data_ptr())
                self._pieces[storage.data_ptr()] = np.ctypeslib.as_array(place)

    def load(self, address: np.ndarray, width: int) -> np.ndarray:
        """Bytes (n, width) at `address` (n,) uint64."""
        found = np.zeros((len(address), width), np.uint8)
        for chosen, piece, index in self._found(address, width, "load"):
            found[chosen] = piece[index]
        return found

    def store(self, address: np.ndarray, data: np.ndarray) -> None:
        """Put bytes (n, width) there."""
        for chosen, piece, index in self._found(address, data.shape[1], "store"):
            piece[index] = data[chosen]

    def _found(
        self, address: np.ndarray, width: int, what: str
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Threads, piece and indices (n, width) by piece of memory."""
        check_aligned(address, width, f"global {what}")
        found, left = [], np.ones(len(address), bool)
        for first, piece in self._pieces.items():
            offset = address.astype(np.int64) - first
            inside = (offset >= 0) & (offset + width <= len(piece))
            if inside.any():
                found.append((inside, piece, offset[inside][:, None] + np.arange(width)))
                left &= ~inside
        if left.any():
            raise Fault(
                f"{what} of {width} bytes outside every tensor by {left.sum()} threads, the first "
                f"at {int(address[left][0]):#x}"
            )
        return found


class SharedMemory:
    """A block's shared memory; two warps must not meet at a byte without a barrier between them,
    one of them writing."""

    def __init__(self, size: int, threads: int) -> None:
        self.data = np.zeros(max(size, 1), np.uint8)
        self._writer = np.full(len(self.data), -1)  # warp since the last barrier
        self._read = np.zeros((len(self.data), threads // WARP), bool)

    def barrier(self) -> None:
        """What was done before is seen by all."""
        self._writer[:] = -1
        self._read[:] = False

    def load(self, address: np.ndarray, width: int, warp: np.ndarray) -> np.ndarray:
        """Bytes (n, width) at `address` (n,) for threads of `warp` (n,)."""
        index, warps = self._index(address, width, warp)
        self._refuse_foreign_write(index, warps, "read")
        self._read[index, warps] = True
        return self.data[index]

    def store(self, address: np.ndarray, data: np.ndarray, warp: np.ndarray) -> None:
        """Put bytes (n, width) there."""
        index, warps = self._index(address, data.shape[1], warp)
        self._refuse_foreign_write(index, warps, "written")
        others = self._read[index] & (np.arange(self._read.shape[1]) != warps[..., None])
        if others.any():
            raise Fault("race: a shared byte is read by one warp and overwritten by another")
        self._writer[index] = warps
        self.data[index] = data

    def _index(
        self, address: np.ndarray, width: int, warp: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        check_aligned(address, width, "shared access")
        index = address.astype(np.int64)[:, None] + np.arange(width)
        if index.size and (index.min() < 0 or index.max() >= len(self.data)):
            raise Fault(f"shared byte {index.max()} of {len(self.data)}")
        return index, np.repeat(warp[:, None], width, 1)

    def _refuse_foreign_write(self, index: np.ndarray, warps: np.ndarray, what: str) -> None:
        writer = self._writer[index]
        foreign = (writer >= 0) & (writer != warps)
        if foreign.any():
            raise Fault(
                f"race: shared byte {index[foreign][0]} is written by warp {writer[foreign][0]} "
                f"and {what} by warp {warps[foreign][0]} with no barrier between"
            )


def check_aligned(address: np.ndarray, width: int, what: str) -> None:
    """Fault unless every address is a multiple of the access's width."""
    wrong = address % np.uint64(width) != 0
    if wrong.any():
        raise Fault(f"misaligned {what} of {width} bytes at {int(address[wrong][0]):#x}")
