"""Images that look like label maps: few whole numbers, or long runs of the same ones."""

import numpy as np

from mim3d.dataio.convert.intensity import is_small_integer, tallied

SAMPLE = 1 << 14
BLOCK = 1 << 17
FEW, MANY = 32, 1024
WHOLE = 1e-3
VOXELS_A_VALUE = 16  # fewer, and a tiny image has few values because it has few voxels
RUNS = 0.75  # of neighbours in a parcellation are alike; of noise hardly any


def few_values(voxels: np.ndarray, slope: float, intercept: float) -> int:
    """About how many values an image (or a channel) has that looks like a label map, else 0.

    Looks at a lattice of voxels and at planes around the middle, so that it costs nothing.
    """
    channels = voxels if voxels.ndim > 3 else voxels[None]
    found = (few_in(channel, slope, intercept) for channel in channels)
    return next((n for n in found if n), 0)


def few_in(voxels: np.ndarray, slope: float, intercept: float) -> int:
    """The same for one channel (z, y, x)."""
    flat = voxels.reshape(-1) if voxels.flags.c_contiguous else voxels.ravel()
    among, _ = counted_values(flat[:: max(1, flat.size // SAMPLE)])
    if len(among) > MANY:
        return 0
    n_planes = max(1, BLOCK // max(1, voxels[0].size))
    first = max(0, len(voxels) // 2 - n_planes // 2)
    block = voxels[first : first + n_planes]
    in_block, counts = counted_values(block.reshape(-1))
    if len(in_block) > MANY:
        return 0
    values, _ = counted_values(np.concatenate([among, in_block]))
    n = len(values)
    if n < 2 or block.size < VOXELS_A_VALUE * n or not are_whole(slope * values + intercept):
        return 0
    if n > FEW and (n > MANY or share_of_runs(block, in_block[counts.argmax()]) < RUNS):
        return 0
    return n


def are_whole(real: np.ndarray) -> bool:
    """Whether all are whole numbers, nearly."""
    return bool(np.isfinite(real).all()) and float(np.abs(np.rint(real) - real).max()) <= WHOLE


def counted_values(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values there are among (n,) voxels, ascending, as float64, and how often each is.

    NaN is as many values as there are. numpy's unique loads its masked arrays, 10 ms a process.
    """
    if is_small_integer(voxels.dtype):
        return tallied(voxels)
    ordered = np.sort(voxels.astype(voxels.dtype.newbyteorder("="), copy=False))
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(starts, append=len(ordered))
    return ordered[starts].astype(np.float64), counts


def share_of_runs(block: np.ndarray, ground: float) -> float:
    """How often a voxel of another value than the commonest, `ground`, equals the next one along
    its row."""
    here, there = block[..., :-1], block[..., 1:]
    inside = (here != ground) & (there != ground)
    return float((here == there)[inside].mean()) if inside.any() else 0.0
