"""Images of other formats, by the libraries that know them: FreeSurfer's .mgz by nibabel, .mha,
.mhd and .nrrd by SimpleITK (extra `containers`). Each is read whole, hashed and checked as NIfTI.
"""

import io
import re
import zlib
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.freesurfer.mghformat import MGHError, MGHHeader

from mim3d.dataio.errors import SourceError
from mim3d.dataio.nifti.gzip_stream import inflate, is_gzip, peek
from mim3d.dataio.nifti.header import NiftiHeader
from mim3d.dataio.storage.remote import ADDRESS

MGH, ITK = (".mgz", ".mgh"), (".mha", ".mhd", ".nrrd", ".nhdr")
MGH_BYTES = 284
TEXT_BYTES = 1 << 16  # headers of ITK's formats are text and shorter than this
SCANNER = 1  # NIfTI's code of the scanner's own world
DATA_FILE = re.compile(rb"(?im)^\s*(?:ElementDataFile\s*=|data ?file\s*:)\s*(.+?)\s*$")
PACKED = re.compile(rb"(?im)^\s*(?:CompressedData\s*=\s*True|encoding\s*:\s*(?:gz|gzip))\s*$")


def is_container(path: str) -> bool:
    """Whether a path's name is that of one of these formats."""
    return path.lower().endswith((*MGH, *ITK))


def parse_mgh(block: bytes, path: str) -> NiftiHeader:
    """Header of the first bytes inside an .mgz file; SourceError where it is none."""
    if len(block) < MGH_BYTES:
        raise SourceError("truncated", path, f"{len(block)} bytes are not even an MGH header")
    try:
        header = MGHHeader.from_fileobj(io.BytesIO(block))
        shape, dtype = header.get_data_shape(), np.dtype(str(header.get_data_dtype()))
        affine = np.asarray(header.get_affine(), np.float64)
    except (MGHError, ValueError, KeyError) as error:
        raise SourceError("not-mgh", path, f"is no FreeSurfer volume ({error})") from error
    if len(shape) < 3 or min(shape) < 1 or not np.isfinite(affine).all():
        raise SourceError("bad-dims", path, f"declares dimensions {shape}, each at least 1")
    frames = int(prod(shape[3:]))
    return made(dtype, (int(shape[0]), int(shape[1]), int(shape[2])), frames, affine, MGH_BYTES)


def made(
    dtype: np.dtype, shape: tuple[int, int, int], frames: int, affine: np.ndarray, offset: int = 0
) -> NiftiHeader:
    """A header of another format in the terms of NIfTI's."""
    return NiftiHeader(
        0, np.dtype(dtype), shape, frames, offset, 1.0, 0.0, affine, "scanner", SCANNER
    )


def mgh_payload(data: memoryview, path: str) -> tuple[NiftiHeader, memoryview]:
    """Header and uncompressed bytes of an .mgz or .mgh file, its CRC and length checked."""
    head = peek(data, MGH_BYTES, path) if is_gzip(data) else bytes(data[:MGH_BYTES])
    header = parse_mgh(head, path)
    payload = inflate(data, header.end, path) if is_gzip(data) else data
    if len(payload) < header.end:
        detail = f"holds {len(payload)} bytes, but its header declares {header.end}"
        raise SourceError("truncated", path, f"{detail}; download or copy it again")
    return header, payload


def files_of_itk(path: str) -> tuple[str, ...]:
    """The header file and, where its data lie apart, the files of those; SourceError."""
    if ADDRESS.match(path):
        problem = "is read from disk only; copy it here, or convert it to .nii.gz"
        raise SourceError("not-local", path, problem)
    try:
        with Path(path).open("rb") as file:
            head = file.read(TEXT_BYTES)
    except FileNotFoundError as error:
        raise SourceError("missing", path, "no such file") from error
    except OSError as error:
        raise SourceError("unreadable", path, f"cannot be read: {error.strerror}") from error
    found = DATA_FILE.search(head)
    name = found[1].decode("utf-8", "replace") if found else "LOCAL"
    if name.upper() == "LOCAL" or not path.lower().endswith((".mhd", ".nhdr")):
        return (path,)
    if " " in name.strip() or "%" in name or name.upper().startswith("LIST"):
        problem = f"has its data in several files ({name}); write one file with 3D Slicer or ITK"
        raise SourceError("several-files", path, problem)
    return path, str(Path(path).parent / name)


def check_stored(files: Sequence[str], nbytes: int, path: str, data: memoryview) -> None:
    """SourceError where the data of an ITK file are cut or fail their checksum: ITK may not say.

    `data` are the bytes of the last file, which holds the voxels.
    """
    if len(files) == 1:
        start = data_start(bytes(data[:TEXT_BYTES]), path)
        head, data = bytes(data[:start]), data[start:]
    else:
        head = Path(files[0]).read_bytes()[:TEXT_BYTES]
    if PACKED.search(head):
        data = unpacked(data, nbytes, path)
    if len(data) < nbytes:
        detail = f"holds {len(data)} bytes of voxels, but its header declares {nbytes}"
        raise SourceError("truncated", path, f"{detail}; download or copy it again")


