"""A NIfTI header, checked before anything it declares is allocated."""

from dataclasses import dataclass
from math import isfinite, prod
from typing import Literal

import nibabel as nib
import numpy as np

from mim3d.dataio.errors import SourceError
from mim3d.dataio.geometry import Grid
from mim3d.dataio.nifti.forms import Believe, Units, placed

HEADER_BYTES = 544
MAX_DIMENSION = 2**31 - 1
DTYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4",
    1024: "i8", 1280: "u8",
}  # fmt: skip
OTHERS = (
    (
        b"version https://git-lfs",
        "lfs-pointer",
        "is a Git LFS pointer, not the file: `git lfs pull`",
    ),
    (b"/annex/objects/", "annex-pointer", "is a git-annex pointer, not the file: `datalad get` it"),
    (b"../.git/annex/", "annex-pointer", "is a git-annex pointer, not the file: `datalad get` it"),
    (b"<!doctype html", "web-page", "is a web page (a login or an error?): download it again"),
    (b"<html", "web-page", "is a web page (a login or an error?): download it again"),
    (b"bzh", "bzip2", "is bzip2: unpack it with bunzip2"),
    (b"pk\x03\x04", "zip", "is a zip archive: unpack it"),
    (b"(\xb5/\xfd", "zstd", "is zstd: unpack it with `zstd -d`"),
)
"""First bytes (small letters) of what is found under a NIfTI name, and what to do with it."""
REFUSED = {
    1: ("binary", "one bit per voxel"),
    32: ("complex", "complex64 voxels"),
    128: ("rgb", "RGB colour voxels"),
    1536: ("float128", "128-bit float voxels"),
    1792: ("complex", "complex128 voxels"),
    2048: ("complex", "complex256 voxels"),
    2304: ("rgb", "RGBA colour voxels"),
}


@dataclass(frozen=True)
class HeaderTrust:
    """Which of a header's affines is believed where they differ, and whether its unit is."""

    believe: Believe = "auto"
    units: Units = "header"


DEFAULT_TRUST = HeaderTrust()


@dataclass(frozen=True)
class NiftiHeader:
    """What a conversion needs of a header; `shape` is (x, y, z), `affine` is for that order.

    `offset` is where voxels begin, `dtype` carries the byte order, `slope` and `intercept` are 1
    and 0 where the header has none. `affine_from` is "sform", "qform" or "pixdim", `affine_code`
    its NIfTI code (1 scanner, 2 aligned, 3 Talairach, 4 MNI; 0 for "pixdim"). `notes` are repairs
    and changes of unit; `doubt` says what of the header disagrees, with both values.
    """

    version: int
    dtype: np.dtype
    shape: tuple[int, int, int]
    n_frames: int
    offset: int
    slope: float
    intercept: float
    affine: np.ndarray
    affine_from: str
    affine_code: int
    notes: tuple[str, ...] = ()
    doubt: str = ""

    @property
    def grid(self) -> Grid:
        """Where the voxels lie, as they are on disk."""
        x, y, z = self.shape
        return Grid((z, y, x), self.affine)

    @property
    def n_voxels(self) -> int:
        """Voxels of all frames."""
        return prod(self.shape) * self.n_frames

    @property
    def plane_bytes(self) -> int:
        """Bytes of the smallest plane: the least that a change of one dimension adds or takes."""
        return self.n_voxels // max(*self.shape, self.n_frames) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """Bytes from the start of the file to the end of the voxels."""
        return self.offset + self.n_voxels * self.dtype.itemsize


def parse_header(
    block: bytes, path: str, *, paired: bool, trust: HeaderTrust = DEFAULT_TRUST
) -> NiftiHeader:
    """Check the first `HEADER_BYTES` of a file (of the .hdr, if `paired`).

    Raises SourceError with the code and what is wrong in words.
    """
    version, order = version_and_order(block, path)
    kind = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    size = kind.sizeof_hdr
    if len(block) < size:
        raise SourceError("truncated", path, f"{len(block)} bytes are not even a NIfTI header")
    header = kind(block[:size], endianness=order, check=False)
    _check_magic(header, version, path, paired=paired)
    dtype, mended = _dtype(header, path)
    shape, n_frames = _shape(header, path)
    offset = _offset(header, path, 0 if paired else size + 4)
    slope, intercept = _scaling(header, path)
    place = placed(header, path, trust.believe, trust.units)
    code = 0 if place.source == "pixdim" else int(header[f"{place.source}_code"])
    return NiftiHeader(
        version, dtype.newbyteorder(order), shape, n_frames, offset, slope, intercept,
        place.affine, place.source, code, (*mended, *place.notes), place.doubt,
    )  # fmt: skip


