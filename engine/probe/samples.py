"""Which crops of a volume a probe looks at, and the classes of their patches; numpy alone.

All of it follows from the seed and the volume's id, so every probe, run and number of ranks asks
the same.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mim3d.dataio.geometry import Triple

UNTOLD = -1
"""Class of what is ignored or lies outside the volume, and of patches that are mostly that."""


@dataclass(frozen=True)
class Sample:
    """What is asked of one volume: crops by their first voxels, and patches of them.

    `patches` (n,) count through the crops' tokens in order and have `classes` (n,); both are empty
    where the volume as a whole has a class.
    """

    starts: tuple[Triple, ...]
    patches: np.ndarray
    classes: np.ndarray


def drawing(seed: int, name: str) -> np.random.Generator:
    """A volume's own random numbers."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def some(starts: Sequence[Triple], most: int, rng: np.random.Generator) -> tuple[Triple, ...]:
    """At most so many of a volume's crops, in their order."""
    kept = sorted(rng.permutation(len(starts))[:most].tolist())
    return tuple(starts[i] for i in kept)


def patch_classes(label: np.ndarray, cell: Triple, foreground: float) -> np.ndarray:
    """Class (n,) of each patch of `cell` voxels of a label (z, y, x), in C order of their grid.

    It is the class above 0 with most of its voxels (of equals the lowest), where at least a share
    `foreground` of those whose class is told are above 0; else 0. UNTOLD where fewer than half are.
    """
    z, y, x = (size // edge for size, edge in zip(label.shape, cell, strict=True))
    blocks = label.reshape(z, cell[0], y, cell[1], x, cell[2])
    blocks = blocks.transpose(0, 2, 4, 1, 3, 5).reshape(z * y * x, -1)
    known = (blocks != UNTOLD).sum(1)
    present = [int(k) for k in np.unique(blocks) if k > 0]
    if not present:
        return np.where(2 * known < blocks.shape[1], UNTOLD, 0)
    counts = np.stack([(blocks == k).sum(1) for k in present], axis=1)
    largest = np.array(present)[counts.argmax(1)]
    is_foreground = (counts.sum(1) >= foreground * known) & counts.any(1)
    found = np.where(is_foreground, largest, 0)
    return np.where(2 * known < blocks.shape[1], UNTOLD, found)


def patch_sample(
    starts: Sequence[Triple],
    classes_at: Callable[[Triple], np.ndarray],
    most: tuple[int, int],
    n_classes: int,
    rng: np.random.Generator,
) -> Sample:
    """At most `most` crops and patches of a volume: crops with labelled patches come first, and
    each class gets an equal part of the patches, as far as it has them."""
    windows, patches = most
    found = {start: classes_at(start) for start in starts}
    order = [starts[i] for i in rng.permutation(len(starts))]
    chosen = sorted(sorted(order, key=lambda start: not (found[start] > 0).any())[:windows])
    classes = np.concatenate([found[start] for start in chosen])
    part = max(patches // n_classes, 1)
    kept = [
        rng.permutation(np.flatnonzero(classes == k))[:part]
        for k in np.unique(classes)
        if k != UNTOLD
    ]
    places = np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)
    return Sample(tuple(chosen), places, classes[places])
