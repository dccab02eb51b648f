"""Writing NIfTI: voxels as they are, under a header that is made or a scan's own.

nibabel's own saving would scale, and may change voxels; here they are written plane by plane.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.openers import Opener
from nibabel.spatialimages import HeaderDataError

from mim3d.dataio.nifti.file import header_block
from mim3d.dataio.nifti.header import version_and_order

NIFTI1_MAX = 32767
ANY_SIZE = 1 << 40  # only the header is read
LABEL_INTENT = 1002
UNNAMED_WORLD = 2  # NIfTI's code of a world that is known, but not whose
SAME_MM = 1e-3


def write_image(file: Path, header: nib.Nifti1Header, voxels: np.ndarray) -> None:
    """Write (x, y, z) or (x, y, z, c) voxels under a header of their shape and dtype.

    The file appears when it is whole, and replaces what stood there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".partial-{file.name}")
    try:
        zipped = {"compresslevel": 1, "mtime": 0} if file.suffix == ".gz" else {}
        with Opener(str(partial), "wb", **zipped) as out:
            out.write(header.binaryblock)
            out.write(b"\0" * (int(header["vox_offset"]) - len(header.binaryblock)))
            ordered = voxels.T  # the file's order is x fastest
            for index in np.ndindex(ordered.shape[:-2]):
                out.write(np.ascontiguousarray(ordered[index]).tobytes())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def made_header(
    shape: tuple[int, ...],
    dtype: np.dtype,
    affine: np.ndarray,
    code: int,
    scaling: tuple[float, float] = (1.0, 0.0),
) -> nib.Nifti1Header:
    """Header of stored voxels: sform exact, qform where a rotation can say it, scaling as it was.

    `code` is NIfTI's of the world; 0, of a source that had neither form, stays 0 where voxel sizes
    alone give the affine back, and is UNNAMED_WORLD where they would give another. A float64
    affine that float32 cannot hold loses what the format has no room for.
    """
    kind = nib.Nifti1Header if max(shape) <= NIFTI1_MAX else nib.Nifti2Header
    header = kind()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    if code == 0:
        header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
        if not np.allclose(header.get_base_affine(), affine, rtol=0, atol=SAME_MM):
            code = UNNAMED_WORLD
    header.set_sform(affine, code=code)
    try:
        header.set_qform(affine, code=code, strip_shears=False)
    except (HeaderDataError, np.linalg.LinAlgError):
        header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header.set_xyzt_units("mm", "sec")
    header["scl_slope"], header["scl_inter"] = scaling
    return as_single_file(header)


def own_header(
    path: str, shape: tuple[int, ...], dtype: np.dtype, *, is_label: bool
) -> nib.Nifti1Header:
    """A scan's own header for other voxels on its grid: forms, units and texts as they are.

    What tells of the scan's values (scaling, display range, intent) is reset, extensions are left
    out. `path` is a file that was read before.
    """
    place, block = header_block(path, ANY_SIZE)
    version, order = version_and_order(block, place)
    kind = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    given = kind(block[: kind.sizeof_hdr], endianness=order, check=False)
    header = given.as_byteswapped("<")
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    header["cal_min"] = header["cal_max"] = 0.0
    header["intent_code"] = LABEL_INTENT if is_label else 0
    for name in ("intent_p1", "intent_p2", "intent_p3"):
        header[name] = 0
    header["intent_name"] = b""
    return as_single_file(header)


def as_single_file(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """The header as that of one file with the voxels behind it."""
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    return header
