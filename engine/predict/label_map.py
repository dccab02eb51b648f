"""One volume to a label map on the scan's own grid, and to probabilities if asked for."""

from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from mim3d.dataio.errors import SourceError
from mim3d.dataio.geometry import Grid, Triple
from mim3d.dataio.nifti.containers import is_container
from mim3d.dataio.nifti.file import read_header
from mim3d.dataio.nifti.header import HeaderTrust
from mim3d.dataio.nifti.writing import made_header, own_header, write_image
from mim3d.engine.finetune.sliding_window import Network, Windows, best_class, blended
from mim3d.engine.predict.own_grid import OwnGrid, Placed, own_grid, placed
from mim3d.engine.predict.scans import OpenVolume
from mim3d.engine.runs.tensor_files import mapped_array

PROBABILITIES = "probabilities"
ANY_SIZE = 1 << 62  # its voxels are not read again


class LabelMap:
    """A label map (z, y, x) of the own grid as it is filled, plane by plane.

    With `keep` the probabilities (k, z, y, x) go into that file on the way: they may be many times
    as large as the scan.
    """

    def __init__(self, grid: OwnGrid, classes: int, keep: Path | None) -> None:
        self.grid = grid
        self.labels = np.zeros(grid.own.shape, np.uint8)
        self.probabilities: np.ndarray | None = None
        if keep is not None:
            shape = (classes, *grid.own.shape)
            self.probabilities = mapped_array(keep, shape)
            if not grid.is_covered:
                self.probabilities[0] = 1.0

    def take(self, part: Placed) -> None:
        """Write the classes with the largest score, and the scores themselves as probabilities."""
        n = part.scores.shape[1]
        place = (slice(part.first, part.first + n), part.rows, part.columns)
        self.grid.turned(self.labels)[place] = best_class(part.scores).cpu().numpy()
        if self.probabilities is None:
            return
        shares = part.scores if not self.grid.is_exact else part.scores.softmax(0)
        for number, share in enumerate(shares.cpu().numpy()):
            self.grid.turned(self.probabilities[number])[place] = share


@torch.no_grad()
def predicted(
    net: Network,
    volume: OpenVolume,
    size: Triple,
    overlap: float,
    classes: int,
    device: torch.device,
    *,
    keep: Path | None = None,
    advance: Callable[[float], None] | None = None,
) -> LabelMap:
    """The label map of a volume by windows of `size`; held are its labels and a few planes.

    Where the stored grid is not the scan's own, probabilities are interpolated.
    """
    grid = own_grid(volume.record)
    found = LabelMap(grid, classes, keep)
    planes = blended(net, volume.planes, Windows(volume.shape, size, overlap), device, advance)
    scores = planes if grid.is_exact else shares(planes)
    for part in placed(scores, grid):
        found.take(part)
    return found


def shares(planes: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    """Logits as probabilities."""
    for first, logits in planes:
        yield first, logits.softmax(0)


def write_label_map(folder: Path, volume: OpenVolume, found: LabelMap) -> list[str]:
    """Write ID.nii.gz, and probabilities/ID.nii.gz where kept; their names in `folder`."""
    name = f"{volume.record.id}.nii.gz"
    labels = found.labels.transpose(2, 1, 0)
    files = [name]
    if found.probabilities is not None:
        # xyz and class: the class is the slowest of a file's axes.
        shared = found.probabilities.transpose(3, 2, 1, 0)
        header = header_for(volume, found.grid, shared, is_label=False)
        write_image(folder / PROBABILITIES / name, header, shared)
        files.append(f"{PROBABILITIES}/{name}")
    write_image(folder / name, header_for(volume, found.grid, labels, is_label=True), labels)
    return files


def header_for(
    volume: OpenVolume, grid: OwnGrid, voxels: np.ndarray, *, is_label: bool
) -> nib.Nifti1Header:
    """The header of the scan's own file where it is NIfTI and still there, else one made of what
    the corpus knows of it: its affine, in mm."""
    path = volume.record.sources[0]
    if not is_container(path) and is_still(path, grid.own, volume.trust):
        return own_header(path, voxels.shape, voxels.dtype, is_label=is_label)
    return made_header(voxels.shape, voxels.dtype, grid.own.affine, volume.record.affine_code)


def is_still(path: str, grid: Grid, trust: HeaderTrust) -> bool:
    """Whether a file is there and on the grid it was: it may have been replaced by another."""
    try:
        found = read_header(path, ANY_SIZE, trust).grid
    except (SourceError, OSError):
        return False
    return not found.difference(grid)
