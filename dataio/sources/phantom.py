"""A phantom cohort as NIfTI files in MSD layout: real files, synthetic subjects.

Shapes, spacings, axis codes, obliqueness, header codes and dtypes vary from subject to subject as
they do between scanners. The anatomy is in `phantom_body`.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from mim3d.dataio.errors import SourceError
from mim3d.dataio.sources.phantom_body import (
    LABELS,
    Field,
    Tissue,
    build_tissue,
    draw_body,
    rotation_matrix,
    smooth_noise,
)

VERSION = 1
SPACINGS_MM = ((1.0, 1.0, 1.0), (0.9, 0.9, 1.2), (1.2, 1.2, 1.0), (1.0, 1.0, 1.3))
AXIS_CODES = ("RAS", "LPS", "LAS", "RPI", "PIR", "ASL", "RSA", "LIP")


@dataclass(frozen=True)
class Cohort:
    """What decides every byte of a cohort; stored in its dataset.json."""

    n_subjects: int = 60
    seed: int = 0
    field_of_view_mm: float = 42.0
    ct_share: float = 0.4
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.n_subjects < 1:
            raise ValueError(f"n_subjects must be at least 1, got {self.n_subjects}")
        if not 16.0 <= self.field_of_view_mm <= 400.0:
            raise ValueError(f"field_of_view_mm must be in 16..400, got {self.field_of_view_mm}")
        if not 0.0 <= self.ct_share <= 1.0:
            raise ValueError(f"ct_share must be in [0, 1], got {self.ct_share}")


def make_cohort(
    folder: str | Path,
    n_subjects: int = 60,
    seed: int = 0,
    *,
    field_of_view_mm: float = 42.0,
    ct_share: float = 0.4,
    advance: Callable[[], None] | None = None,
) -> Path:
    """Write the cohort into `folder` (imagesTr, labelsTr, dataset.json) and return the folder.

    A folder that already holds exactly this cohort is left alone; one that holds anything else
    raises SourceError. `advance` is called after each subject.
    """
    root = Path(folder)
    cohort = Cohort(n_subjects, seed, field_of_view_mm, ct_share)
    if is_complete(root, cohort):
        return root
    for sub in ("imagesTr", "labelsTr"):
        (root / sub).mkdir(parents=True, exist_ok=True)
    names = [f"phantom_{i:03d}.nii.gz" for i in range(n_subjects)]
    for i, name in enumerate(names):
        image, label = make_subject(cohort, i)
        nib.save(image, root / "imagesTr" / name)
        nib.save(label, root / "labelsTr" / name)
        if advance is not None:
            advance()
    (root / "dataset.json").write_text(json.dumps(dataset_json(cohort, names), indent=2) + "\n")
    return root


def is_complete(root: Path, cohort: Cohort) -> bool:
    """Whether the folder holds this very cohort; SourceError where it holds something else."""
    file = root / "dataset.json"
    if not file.exists():
        foreign = [p.name for p in root.iterdir()] if root.is_dir() else []
        if set(foreign) - {"imagesTr", "labelsTr"}:
            raise SourceError("not-empty", str(root), f"holds {foreign[0]!r}; name an empty folder")
        return False
    try:
        stored = json.loads(file.read_text()).get("mim3d_phantom")
    except (ValueError, AttributeError):
        stored = None
    if stored != asdict(cohort):
        raise SourceError("not-empty", str(file), "belongs to another data set; name a new folder")
    return True


def dataset_json(cohort: Cohort, names: list[str]) -> dict[str, Any]:
    """The MSD description; written last, so its presence means the cohort is whole."""
    return {
        "name": "mim3d phantom",
        "description": "Synthetic cohort; not medical data",
        "tensorImageSize": "3D",
        "modality": {"0": "synthetic, MR-like and CT-like"},
        "labels": {str(k): v for k, v in LABELS.items()},
        "numTraining": len(names),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in names],
        "test": [],
        "mim3d_phantom": asdict(cohort),
    }


def make_subject(cohort: Cohort, index: int) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Image and label of subject `index`; a pure function of the cohort and the index."""
    rng = np.random.default_rng([cohort.seed, index, cohort.version])
    shape, affine = draw_grid(rng, cohort.field_of_view_mm)
    body = draw_body(rng, cohort.field_of_view_mm)
    tissue = build_tissue(body, shape, affine, rng)
    scan = scan_ct if (index + 0.5) * cohort.ct_share % 1.0 < cohort.ct_share else scan_mr
    image = scan(tissue, affine, rng)
    label = nib.Nifti1Image(tissue.label, affine)
    codes = AXIS_CODES[int(rng.integers(len(AXIS_CODES)))]
    scanner_codes = int(rng.integers(1, 3))
    return tuple(store_as(each, codes, scanner_codes) for each in (image, label))  # type: ignore[return-value]


