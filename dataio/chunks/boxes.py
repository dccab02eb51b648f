"""Which chunks a box touches, and where each lands in it: pure integer arithmetic."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mim3d.dataio.geometry import Triple


@dataclass(frozen=True)
class Span:
    """The part of one chunk, along one axis, that falls into a box."""

    index: int
    source: slice
    target: slice


@lru_cache(maxsize=65536)
def axis_spans(extent: int, chunk: int, start: int, size: int) -> tuple[Span, ...]:
    """Spans of the chunks along one axis that meet `[start, start + size)` of `[0, extent)`.

    The box may begin below zero or end beyond `extent`; voxels out there belong to no span.
    """
    low, high = max(start, 0), min(start + size, extent)
    spans = []
    for index in range(low // chunk, -(-high // chunk)) if high > low else ():
        a, b = max(low, index * chunk), min(high, (index + 1) * chunk)
        source = slice(a - index * chunk, b - index * chunk)
        spans.append(Span(index, source, slice(a - start, b - start)))
    return tuple(spans)


@dataclass(frozen=True)
class BoxPlan:
    """Chunks of one box: ids within the array, and per chunk the slices to copy from and to.

    `boxes` (n, 9) int32 says the same as the slices: first voxel in the chunk, size, and first
    voxel in the target, each z, y, x.
    """

    chunks: tuple[int, ...]
    sources: tuple[tuple[slice, slice, slice], ...]
    targets: tuple[tuple[slice, slice, slice], ...]
    covers: bool
    ids: np.ndarray
    boxes: np.ndarray


@lru_cache(maxsize=16384)
def plan_box(shape: Triple, chunk: Triple, start: Triple, size: Triple) -> BoxPlan:
    """Plan the reading of a box of `size` at `start` from one channel of `shape` voxels.

    Chunks are numbered in C order over the z, y, x chunk grid. `covers` says that every voxel of
    the box comes from a chunk, so nothing needs filling.
    """
    grid = tuple(-(-n // c) for n, c in zip(shape, chunk, strict=True))
    zs, ys, xs = (
        axis_spans(n, c, a, s) for n, c, a, s in zip(shape, chunk, start, size, strict=True)
    )
    chunks, sources, targets = [], [], []
    for z in zs:
        for y in ys:
            row = (z.index * grid[1] + y.index) * grid[2]
            for x in xs:
                chunks.append(row + x.index)
                sources.append((z.source, y.source, x.source))
                targets.append((z.target, y.target, x.target))
    inside = all(a >= 0 and a + s <= n for n, a, s in zip(shape, start, size, strict=True))
    boxes = [
        [
            *(a.start for a in source),
            *(a.stop - a.start for a in source),
            *(b.start for b in target),
        ]
        for source, target in zip(sources, targets, strict=True)
    ]
    return BoxPlan(
        tuple(chunks),
        tuple(sources),
        tuple(targets),
        inside,
        np.array(chunks, np.int64),
        np.array(boxes, np.int32).reshape(-1, 9),
    )


def box_chunks(shape: Triple, chunk: Triple, start: Triple, size: Triple) -> np.ndarray:
    """Chunks that a box meets, as `plan_box` numbers them and in its order; int64."""
    z, y, x = (
        np.arange(max(a, 0) // c, -(-min(a + s, n) // c))
        if min(a + s, n) > max(a, 0)
        else np.arange(0)
        for n, c, a, s in zip(shape, chunk, start, size, strict=True)
    )
    rows = (z * -(-shape[1] // chunk[1]))[:, None] + y
    return ((rows * -(-shape[2] // chunk[2]))[:, :, None] + x).reshape(-1)
