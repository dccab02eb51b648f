"""Label files beside their image: the same grid, whole classes, and points to crop around."""

from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
import xxhash

from mim3d.dataio.convert.resample import resample_label, resampled_grid
from mim3d.dataio.convert.volume import Volume, trust_of, turned_view
from mim3d.dataio.convert.volume_ids import label_facts, safe_id
from mim3d.dataio.corpus.conversion import Conversion, listed
from mim3d.dataio.corpus.manifest import IGNORED, MASK_OF_255
from mim3d.dataio.errors import SourceError
from mim3d.dataio.geometry import Grid, axis_codes
from mim3d.dataio.memory import forget, room_for
from mim3d.dataio.nifti.file import hash_text, read_nifti
from mim3d.dataio.nifti.merged import joined_note, masks_of
from mim3d.dataio.sources.source import Source

POINTS_PER_CLASS = 64
POINTS_PER_LABEL = 4096
MAX_CLASS = 65535
BLOCK = 1 << 16
ROUNDED = 1e-3  # further off, a value is no class that lost its last digits
FAR_BELOW = 128
INTEGERS = ("uint8", "int16", "uint16", "int32")


@dataclass(frozen=True)
class Label:
    """A label array ready to be stored; `points` are class -> (n, 3) voxels in z, y, x.

    Voxels of the value `ignore`, `n_ignored` of them, are in no class. `notes` say what was made
    of the file: rounded, turned, merged.
    """

    name: str
    voxels: np.ndarray
    classes: dict[int, int]
    points: dict[int, np.ndarray]
    source: str
    hash: str
    ignore: int | None = None
    n_ignored: int = 0
    notes: tuple[str, ...] = ()


class OnGrid(Protocol):
    """What a label file is held against: the grid and frames of its image."""

    @property
    def file_grid(self) -> Grid:
        """As the image lies on disk."""
        ...

    @property
    def frame(self) -> int:
        """Time index, -1 of an image that has none."""
        ...

    @property
    def n_frames(self) -> int:
        """Frames of the image."""
        ...


@dataclass
class LabelFile:
    """One label file on its image's grid: its voxels, hash, and what was done to it."""

    voxels: np.ndarray
    hash: str
    notes: list[str]


def read_label(
    name: str,
    path: str,
    volume: Volume,
    image_path: str,
    conversion: Conversion,
    ignore: int | None = None,
) -> Label:
    """Read a label and bring it to the stored grid of its volume.

    `ignore` is the value that means untold, 255 where nothing is said and it stands alone above the
    classes. A mask of 0 and 255 alone is stored with 1 for 255. Raises SourceError
    other-grid, label-frames, label-not-integer, label-range or label-values.
    """
    forget()  # what the image was read from would stay beside the label
    file = file_classes(name, path, volume, image_path, conversion)
    notes, hash = tuple(file.notes), file.hash
    given = [file.voxels]
    del file
    given.append(turned_view(given.pop(), volume.file_grid, conversion.orientation))
    voxels = _placed(given, volume, conversion)
    if lists := conversion.lists_of_label(name):
        voxels, ignore = renumbered(voxels, lists, ignore, f"label {name!r}", path)
    classes, points = classes_and_points(voxels)
    if ignore is None and set(classes) - {0} == {IGNORED}:
        voxels = (voxels == IGNORED).astype(np.uint8)
        classes, points = classes_and_points(voxels)
        notes += (f"label {name!r}: {MASK_OF_255}",)
    ignored = ignored_value(classes, ignore)
    n_ignored = classes.pop(ignored, 0) if ignored is not None else 0
    if n_ignored and ignored is not None:
        points.pop(ignored, None)
        notes += (f"label {name!r}: {n_ignored} voxels of {ignored} are ignored, no class",)
    return Label(name, voxels, classes, points, path, hash, ignored, n_ignored, notes)


def read_labels(
    source: Source, volume: Volume, conversion: Conversion
) -> tuple[list[Label], dict[str, SourceError]]:
    """Labels of a source on the grid of its volume, by name, and why the others cannot be had."""
    labels: list[Label] = []
    errors: dict[str, SourceError] = {}
    for name, path in sorted(source.labels.items()):
        id = safe_id(name)
        ignore = label_facts(source, id).ignore
        try:
            labels.append(read_label(id, path, volume, source.images[0], conversion, ignore))
        except SourceError as error:
            errors[name] = error
    return labels, errors


def file_classes(
    name: str, path: str, volume: OnGrid, image_path: str, conversion: Conversion
) -> LabelFile:
    """The classes of a label's file, or of the masks it is merged from, in the image's axes."""
    if parts := masks_of(path):
        return merged_file(name, parts, volume, image_path, conversion)
    return label_file(name, path, volume, image_path, conversion)


