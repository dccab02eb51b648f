"""Which affine of a header is believed: sform, qform or voxel sizes; in mm; and where they differ.

NIfTI-1 lets a header place its voxels twice (sform, qform) and size them a third time (pixdim).
nibabel's affine is the sform, its zooms and ITK's spacing are pixdim: files whose forms differ are
read differently by each program, and only a person knows which is right.
"""

from dataclasses import dataclass
from math import hypot, isfinite, prod
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from mim3d.dataio.errors import SourceError
from mim3d.dataio.geometry import axis_codes

Believe = Literal["auto", "sform", "qform", "pixdim"]
Units = Literal["header", "mm"]
# Smaller determinants than this, relative to the axes' lengths, leave no usable third axis.
SINGULAR = 1e-6
ALIKE = 0.01  # spacings that differ by a smaller share are the same, rounded
MM = {1: 1000.0, 3: 1e-3}
UNIT_NAMES = {1: "metre", 3: "micron"}
COARSE_MM = 100.0  # no scanner's voxel is larger: its header says metre and means mm


@dataclass(frozen=True)
class Placed:
    """The believed affine (in mm), where it is from ("sform", "qform" or "pixdim"), what was
    repaired or converted, and what is in doubt."""

    affine: np.ndarray
    source: str
    notes: tuple[str, ...]
    doubt: str


def repaired(header: nib.Nifti1Header) -> list[str]:
    """Mend in place what nibabel and ITK mend too: qfac other than 1 and -1, voxel sizes that are
    not positive. What was changed, in words."""
    notes = []
    pixdim = header["pixdim"]
    uses_sizes = int(header["sform_code"]) <= 0
    if float(pixdim[0]) not in (1.0, -1.0):
        if int(header["qform_code"]) > 0:
            notes.append(f"qfac (pixdim[0]) is {float(pixdim[0]):g}, read as 1")
        pixdim[0] = 1
    for axis in range(1, 4):
        size = float(pixdim[axis])
        if size <= 0:
            pixdim[axis] = -size or 1
            if uses_sizes:
                notes.append(f"pixdim[{axis}] is {size:g}, read as {float(pixdim[axis]):g}")
    return notes


def placed(header: nib.Nifti1Header, path: str, believe: Believe, units: Units) -> Placed:
    """The affine that is believed; SourceError bad-affine or singular-affine."""
    notes = repaired(header)
    has = {form: int(header[f"{form}_code"]) > 0 for form in ("sform", "qform")}
    order = ("qform", "sform") if believe == "qform" else ("sform", "qform")
    origin = next((form for form in order if has[form]), "pixdim")
    affine = read_form(header, origin, path)
    differ = difference(header, path) if has["sform"] else ""
    if believe == "pixdim" and origin != "pixdim":
        affine[:3, :3] *= sizes(header) / np.linalg.norm(affine[:3, :3], axis=0)
    check_affine(affine, origin, path)
    doubt = f"{differ}; {origin} is believed" if differ and believe == "auto" else ""
    if differ and believe != "auto":
        notes.append(f"{differ}; --believe {believe}")
    unit = int(header["xyzt_units"]) & 7
    if unit in MM and units == "header":
        affine[:3] *= MM[unit]
        notes.append(f"voxel sizes are in {UNIT_NAMES[unit]}, stored in mm")
        largest = float(np.linalg.norm(affine[:3, :3], axis=0).max())
        if largest > COARSE_MM:
            doubt = f"voxels of {largest:g} mm, as the header says {UNIT_NAMES[unit]} (--units mm?)"
    return Placed(affine, origin, tuple(notes), doubt)


def read_form(header: nib.Nifti1Header, origin: str, path: str) -> np.ndarray:
    """The affine of one form; SourceError bad-affine where it cannot be read."""
    try:
        found = (
            header.get_sform()
            if origin == "sform"
            else header.get_qform()
            if origin == "qform"
            else header.get_base_affine()
        )
    except (ValueError, HeaderDataError) as error:
        raise SourceError("bad-affine", path, f"its {origin} cannot be read: {error}") from error
    return np.array(found, np.float64)


def sizes(header: nib.Nifti1Header) -> np.ndarray:
    """Voxel sizes (x, y, z) of pixdim."""
    return np.array(header["pixdim"][1:4], np.float64)


def difference(header: nib.Nifti1Header, path: str) -> str:
    """What sets sform and pixdim or qform apart, with both values; empty where they agree."""
    sform = read_form(header, "sform", path)
    if not is_usable(sform):
        return ""
    lengths, pixdim = np.linalg.norm(sform[:3, :3], axis=0), sizes(header)
    n_used = min(int(header["dim"][0]), 3)
    has_qform = int(header["qform_code"]) > 0
    if not (np.abs(lengths - pixdim) <= ALIKE * pixdim)[:n_used].all():
        disagreement = f"sform has voxels of {by_axis(lengths)} mm, pixdim of {by_axis(pixdim)} mm"
        return f"{disagreement} (as {'qform and ' if has_qform else ''}ITK have it)"
    return directions(sform, header, path) if has_qform else ""


def directions(sform: np.ndarray, header: nib.Nifti1Header, path: str) -> str:
    """Whether sform and qform point in different directions, in words."""
    try:
        qform = read_form(header, "qform", path)
    except SourceError:
        return "qform cannot be read, sform can"
    if not is_usable(qform) or axis_codes(sform) == axis_codes(qform):
        return ""
    hands = [float(np.linalg.det(form[:3, :3])) > 0 for form in (sform, qform)]
    what = "differ in handedness" if hands[0] != hands[1] else "point in different directions"
    return f"sform and qform {what} ({axis_codes(sform)} against {axis_codes(qform)})"


def is_usable(affine: np.ndarray) -> bool:
    """Whether an affine has finite axes that span a volume; by numbers, as numpy's calls cost more
    than they do for nine."""
    rows = affine.tolist()
    if not all(isfinite(value) for row in rows for value in row):
        return False
    (a, b, c), (d, e, f), (g, h, i) = (row[:3] for row in rows[:3])
    lengths = hypot(a, d, g), hypot(b, e, h), hypot(c, f, i)
    volume = abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))
    return all(lengths) and volume >= SINGULAR * prod(lengths)


def by_axis(values: np.ndarray) -> str:
    """`1 x 1 x 1`."""
    return " x ".join(f"{value:.4g}" for value in values.tolist())


def check_affine(affine: np.ndarray, origin: str, path: str) -> None:
    """SourceError where an affine holds no numbers or has no volume."""
    if not np.isfinite(affine).all():
        raise SourceError("bad-affine", path, f"its {origin} affine holds NaN or infinity")
    if not is_usable(affine):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        detail = f"its {origin} affine is singular: voxel axes of {lengths.round(4).tolist()} mm"
        raise SourceError("singular-affine", path, f"{detail}; repair the header")