def draw_grid(
    rng: np.random.Generator, field_of_view_mm: float
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Grid of a scan in x, y, z order, about the field of view wide, oblique one time in four."""
    spacing = np.array(SPACINGS_MM[int(rng.integers(len(SPACINGS_MM)))])
    extent = field_of_view_mm * rng.uniform(0.96, 1.1, 3)
    shape = tuple(int(n) for n in np.round(extent / spacing))
    tilt = rng.uniform(-0.3, 0.3, 3) if rng.random() < 0.25 else np.zeros(3)
    affine = np.eye(4)
    affine[:3, :3] = rotation_matrix(tilt) * spacing
    affine[:3, 3] = -affine[:3, :3] @ (0.5 * (np.array(shape) - 1))
    return shape, affine  # type: ignore[return-value]


def scan_mr(
    tissue: Tissue, affine: NDArray[np.float64], rng: np.random.Generator
) -> nib.Nifti1Image:
    """MR-like: coil bias field, Rician noise, a scale that means nothing, several dtypes."""
    signal = tissue.body * (0.5 + 0.16 * tissue.folds)
    signal = blend(signal, tissue.shell, 0.95)
    signal = blend(signal, tissue.nuclei, 0.78)
    signal = blend(signal, tissue.cistern, 0.12)
    signal = signal * np.exp(0.18 * smooth_noise(rng, signal.shape, 24))
    sigma = rng.uniform(0.02, 0.05)
    real, imaginary = sigma * rng.standard_normal((2, *signal.shape), np.float32)
    magnitude = np.hypot(signal + real, imaginary) * rng.uniform(150, 1200)
    if rng.random() < 0.2:
        return nib.Nifti1Image(magnitude.astype(np.float32), affine)
    dtype = np.uint16 if rng.random() < 0.3 else np.int16
    return nib.Nifti1Image(np.round(magnitude).astype(dtype), affine)


def scan_ct(
    tissue: Tissue, affine: NDArray[np.float64], rng: np.random.Generator
) -> nib.Nifti1Image:
    """CT-like: Hounsfield units as int16, one time in three with an intercept of -1024."""
    hu = -1000.0 + tissue.body * (1040.0 + 90.0 * tissue.folds)
    hu = blend(hu, tissue.shell, rng.uniform(450.0, 700.0))
    hu = blend(hu, tissue.nuclei, 260.0)
    hu = blend(hu, tissue.cistern, -260.0)
    noise = rng.standard_normal(hu.shape, np.float32) * rng.uniform(12.0, 28.0)
    hu = np.clip(np.round(hu + noise), -1024, 3071)
    if rng.random() < 1 / 3:
        image = nib.Nifti1Image((hu + 1024).astype(np.int16), affine)
        image.header.set_slope_inter(1.0, -1024.0)
        return image
    return nib.Nifti1Image(hu.astype(np.int16), affine)


def blend(below: Field, share: Field, value: float) -> Field:
    """Lay a tissue of intensity `value` over what is there, by its share of the voxel."""
    return (below * (1.0 - share) + value * share).astype(np.float32)


def store_as(image: nib.Nifti1Image, axis_codes: str, code: int) -> nib.Nifti1Image:
    """The same world, stored along other axes, with `code` as qform and sform code."""
    slope_inter = image.header.get_slope_inter()
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(axis_codes))
    turned = image.as_reoriented(turn.astype(int).tolist())
    turned.header.set_slope_inter(*slope_inter)
    turned.set_qform(turned.affine, code)
    turned.set_sform(turned.affine, code)
    turned.header.set_xyzt_units("mm", "sec")
    return turned