def label_file(
    name: str, path: str, volume: OnGrid, image_path: str, conversion: Conversion
) -> LabelFile:
    """The classes of one file in the axes of its image; SourceError as `read_label` has it."""
    file = read_nifti(path, conversion.byte_budget, trust_of(conversion))
    notes: list[str] = []
    grid = file.header.grid
    difference = volume.file_grid.difference(grid)
    change = None
    if difference:
        change, turned = grid.turned_like(volume.file_grid)
        if volume.file_grid.difference(turned):
            detail = f"label {name!r} is not on the grid of {image_path}: {difference}"
            raise SourceError("other-grid", path, f"{detail}; resample it onto the image's grid")
        codes = axis_codes(grid.affine), axis_codes(volume.file_grid.affine)
        notes.append(f"label {name!r}: turned from {codes[0]} to its image's {codes[1]}, exactly")
    n_frames = file.header.n_frames
    if n_frames not in (1, volume.n_frames):
        detail = f"label {name!r} has {n_frames} frames, the image {volume.n_frames}"
        raise SourceError("label-frames", path, detail)
    header, hash = file.header, file.hash
    given = [file.voxels[volume.frame if n_frames > 1 else 0]]
    del file
    given.append(whole_classes(given.pop(), header.slope, header.intercept, name, path, notes))
    if change is not None:
        given.append(change.view(given.pop().transpose(2, 1, 0)).transpose(2, 1, 0))
    return LabelFile(given.pop(), hash, notes)


def merged_file(
    name: str,
    parts: list[tuple[int, str]],
    volume: OnGrid,
    image_path: str,
    conversion: Conversion,
) -> LabelFile:
    """Masks laid over each other in ascending order of their classes, each as its class."""
    kind = np.uint8 if parts[-1][0] <= np.iinfo(np.uint8).max else np.uint16
    out = np.zeros(volume.file_grid.shape, kind)
    digest = xxhash.xxh3_128()
    notes: list[str] = []
    overlap = 0
    for number, path in parts:
        mask = label_file(name, path, volume, image_path, conversion)
        digest.update(f"{number} {mask.hash} ".encode())
        notes += [note for note in mask.notes if note not in notes]
        inside = mask.voxels != 0
        held = mask.voxels[inside]
        if held.size and held.min() != held.max():
            values = np.unique(held).tolist()
            notes.append(f"label {name!r}: {joined_note(path, number, values)}")
        del held
        overlap += int((out[inside] != 0).sum())
        out[inside] = number
        forget()
    if overlap:
        notes.append(f"label {name!r}: {overlap} voxels are in several masks, the highest class is")
    return LabelFile(out, hash_text(digest), notes)


def renumbered(
    voxels: np.ndarray,
    lists: tuple[tuple[int, ...], ...],
    ignore: int | None,
    what: str,
    path: str,
) -> tuple[np.ndarray, int | None]:
    """Classes 1, 2, ... for the values of any of the lists, in its order, as uint8, and the value
    that is ignored: the one told, or IGNORED for one that is now a class.

    SourceError label-values where the label holds any other, or values of two lists.
    """
    numbers = {0: 0}
    for values in lists:
        numbers |= {value: number for number, value in enumerate(values, start=1)}
    kept = ignore if ignore is None or max(map(len, lists)) < ignore <= IGNORED else IGNORED
    if ignore is not None and kept is not None:
        numbers[ignore] = kept
    present, inverse = np.unique(voxels, return_inverse=True)
    if other := [int(value) for value in present if int(value) not in numbers]:
        detail = f"{what} holds {other[0]}, which is none of --label-values"
        raise SourceError("label-values", path, f"{detail} ({listed(lists, ', ')}); add it")
    held = [next((v for v in values if v in present and v != ignore), None) for values in lists]
    if len(mixed := [value for value in held if value is not None]) > 1:
        detail = f"{what} holds {mixed[0]} and {mixed[1]}, which are of two lists of --label-values"
        raise SourceError("label-values", path, f"{detail}; write them in one")
    made = np.array([numbers[int(value)] for value in present], np.uint8)
    return made[inverse].reshape(voxels.shape), kept


def ignored_value(classes: dict[int, int], declared: int | None) -> int | None:
    """The value that is no class: the one told, else 255 where classes are few and far below it."""
    if declared is not None:
        return declared
    others = [number for number in classes if number != IGNORED]
    return IGNORED if IGNORED in classes and max(others, default=0) < FAR_BELOW else None