def version_and_order(block: bytes, path: str) -> tuple[int, Literal["<", ">"]]:
    """NIfTI version and byte order ("<" or ">") from the header's own size."""
    sizes = {348: 1, 540: 2}
    if (little := int.from_bytes(block[:4], "little")) in sizes:
        return sizes[little], "<"
    if (big := int.from_bytes(block[:4], "big")) in sizes:
        return sizes[big], ">"
    for start, code, remedy in OTHERS:
        if block[:64].lstrip().lower().startswith(start):
            raise SourceError(code, path, remedy)
    detail = "not a NIfTI file: it does not begin with a header of 348 or 540 bytes"
    raise SourceError("not-nifti", path, detail)


def _check_magic(header: nib.Nifti1Header, version: int, path: str, *, paired: bool) -> None:
    magic = bytes(header["magic"].tobytes())[:3]
    wanted = (b"ni" if paired else b"n+") + str(version).encode()
    if magic == wanted:
        return
    if magic[:2] in (b"ni", b"n+") and magic[2:3] == wanted[2:]:
        other = "a pair (.hdr and .img)" if magic[:2] == b"ni" else "a single .nii file"
        raise SourceError("wrong-magic", path, f"its header says it is {other}, but it is not")
    detail = "no NIfTI magic in the header (Analyze 7.5 does not record left and right)"
    raise SourceError("not-nifti", path, f"{detail}; convert it with a tool that knows its origin")


def _dtype(header: nib.Nifti1Header, path: str) -> tuple[np.dtype, list[str]]:
    """The voxels' dtype, which bitpix only repeats; what was mended, in words."""
    code, bits = int(header["datatype"]), int(header["bitpix"])
    if code in REFUSED:
        reason, words = REFUSED[code]
        raise SourceError(reason, path, f"{words} are not an intensity image; extract a channel")
    if code not in DTYPES:
        raise SourceError("bad-datatype", path, f"datatype code {code} is not defined by NIfTI")
    dtype = np.dtype(DTYPES[code])
    if bits == dtype.itemsize * 8:
        return dtype, []
    return dtype, [f"bitpix is {bits}, read as the {dtype.itemsize * 8} of {dtype.name}"]


def _shape(header: nib.Nifti1Header, path: str) -> tuple[tuple[int, int, int], int]:
    """(x, y, z) and the number of frames; trailing ones do not count."""
    dims = [int(size) for size in header["dim"]]
    if not 1 <= dims[0] <= 7:
        raise SourceError("bad-dims", path, f"the header declares {dims[0]} dimensions, not 1 to 7")
    sizes = dims[1 : 1 + dims[0]]
    if not all(1 <= size <= MAX_DIMENSION for size in sizes):
        raise SourceError("bad-dims", path, f"dimensions {sizes}: each must be at least 1")
    sizes += [1] * (4 - len(sizes))
    if prod(sizes[4:]) > 1:
        detail = f"dimensions {sizes}: five and more are vectors or tensors per voxel"
        raise SourceError("5d", path, f"{detail}; split them into 3D or 4D files")
    return (sizes[0], sizes[1], sizes[2]), sizes[3]


def _offset(header: nib.Nifti1Header, path: str, least: int) -> int:
    offset = float(header["vox_offset"])
    if not isfinite(offset) or offset != int(offset) or not least <= offset <= 2**31:
        detail = f"voxels are said to begin at byte {offset:g}, not at {least} or later"
        raise SourceError("bad-vox-offset", path, detail)
    return int(offset)


def _scaling(header: nib.Nifti1Header, path: str) -> tuple[float, float]:
    """Slope and intercept as nibabel reads them: slope 0 or non-finite means no scaling."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not isfinite(slope):
        return 1.0, 0.0
    if not isfinite(intercept):
        detail = f"scl_slope {slope:g} with scl_inter {intercept:g}: no intensity can be told"
        raise SourceError("bad-scaling", path, detail)
    return slope, intercept
