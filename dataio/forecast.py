"""What a conversion would do, from the headers alone and a measured taste of the real work."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from mim3d.dataio.conversion import Conversion
from mim3d.dataio.errors import SourceError
from mim3d.dataio.grid import Grid
from mim3d.dataio.gzip_stream import is_gzip, peek
from mim3d.dataio.label import read_label
from mim3d.dataio.nifti_file import check_budget, is_remote, pair_paths, read_source_bytes
from mim3d.dataio.nifti_header import HEADER_BYTES, NiftiHeader, parse_header
from mim3d.dataio.orientation import axis_codes
from mim3d.dataio.quarantine import Rejection
from mim3d.dataio.source import Source
from mim3d.dataio.volume import read_images, volumes
from mim3d.dataio.volume_ids import safe_id
from mim3d.dataio.volume_writer import volume_objects

HEAD_BYTES = 64 * 1024
TASTES = 3


@dataclass(frozen=True)
class Expected:
    """One source that would be converted: shape (x, y, z), volumes it makes, bytes as now."""

    source: Source
    shape: tuple[int, int, int]
    n_frames: int
    dtype: str
    orientation: str
    voxel_bytes: int


@dataclass(frozen=True)
class Forecast:
    """Sizes in bytes; `ratio` and `bytes_per_s` (of one worker) were measured on a few sources."""

    expected: tuple[Expected, ...]
    rejections: tuple[Rejection, ...]
    ratio: float
    bytes_per_s: float

    @property
    def voxel_bytes(self) -> int:
        """Decoded size of everything."""
        return sum(item.voxel_bytes for item in self.expected)

    @property
    def stored_bytes(self) -> float:
        """Estimated size of the corpus."""
        return self.voxel_bytes * self.ratio

    def seconds(self, workers: int) -> float:
        """Estimated duration."""
        return self.voxel_bytes / max(self.bytes_per_s, 1.0) / max(workers, 1)


def forecast(sources: Sequence[Source], conversion: Conversion) -> Forecast:
    """Read every header, judge it as the conversion would, and convert a few in memory."""
    expected, rejections = [], []
    for source in sources:
        try:
            expected.append(expect(source, conversion))
        except SourceError as error:
            rejections.append(Rejection.of(error))
    tasted, rejected = _taste(expected, conversion)
    bad = {rejection.path for rejection in rejected}
    kept = [item for item in expected if not bad.intersection(item.source.paths)]
    return Forecast(tuple(kept), (*rejections, *rejected), *tasted)


def expect(source: Source, conversion: Conversion) -> Expected:
    """What a source would become by its headers; SourceError where they rule it out."""
    header = read_header(source.images[0], conversion.byte_budget)
    grid = header_grid(header)
    total = header.end - header.offset
    for path in (*source.images[1:], *source.labels.values()):
        other = read_header(path, conversion.byte_budget)
        if difference := grid.difference(header_grid(other)):
            detail = f"not on the grid of {source.images[0]}: {difference}"
            raise SourceError("other-grid", path, detail)
        total += other.end - other.offset
    codes = axis_codes(header.affine)
    return Expected(source, header.shape, header.n_frames, header.dtype.name, codes, total)


def header_grid(header: NiftiHeader) -> Grid:
    """Grid of a header."""
    x, y, z = header.shape
    return Grid((z, y, x), header.affine)


def read_header(path: str, budget: int) -> NiftiHeader:
    """Checked header of a file, from its first bytes where it is local."""
    pair = pair_paths(path)
    place = pair[0] if pair else path
    data = _first_bytes(place, budget)
    block = peek(data, HEADER_BYTES, place) if is_gzip(data) else bytes(data[:HEADER_BYTES])
    header = parse_header(block, place, paired=pair is not None)
    check_budget(header, place, budget)
    return header


def _first_bytes(path: str, budget: int) -> bytes | memoryview:
    if is_remote(path):
        return read_source_bytes(path, budget)
    if not Path(path).is_file():
        raise SourceError("missing", path, "no such file")
    try:
        with Path(path).open("rb") as file:
            data = file.read(HEAD_BYTES)
    except OSError as error:
        raise SourceError("unreadable", path, f"cannot be read: {error.strerror}") from error
    if not data:
        raise SourceError("empty", path, "is empty (0 bytes); download or copy it again")
    return data


def _taste(
    expected: Sequence[Expected], conversion: Conversion
) -> tuple[tuple[float, float], list[Rejection]]:
    """Stored share and bytes per second over a few evenly spread sources, written nowhere."""
    step = max(1, len(expected) // TASTES)
    voxel_bytes, stored, seconds = 0, 0, 1e-9
    rejected = []
    for item in expected[::step][:TASTES]:
        began = time.process_time()
        try:
            stored += sum(converted_sizes(item.source, conversion))
        except SourceError as error:
            rejected.append(Rejection.of(error))
            continue
        seconds += time.process_time() - began
        voxel_bytes += item.voxel_bytes
    if not voxel_bytes:
        return (0.0, 1.0), rejected
    return (stored / voxel_bytes, voxel_bytes / seconds), rejected


def converted_sizes(source: Source, conversion: Conversion) -> Iterator[int]:
    """Stored bytes of each volume of a source, converted in memory."""
    files = read_images(source, conversion)
    for volume in volumes(files, conversion):
        labels = [
            read_label(safe_id(name), path, volume, source.images[0], conversion)
            for name, path in sorted(source.labels.items())
        ]
        objects, _ = volume_objects("taste", source, files, volume, labels, conversion)
        yield sum(memoryview(part).nbytes for parts in objects.values() for part in parts)


def volume_count(items: Sequence[Expected], conversion: Conversion) -> int:
    """Volumes the sources would make."""
    split = conversion.time_axis == "split"
    return sum(item.n_frames if split else 1 for item in items)


def megavoxels(item: Expected) -> float:
    """Size of a source in millions of voxels."""
    return prod(item.shape) * item.n_frames / 1e6