def whole_classes(
    raw: np.ndarray,
    slope: float,
    intercept: float,
    name: str,
    path: str,
    notes: list[str] | None = None,
) -> np.ndarray:
    """The smallest of uint8, int16, uint16, int32 that holds every class exactly.

    In the memory of `raw` where it may be written, which then holds nothing else. Values within
    ROUNDED of a whole number are rounded, and `notes` say so: floats through an integer header's
    scaling come back so.
    """
    if (slope, intercept) == (1.0, 0.0) and raw.dtype == np.uint8:
        return raw
    ends = [slope * float(end) + intercept for end in (raw.min(), raw.max())]
    fractions = f"label {name!r} holds fractions or NaN: it is no segmentation"
    if not np.isfinite(ends).all():
        raise SourceError("label-not-integer", path, f"{fractions}; threshold or round it")
    low, high = (round(end) for end in sorted(ends))
    if high > MAX_CLASS or low < -MAX_CLASS:
        detail = f"label {name!r} has classes {low:g} to {high:g}, beyond {MAX_CLASS}"
        raise SourceError("label-range", path, f"{detail}; renumber them")
    kind = next(k for k in INTEGERS if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    whole = room_for(raw, np.dtype(kind))
    largest = 0.0
    # Slab by slab: float64 of a whole label would be eight times its size.
    for voxels, out in zip(raw, whole, strict=True):
        real = slope * voxels.astype(np.float64) + intercept
        nearest = np.rint(real)
        largest = max(largest, float(np.abs(nearest - real).max()))
        if not largest <= ROUNDED:
            raise SourceError("label-not-integer", path, f"{fractions}; threshold or round it")
        out[...] = nearest
    if largest and notes is not None:
        notes.append(f"label {name!r}: values up to {largest:.1g} off whole numbers are rounded")
    return whole


def _placed(given: list[np.ndarray], volume: Volume, conversion: Conversion) -> np.ndarray:
    """The label in `given`, which is emptied, resampled and cropped as the image was."""
    voxels = given.pop()
    if conversion.spacing_mm is not None:
        voxels = np.array(voxels, order="C")  # out of what may be larger memory, which then goes
        forget()
        old = volume.oriented_grid
        new = resampled_grid(old, conversion.spacing_mm)
        voxels = resample_label(voxels, old, new)
    slices = tuple(slice(a, b) for a, b in zip(*volume.crop, strict=True))
    return voxels[slices]


@dataclass(frozen=True)
class BlockCounts:
    """How often each class occurs in each block of a label; `lowest` is the class of bin 0."""

    lowest: int
    present: tuple[np.ndarray, ...]
    counts: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, blocks: list[np.ndarray]) -> "BlockCounts":
        """Count block by block: bincount works on flat 64-bit copies."""
        lowest = int(min(block.min() for block in blocks))
        present, counts = [], []
        for block in blocks:
            found = np.bincount(block.reshape(-1).astype(np.int64) - lowest)
            present.append(np.flatnonzero(found))
            counts.append(found[present[-1]])
        return cls(lowest, tuple(present), tuple(counts))

    def total(self) -> dict[int, int]:
        """Voxels of every class present, in ascending order."""
        whole: dict[int, int] = {}
        for numbers, counts in zip(self.present, self.counts, strict=True):
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                whole[number + self.lowest] = whole.get(number + self.lowest, 0) + count
        return dict(sorted(whole.items()))

    def before(self, number: int) -> np.ndarray:
        """Voxels of a class before each block, and in all."""
        column = number - self.lowest
        inside = [
            int(counts[at]) if at < len(numbers) and numbers[at] == column else 0
            for numbers, counts in zip(self.present, self.counts, strict=True)
            for at in [int(np.searchsorted(numbers, column))]
        ]
        return np.concatenate([[0], np.cumsum(inside)])


def classes_and_points(voxels: np.ndarray) -> tuple[dict[int, int], dict[int, np.ndarray]]:
    """Voxel counts of every class; and up to 64 voxels (n, 3) of each class above 0.

    They are drawn without replacement by a generator seeded with the class: the same every time.
    """
    n_planes = max(1, BLOCK // prod(voxels.shape[1:]))
    blocks = [voxels[z : z + n_planes] for z in range(0, len(voxels), n_planes)]
    size, table = blocks[0].size, BlockCounts.of(blocks)
    classes = table.total()
    wanted = [number for number in classes if number > 0]
    each = max(1, min(POINTS_PER_CLASS, POINTS_PER_LABEL // max(len(wanted), 1)))
    points = {}
    for number in wanted:
        before = table.before(number)
        count = classes[number]
        draw = np.random.default_rng(number).choice(count, min(each, count), replace=False)
        at = np.sort(draw)
        where = np.searchsorted(before, at, side="right") - 1
        chosen = []
        for block in np.unique(where):
            inside = np.flatnonzero(blocks[block] == number)
            chosen.append(inside[at[where == block] - before[block]] + block * size)
        found = np.unravel_index(np.concatenate(chosen), voxels.shape)
        points[number] = np.stack(found, axis=1).astype("<u4")
    return classes, points
