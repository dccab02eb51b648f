"""One small fine-tuned network with its corpus and files, for tests of what is done with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from small_finetune import make_labelled_corpus, small_finetune

from mim3d.engine.finetune.finetune import run_finetune


@dataclass(frozen=True)
class Trial:
    """A run, the corpus it was trained on, and the files that corpus was made of."""

    run: Path
    corpus: Path

    @property
    def nifti(self) -> Path:
        """An MSD folder."""
        return self.corpus.parent / "nifti"

    @property
    def images(self) -> list[Path]:
        """Its training images."""
        return sorted((self.nifti / "imagesTr").glob("*.nii.gz"))


def make_trial(folder: Path) -> Trial:
    """Eight labelled phantoms and four steps on them."""
    corpus = make_labelled_corpus(folder)
    run_finetune(small_finetune(corpus, overlap=0.25), folder / "run")
    return Trial(folder / "run", corpus)


def loaded(file: Path) -> Any:
    """An image by nibabel."""
    return nib.load(file)  # pyright: ignore[reportPrivateImportUsage]


def voxels(file: Path) -> np.ndarray:
    """Its voxels as they are stored."""
    return np.asarray(loaded(file).dataobj)


def save(voxels: np.ndarray, affine: np.ndarray, file: Path) -> None:
    """Write an image by nibabel."""
    nib.save(nib.Nifti1Image(voxels, affine), file)  # pyright: ignore[reportPrivateImportUsage]
