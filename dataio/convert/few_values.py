"""Images that look like label maps: few whole numbers, or long runs of the same ones."""

import numpy as np

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
    lattice = flat[:: max(1, flat.size // SAMPLE)]
    if len(counted_values(lattice)[0]) > MANY:
        return 0
    n_planes = max(1, BLOCK // max(1, voxels[0].size))
    first = max(0, len(voxels) // 2 - n_planes // 2)
    block = voxels[first : first + n_planes]
    in_block, counts = counted_values(block)
    values = np.union1d(counted_values(lattice)[0], in_block)
    real = slope * values.astype(np.float64) + intercept
    n = len(values)
    is_whole = bool(np.isfinite(real).all()) and float(np.abs(np.rint(real) - real).max()) <= WHOLE
    if not is_whole or n < 2 or block.size < VOXELS_A_VALUE * n:
        return 0
    return (
        n
        if n <= FEW or (n <= MANY and share_of_runs(block, in_block[counts.argmax()]) >= RUNS)
        else 0
    )


def counted_values(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values there are, ascending, and how often each is; small integers without sorting."""
    if voxels.dtype.kind not in "iu" or voxels.dtype.itemsize > 2:
        return np.unique(voxels, return_counts=True)
    lowest = int(voxels.min())
    counts = np.bincount(voxels.reshape(-1).astype(np.int64) - lowest)
    present = np.flatnonzero(counts)
    return (present + lowest).astype(voxels.dtype), counts[present]


def share_of_runs(block: np.ndarray, ground: np.generic) -> float:
    """How often a voxel of another value than the commonest, `ground`, equals the next one along
    its row."""
    here, there = block[..., :-1], block[..., 1:]
    inside = (here != ground) & (there != ground)
    return float((here == there)[inside].mean()) if inside.any() else 0.0
