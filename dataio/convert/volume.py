"""A source's image files to volumes ready to be stored: oriented, cleaned and measured."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mim3d.dataio.convert.intensity import Statistics
from mim3d.dataio.convert.measure import CHANNEL_AXIS, Measured, as_channels, few_values, measured
from mim3d.dataio.convert.resample import check_size, resample_channels, resampled_grid
from mim3d.dataio.convert.values import Values, as_asked, as_stored, cut, finite_only
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.errors import SourceError
from mim3d.dataio.geometry import Grid, Triple, axis_codes, obliquity_deg, reorientation
from mim3d.dataio.memory import forget
from mim3d.dataio.nifti.file import NiftiFile, read_nifti
from mim3d.dataio.nifti.header import HeaderTrust
from mim3d.dataio.sources.source import Source

OBLIQUE_DEG = 1.0


def trust_of(conversion: Conversion) -> HeaderTrust:
    """What of a header the conversion believes."""
    return HeaderTrust(conversion.believe, conversion.units)


def read_images(source: Source, conversion: Conversion) -> list[NiftiFile]:
    """Verified files of a source's channels; SourceError other-grid where they do not match."""
    files = [
        read_nifti(path, conversion.byte_budget, trust_of(conversion)) for path in source.images
    ]
    first = files[0].header.grid
    for file in files[1:]:
        difference = first.difference(file.header.grid)
        if difference or file.header.n_frames > 1 or files[0].header.n_frames > 1:
            detail = difference or "a channel with a fourth dimension"
            raise SourceError(
                "other-grid", file.path, f"not on the grid of {files[0].path}: {detail}"
            )
    return files


@dataclass(frozen=True)
class Volume:
    """An image ready to be stored.

    `voxels` is (z, y, x) or (c, z, y, x), often a view with negative strides or foreign byte
    order. `file_grid` is the source's own, before reorientation; `oriented_grid` is after it and
    before resampling and cropping, and is what labels are compared with. `crop` is the part of the
    resampled grid that is kept. `n_values` is few_values' of the source.
    """

    values: Values
    grid: Grid
    file_grid: Grid
    oriented_grid: Grid
    crop: tuple[Triple, Triple]
    measures: Measured
    frame: int
    n_frames: int
    affine_code: int
    warnings: tuple[str, ...]
    n_values: int = 0
    lost: frozenset[int] = frozenset()
    """Channels that are one value everywhere since they were windowed or quantised."""

    @property
    def statistics(self) -> Statistics:
        """Of all channels together."""
        return self.measures.whole

    @property
    def box(self) -> tuple[Triple, Triple]:
        """Of the foreground."""
        return self.measures.box

    @property
    def channels(self) -> int:
        """Channels of the stored array; 1 has no axis."""
        shape = self.values.voxels.shape
        return shape[0] if len(shape) == CHANNEL_AXIS else 1


def volumes(files: list[NiftiFile], conversion: Conversion) -> Iterator[Volume]:
    """The one volume of the files, or one per time frame.

    Takes the voxels out of `files`, whose headers stay: who changes a volume need not hold both.
    """
    raw = [file.voxels for file in files]
    files[:] = [replace(file, voxels=np.empty(0, file.voxels.dtype)) for file in files]
    n_frames = files[0].header.n_frames
    if len(files) > 1:
        yield _volume([_stacked(files, raw)], files[0], -1, conversion)
    elif n_frames == 1:
        yield _volume([_scaled(raw.pop()[0], files[0])], files[0], -1, conversion)
    elif conversion.time_axis == "channels":
        yield _volume([_scaled(raw.pop(), files[0])], files[0], -1, conversion)
    else:
        for frame in range(n_frames):
            yield _volume([_scaled(raw[0][frame], files[0])], files[0], frame, conversion)


def _scaled(raw: np.ndarray, file: NiftiFile) -> Values:
    return Values(raw, file.header.slope, file.header.intercept)


def _stacked(files: list[NiftiFile], raw: list[np.ndarray]) -> Values:
    """Channels in one array, of a dtype that holds all of them where integers or float32 do.

    Else, and where scalings differ, real float32 values with their largest change. Empties `raw`
    channel by channel.
    """
    kind = np.result_type(*(voxels.dtype.newbyteorder("=") for voxels in raw))
    scalings = {(file.header.slope, file.header.intercept) for file in files}
    exact = len(scalings) == 1 and (kind.kind in "iu" or kind == np.float32)
    if len({file.header.dtype for file in files}) == 1 and len(scalings) == 1:
        kind, exact = raw[0].dtype, True
    stacked = np.empty((len(raw), *raw[0].shape[1:]), kind if exact else np.float32)
    error = 0.0
    for out, file in zip(stacked, files, strict=True):
        channel = raw.pop(0)[0]
        for to, plane in zip(out, channel, strict=True):
            if exact:
                to[...] = plane
            else:
                error = max(error, _put_real(to, plane, file))
    return _scaled(stacked, files[0]) if exact else Values(stacked, 1.0, 0.0, max_error=error)


def _put_real(to: np.ndarray, plane: np.ndarray, file: NiftiFile) -> float:
    """Write the real values of a plane in float32; the largest change this makes."""
    real = file.header.slope * plane.astype(np.float64) + file.header.intercept
    with np.errstate(over="ignore", invalid="ignore"):
        to[...] = real
        gap = np.abs(to - real)
    finite = np.isfinite(real)
    if not np.isfinite(to[finite]).all():
        detail = "values beyond float32's range of 3.4e38"
        raise SourceError("overflow", file.path, f"{detail}; rescale the file")
    return float(gap.max(initial=0.0, where=finite))


