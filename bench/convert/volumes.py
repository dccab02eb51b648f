"""The NIfTI files that conversions are timed on: a user's, or generated ones."""

import os
import shutil
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.openers import Opener

from mim3d.bench.corpora import anatomy_like


def repeated(files: list[str], copies: int, scratch: Path) -> list[str]:
    """Copies of the files under many names; links would be recognised as the same files."""
    folder = scratch / "many"
    folder.mkdir()
    names = []
    for number in range(copies):
        for file in files:
            names.append(str(folder / f"{number}-{len(names)}-{Path(file).name}"))
            shutil.copyfile(file, names[-1])
    os.sync()  # or writing them would go on beside the first job
    return names


def found_files(folder: Path) -> list[str]:
    """The .nii.gz files of a folder; ValueError where there are none."""
    files = sorted(str(p) for p in folder.rglob("*.nii.gz"))
    if not files:
        raise ValueError(f"--source {folder}: holds no .nii.gz file")
    return files


def make_files(scratch: Path, count: int) -> list[str]:
    """Write generated volumes as dcm2niix would: int16, gzip level 6."""
    Opener.default_compresslevel = 6
    files = []
    for number in range(count):
        voxels = anatomy_like((192, 256, 256), number)
        files.append(str(scratch / f"volume{number}.nii.gz"))
        image = Nifti1Image(np.ascontiguousarray(voxels.T), np.diag([-1, 1, 1, 1]))
        image.to_filename(files[-1])
    return files


def tiny_file(scratch: Path) -> str:
    """A volume whose conversion is all start-up."""
    file = scratch / "tiny.nii.gz"
    voxels = anatomy_like((16, 16, 16), 0)
    Nifti1Image(np.ascontiguousarray(voxels.T), np.diag([-1, 1, 1, 1])).to_filename(file)
    return str(file)


def voxel_sizes(files: list[str]) -> list[int]:
    """Bytes of voxels of each file."""
    headers = [Nifti1Image.from_filename(file).header for file in files]
    shapes = [h.get_data_shape() for h in headers]
    return [
        int(np.prod(shape)) * h.get_data_dtype().itemsize
        for shape, h in zip(shapes, headers, strict=True)
    ]