def data_start(head: bytes, path: str) -> int:
    """Where the data begin behind a header: after the line of the data file, or a blank line."""
    if path.lower().endswith((".nrrd", ".nhdr")):
        found = re.search(rb"\r?\n\r?\n", head)
    else:
        found = re.search(rb"(?im)^\s*ElementDataFile\s*=[^\n]*\n", head)
    if found is None:
        raise SourceError("bad-header", path, "has no end of its header in the first 64 KiB")
    return found.end()


def unpacked(data: memoryview, nbytes: int, path: str) -> memoryview:
    """The bytes of a zlib or gzip stream, checked; never more than a little beyond `nbytes`."""
    if is_gzip(data):
        return inflate(data, nbytes, path)
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, nbytes + 1)
        if not stream.eof:  # the checksum may be all that is left
            out += stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        problem = f"its compressed data are damaged ({error}); download or copy it again"
        raise SourceError("corrupt-zlib", path, problem) from error
    if not stream.eof:
        raise SourceError("truncated", path, "its compressed data end early; download it again")
    return memoryview(out)


def itk() -> Any:
    """SimpleITK; SourceError names the extra where it is not installed."""
    try:
        import SimpleITK

        return SimpleITK
    except ImportError as error:
        problem = "needs SimpleITK: pip install 'mim3d[containers]', or convert it to .nii.gz"
        raise SourceError("needs-extra", "", problem) from error


def itk_header(path: str) -> NiftiHeader:
    """Header of an ITK file by SimpleITK, axes in NIfTI's directions."""
    files_of_itk(path)
    library = library_for(path)
    reader = library.ImageFileReader()
    reader.SetFileName(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise SourceError("bad-header", path, f"cannot be read: {last_line(error)}") from error
    if reader.GetNumberOfComponents() != 1:
        problem = f"has {reader.GetNumberOfComponents()} components a voxel; extract one"
        raise SourceError("vector", path, problem)
    size = [int(n) for n in reader.GetSize()]
    if not 2 <= len(size) <= 4:
        raise SourceError("bad-dims", path, f"has dimensions {size}, not 2 to 4 of them")
    name = library.GetPixelIDValueAsString(reader.GetPixelID())
    try:
        dtype = np.dtype(PIXELS[name])
    except KeyError as error:
        raise SourceError("bad-datatype", path, f"holds {name} voxels; cast them") from error
    affine = ras_affine(reader.GetDirection(), reader.GetSpacing(), reader.GetOrigin())
    frames = size[3] if len(size) == 4 else 1
    x, y, z = (*size[:3], 1)[:3]
    return made(dtype, (x, y, z), frames, affine)


PIXELS = {
    "8-bit unsigned integer": "u1", "8-bit signed integer": "i1",
    "16-bit unsigned integer": "u2", "16-bit signed integer": "i2",
    "32-bit unsigned integer": "u4", "32-bit signed integer": "i4",
    "64-bit unsigned integer": "u8", "64-bit signed integer": "i8",
    "32-bit float": "f4", "64-bit float": "f8",
}  # fmt: skip


def itk_voxels(path: str, header: NiftiHeader, data: memoryview) -> np.ndarray:
    """Voxels (t, z, y, x) of an ITK file whose stored `data` were read and are checked first."""
    nbytes = header.n_voxels * header.dtype.itemsize
    check_stored(files_of_itk(path), nbytes, path, data)
    library = library_for(path)
    try:
        voxels = library.GetArrayFromImage(library.ReadImage(path))
    except RuntimeError as error:
        raise SourceError("unreadable", path, f"cannot be read: {last_line(error)}") from error
    return voxels.reshape(header.n_frames, *header.shape[::-1])


def library_for(path: str) -> Any:
    """SimpleITK, or an error that names the file."""
    try:
        return itk()
    except SourceError as error:
        raise SourceError(error.code, path, error.detail) from error


def ras_affine(
    direction: Iterable[float], spacing: Iterable[float], origin: Iterable[float]
) -> np.ndarray:
    """NIfTI's affine (x right, y front) of ITK's geometry (x left, y back)."""
    sides, start = np.array(list(spacing)), np.array(list(origin))
    n = len(sides)
    turned = np.array(list(direction)).reshape(n, n)
    affine = np.eye(4)
    k = min(n, 3)
    affine[:k, :k] = (turned * sides)[:k, :k]
    affine[:k, 3] = start[:k]
    affine[:2] *= -1
    return affine


def last_line(error: Exception) -> str:
    """The last line of an ITK error, which says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "unknown reason"