def _volume(given: list[Values], file: NiftiFile, frame: int, conversion: Conversion) -> Volume:
    """The volume of the one in `given`, which is emptied: nobody holds what is replaced."""
    before = file.header.grid
    n_values = few_values(given[-1].voxels, given[-1].slope, given[-1].intercept)
    stored = as_stored(given.pop(), conversion.nan_policy, file.path)
    values, oriented = _oriented(stored, before, conversion.orientation)
    del stored
    grid, varied = oriented, frozenset()
    if not conversion.lossless:
        varied = varied_channels(values)
        given.append(values)
        del values
        values, grid = _changed(given, oriented, conversion, file.path)
    found = measured(values)
    box, crop = found.box, ((0, 0, 0), grid.shape)
    if conversion.foreground and box != crop:
        forget()
        crop, values, grid = box, replace(values, voxels=cut(values.voxels, box)), grid.crop(*box)
        found = measured(values)
    n_frames = file.header.n_frames if frame >= 0 else 1
    lost = varied and varied - varied_channels(values)
    warnings = (*_warnings(file, values), *_constant_channels(found, lost))
    code = file.header.affine_code
    return Volume(
        values, grid, before, oriented, crop, found, frame, n_frames, code, warnings, n_values, lost
    )  # fmt: skip


def _oriented(values: Values, grid: Grid, target: str) -> tuple[Values, Grid]:
    """Reoriented view of (..., z, y, x) voxels, and its grid."""
    change = reorientation(grid.affine, target)
    turned = turned_view(values.voxels, grid, target)
    z, y, x = turned.shape[-3:]
    affine = change.affine(grid.affine, (grid.shape[2], grid.shape[1], grid.shape[0]))
    return replace(values, voxels=turned), Grid((z, y, x), affine)


def turned_view(voxels: np.ndarray, grid: Grid, target: str) -> np.ndarray:
    """(..., z, y, x) voxels of a grid in the target orientation, as a view."""
    change = reorientation(grid.affine, target)
    if voxels.ndim == CHANNEL_AXIS:
        turned = [change.view(channel.transpose(2, 1, 0)).transpose(2, 1, 0) for channel in voxels]
        first = turned[0]
        strides = (voxels.strides[0], *first.strides)
        shape = (len(turned), *first.shape)
        return np.lib.stride_tricks.as_strided(first, shape, strides)
    return change.view(voxels.transpose(2, 1, 0)).transpose(2, 1, 0)


def _changed(
    given: list[Values], grid: Grid, conversion: Conversion, path: str
) -> tuple[Values, Grid]:
    """Resample, window and cast, in this order, the one in `given`, which is emptied."""
    forget()
    if conversion.spacing_mm is not None:
        new = resampled_grid(grid, conversion.spacing_mm)
        check_size(new, len(as_channels(given[0].voxels)), conversion.byte_budget, path)
        _resample(given, grid, new)
        grid = new
    return as_asked(given.pop(), conversion, path), grid


def _resample(given: list[Values], old: Grid, new: Grid) -> None:
    """Put the resampled voxels into the place of those in `given`."""
    values = given.pop()
    stack, one = [as_channels(values.voxels)], values.voxels.ndim < CHANNEL_AXIS
    bare = replace(values, voxels=np.empty(0), slope=1.0, intercept=0.0)
    scaling = (values.slope, values.intercept)
    del values
    done = resample_channels(stack, old, new, *scaling)
    given.append(replace(bare, voxels=done[0] if one else done))


def _warnings(file: NiftiFile, values: Values) -> tuple[str, ...]:
    header = file.header
    warnings = [*header.notes, *filter(None, [header.doubt])]
    if header.affine_from == "pixdim":
        warnings.append("no sform and no qform: left and right are a guess, as nibabel makes it")
    if (angle := obliquity_deg(header.affine)) > OBLIQUE_DEG:
        warnings.append(
            f"oblique by {angle:.1f} degrees, kept: axes are only near {axis_codes(header.affine)}"
        )
    if header.dtype.itemsize == 8 and header.dtype.kind == "f":
        warnings.append(f"float64 stored as float32, largest change {values.max_error:.3g}")
    elif header.dtype.itemsize == 8:
        stored = values.voxels.dtype.name
        warnings.append(
            f"{header.dtype.name} stored as {stored}, largest change {values.max_error:.3g}"
        )
    if values.n_nan or values.n_inf:
        warnings.append(f"{values.n_nan} NaN and {values.n_inf} infinite voxels")
    return tuple(warnings)


def varied_channels(values: Values) -> frozenset[int]:
    """Channels of several, from 0, that are not one value everywhere."""
    if values.voxels.ndim < CHANNEL_AXIS:
        return frozenset()
    found = (finite_only(channel) for channel in values.voxels)
    return frozenset(i for i, c in enumerate(found) if c.size and c.min() < c.max())


def _constant_channels(found: Measured, lost: frozenset[int]) -> list[str]:
    """What to say of channels of one value everywhere, `lost` ones since they were changed."""
    warnings = []
    for i, each in enumerate(found.by_channel):
        whole, where = each.whole, f"channel {i} of {len(found.by_channel)}"
        if whole.minimum == whole.maximum:
            why = "by the window or scale of all channels" if i in lost else "is it missing?"
            warnings.append(f"{where} is {whole.minimum:g} everywhere: {why}")
    return warnings
