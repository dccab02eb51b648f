"""A montage of mid-slices: three planes per volume, true proportions, labels in colour."""

from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.orientations import aff2axcodes

from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.extras import extra
from mim3d.dataio.inspect.histograms import COLOURS
from mim3d.dataio.reader.shard_reader import ShardReader

with extra():
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_hex, to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.patheffects import withStroke

PLANES = ("axial", "coronal", "sagittal")
OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}
HALO = withStroke(linewidth=1.4, foreground="#101010")
INK, PAPER = "#d8d8d8", "#101010"
# Bright first: labels are drawn over greys on black.
LABEL_COLOURS = tuple(COLOURS[i] for i in (1, 4, 2, 3, 6, 5, 0))
THIN = 0.2  # share of the height below which a picture has no room for its letters
LEGEND_COLUMNS, MOST_IN_LEGEND = 8, 31
Class = tuple[str, int]  # name of a label, class


@dataclass(frozen=True)
class Plane:
    """One slice: `image` in 0..1 and `label` classes (rows, columns), row 0 at the bottom.

    `name` is the label's.
    """

    image: np.ndarray
    label: np.ndarray
    aspect: float  # height of a voxel over its width, in mm
    voxel_mm: float  # width of a voxel
    letters: tuple[str, str, str, str]  # direction at the left, right, bottom, top
    name: str = "seg"

    @property
    def height_mm(self) -> float:
        """Height of the picture."""
        return self.image.shape[0] * self.aspect * self.voxel_mm

    @property
    def classes(self) -> set[Class]:
        """What is labelled in it."""
        return {(self.name, int(number)) for number in np.unique(self.label) if number}


