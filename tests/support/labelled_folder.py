"""A folder of labelled images, as people keep one."""

from pathlib import Path

import nibabel as nib
import numpy as np

from mim3d.bench.corpora import anatomy_like


def labelled_folder(folder: Path) -> Path:
    """The folder with P0 to P2 in it, each with a label of its own (`_seg`)."""
    for i in range(3):
        voxels = anatomy_like((20, 18, 16), i)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"P{i}.nii.gz")
        label = (voxels > 500).astype(np.uint8)
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / f"P{i}_seg.nii.gz")
    return folder
