"""Of several images that a label may belong to, those whose voxels it shares, by the headers."""

from collections.abc import Sequence
from functools import lru_cache

from mim3d.dataio.errors import SourceError
from mim3d.dataio.geometry import Grid
from mim3d.dataio.nifti.file import read_header

BUDGET = 1 << 40  # only headers are read here; conversion has the user's


@lru_cache(maxsize=1 << 16)
def grid_of(path: str) -> Grid | None:
    """Grid of a file by its header; None where that cannot be read."""
    try:
        return read_header(path, BUDGET).grid
    except (SourceError, OSError, ValueError):
        return None


def on_its_grid(label: str, images: Sequence[str]) -> list[int]:
    """Which of the images have the label's voxels; none where its header cannot be read."""
    grid = grid_of(label)
    if grid is None:
        return []
    grids = [grid_of(image) for image in images]
    return [i for i, other in enumerate(grids) if other is not None and grid.is_same_space(other)]