def save_montage(
    records: Sequence[VolumeRecord],
    table: ChunkTable,
    reader: ShardReader,
    file: Path,
    *,
    n_volumes: int = 12,
    columns: int = 2,
) -> list[str]:
    """Write the PNG of `n_volumes` spread over the corpus; returns their ids."""
    if n_volumes < 1:
        raise Mim3dError(f"{n_volumes} volumes in a montage: at least 1 (--no-pictures draws none)")
    picked = sorted({round(i) for i in np.linspace(0, len(records) - 1, n_volumes)})
    cut = [read_planes(records[i], table, reader) for i in picked]
    colours = class_colours({c for planes in cut for plane in planes for c in plane.classes})
    rows, n_columns = -(-len(picked) // columns), min(columns, len(picked))
    legend_rows = -(-min(len(colours), MOST_IN_LEGEND + 1) // LEGEND_COLUMNS)
    height, below = 1.95 * rows + 0.25, 0.2 * legend_rows + 0.1
    figure = Figure(figsize=(4.9 * n_columns, height + below), dpi=130, facecolor=PAPER)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        rows, n_columns, left=0.01, right=0.99, top=1 - 0.25 / (height + below),
        bottom=below / (height + below), wspace=0.04, hspace=0.2,
    )  # fmt: skip
    for place, (index, planes) in enumerate(zip(picked, cut, strict=True)):
        widths = [plane.image.shape[1] * plane.voxel_mm for plane in planes]
        cell = grid[place // n_columns, place % n_columns].subgridspec(
            1, 3, wspace=0.03, width_ratios=widths
        )
        axes = [figure.add_subplot(cell[0, k]) for k in range(3)]
        draw_volume(axes, planes, records[index], colours)
    draw_legend(figure, colours)
    figure.savefig(file, facecolor=PAPER)
    return [records[i].id for i in picked]


def class_colours(classes: set[Class]) -> dict[Class, str]:
    """A colour of its own for every class of every label: seven well told apart, then others."""
    colours = dict(zip(sorted(classes), LABEL_COLOURS, strict=False))
    for number, key in enumerate(sorted(classes)[len(LABEL_COLOURS) :]):
        # Steps of the golden ratio around the hues never come close to an earlier one soon.
        hue = (0.1 + 0.618034 * number) % 1
        light, full = ((1.0, 0.55), (0.62, 1.0), (1.0, 1.0))[number % 3]
        colours[key] = to_hex(hsv_to_rgb(hue, full, light))
    return colours


def read_planes(record: VolumeRecord, table: ChunkTable, reader: ShardReader) -> list[Plane]:
    """Three planes through the labelled structures, or through the foreground's middle."""
    volume = table.index(record.id)
    image_row = int(table.volumes["image"][volume])
    label_row, name = first_label(table, volume)
    labels = np.zeros((1, 1, 1), np.uint8)
    if label_row >= 0:
        labels = reader.read_box(label_row, (0, 0, 0), record.shape)[0]
    centre = fullest_slices(labels) if labels.any() else middle(record)
    shown = next((each.intensity for each in record.channel_records), record.intensity)
    low, high = shown.p005, shown.p995
    planes: list[Plane] = []
    for axis in range(3):
        start = [0, 0, 0]
        size = list(record.shape)
        start[axis], size[axis] = centre[axis], 1
        box = (start[0], start[1], start[2]), (size[0], size[1], size[2])
        voxels = np.squeeze(reader.read_box(image_row, *box)[0], axis)
        real = record.slope * voxels.astype(np.float32) + record.intercept
        grey = np.clip((real - low) / max(high - low, 1e-9), 0, 1)
        label = np.zeros(grey.shape, np.int64)
        if label_row >= 0:
            label = np.take(labels, centre[axis], axis).astype(np.int64)
        planes.append(Plane(np.nan_to_num(grey), label, *proportions(record, axis), name))
    return planes


def first_label(table: ChunkTable, volume: int) -> tuple[int, str]:
    """Row and name of a volume's first label array; (-1, "") without one."""
    record = table.volumes[volume]
    if not int(record["n_labels"]):
        return -1, ""
    row = int(record["first_label"])
    return row, table.label_names[int(table.arrays["label"][row])]


def fullest_slices(label: np.ndarray) -> tuple[int, int, int]:
    """The slices (z, y, x) that show most of all classes, each counted as a share of its largest
    cut, so that a large organ does not outvote a small one; near the middle where several do."""
    lowest = int(label.min())
    span = int(label.max()) - lowest + 1
    found = []
    for axis in range(3):
        slices = (np.take(label, i, axis) for i in range(label.shape[axis]))
        flat = (part.reshape(-1).astype(np.int64) - lowest for part in slices)
        counts = np.stack([np.bincount(part, minlength=span) for part in flat]).astype(np.float32)
        if lowest <= 0 < lowest + span:
            counts[:, -lowest] = 0  # the background
        shares = (counts / np.maximum(counts.max(axis=0), 1)).sum(axis=1)
        best = np.flatnonzero(shares > shares.max() - 1e-4)
        found.append(int(best[len(best) // 2]))
    return found[0], found[1], found[2]


def middle(record: VolumeRecord) -> tuple[int, int, int]:
    """Voxel (z, y, x) in the middle of the foreground."""
    begin, end = record.foreground_box
    middles = [(a + b) // 2 for a, b in zip(begin, end, strict=True)]
    z, y, x = (min(m, n - 1) for m, n in zip(middles, record.shape, strict=True))
    return z, y, x


def proportions(record: VolumeRecord, axis: int) -> tuple[float, float, tuple[str, str, str, str]]:
    """Aspect, voxel width and direction letters of the plane across array axis `axis` (z, y, x)."""
    row_axis, column_axis = [a for a in range(3) if a != axis]
    aspect = record.spacing_mm[row_axis] / record.spacing_mm[column_axis]
    codes = [code or "?" for code in aff2axcodes(np.array(record.affine))][::-1]  # z, y, x
    right, top = codes[column_axis], codes[row_axis]
    width = record.spacing_mm[column_axis]
    return aspect, width, (OPPOSITE.get(right, "?"), right, OPPOSITE.get(top, "?"), top)


def draw_volume(
    axes: Sequence[Axes],
    planes: Sequence[Plane],
    record: VolumeRecord,
    colours: Mapping[Class, str],
) -> None:
    """Three planes side by side at one scale, with the volume's name above."""
    tallest = max(plane.height_mm for plane in planes)
    for axis, plane, title in zip(axes, planes, PLANES, strict=True):
        axis.set_facecolor(PAPER)
        picture = overlay(plane, colours)
        axis.imshow(picture, origin="lower", aspect=plane.aspect, interpolation="nearest")
        axis.axis("off")
        # Room down to the tallest plane's foot: all three then have as many mm to the inch.
        edge = plane.image.shape[0] - 0.5
        axis.set_ylim(edge - tallest / (plane.aspect * plane.voxel_mm), edge)
        axis.set_anchor("N")  # pictures of all heights hang from one line, below the name
        draw_letters(axis, plane, plane.height_mm / tallest)
        if title == PLANES[0]:
            size = "x".join(map(str, record.shape))
            mm = "x".join(f"{v:.3g}" for v in record.spacing_mm)
            name = record.id if len(record.id) <= 34 else record.id[:31] + "..."
            text = f"{name}   {size}  {mm} mm  {record.dtype}"
            axis.set_title(text, fontsize=6.5, color=INK, loc="left", pad=3)


def draw_letters(axis: Axes, plane: Plane, share: float) -> None:
    """Directions at the four edges of a picture that fills `share` of the height; fewer where they
    would lie on each other."""
    left, right, bottom, top = plane.letters
    places = [(left, 0.035, 0.5), (right, 0.965, 0.5)] if share > THIN / 2 else []
    places += [(bottom, 0.5, 0.045 / share), (top, 0.5, 1 - 0.055 / share)] if share > THIN else []
    for text, x, y in places:
        axis.text(x, 1 - share * (1 - y), text, transform=axis.transAxes, color=INK,
                  fontsize=5.5, ha="center", va="center", path_effects=[HALO])  # fmt: skip


def overlay(plane: Plane, colours: Mapping[Class, str]) -> np.ndarray:
    """Greys with each class tinted and outlined, (rows, columns, 3)."""
    picture = np.repeat(plane.image[..., None], 3, axis=-1)
    for cls in np.unique(plane.label):
        if cls == 0:
            continue
        mask = plane.label == cls
        colour = np.array(to_rgb(colours[plane.name, int(cls)]))
        picture[mask] = 0.62 * picture[mask] + 0.38 * colour
        picture[outline(mask)] = colour
    return picture


def outline(mask: np.ndarray) -> np.ndarray:
    """Voxels of the mask with a neighbour outside, none where that would leave no inside."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside if inside.any() else np.zeros_like(mask)


def draw_legend(figure: Figure, colours: Mapping[Class, str]) -> None:
    """Colours of the classes seen, below the pictures, in rows."""
    shown = [*colours.items()][:MOST_IN_LEGEND]
    handles = [Patch(color=colour, label=f"{name} {cls}") for (name, cls), colour in shown]
    if len(colours) > len(shown):
        handles.append(Patch(color="none", label=f"and {len(colours) - len(shown)} more"))
    rows = -(-len(handles) // LEGEND_COLUMNS)
    by_row = [
        handles[k] for c in range(LEGEND_COLUMNS) for k in range(c, len(handles), LEGEND_COLUMNS)
    ]
    if handles:
        figure.legend(
            handles=by_row if rows > 1 else handles, loc="lower center",
            ncols=min(len(handles), LEGEND_COLUMNS), frameon=False, fontsize=7, labelcolor=INK,
            borderaxespad=0.3,
        )  # fmt: skip
