"""A montage of mid-slices: three planes per volume, true proportions, labels in colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from nibabel.orientations import aff2axcodes

from mim3d.dataio.chunk_table import ChunkTable
from mim3d.dataio.histograms import COLOURS
from mim3d.dataio.manifest import VolumeRecord
from mim3d.dataio.shard_reader import ShardReader

PLANES = ("axial", "coronal", "sagittal")
OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}
HALO = withStroke(linewidth=1.4, foreground="#101010")
INK, PAPER = "#d8d8d8", "#101010"
# Bright first: labels are drawn over greys on black.
LABEL_COLOURS = tuple(COLOURS[i] for i in (1, 4, 2, 3, 6, 5, 0))


@dataclass(frozen=True)
class Plane:
    """One slice: `image` in 0..1 and `label` classes (rows, columns), row 0 at the bottom."""

    image: np.ndarray
    label: np.ndarray
    aspect: float  # height of a voxel over its width, in mm
    voxel_mm: float  # width of a voxel
    letters: tuple[str, str, str, str]  # direction at the left, right, bottom, top


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
    picked = sorted({round(i) for i in np.linspace(0, len(records) - 1, n_volumes)})
    rows = -(-len(picked) // columns)
    n_columns = min(columns, len(picked))
    figure = Figure(figsize=(4.9 * n_columns, 1.95 * rows + 0.7), dpi=130, facecolor=PAPER)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        rows, n_columns, left=0.01, right=0.99, top=1 - 0.12 / rows, bottom=0.35 / rows,
        wspace=0.04, hspace=0.2,
    )  # fmt: skip
    seen: set[tuple[str, int]] = set()
    for place, index in enumerate(picked):
        planes, classes = read_planes(records[index], table, reader)
        seen |= classes
        widths = [plane.image.shape[1] * plane.voxel_mm for plane in planes]
        cell = grid[place // n_columns, place % n_columns].subgridspec(
            1, 3, wspace=0.03, width_ratios=widths
        )
        axes = [figure.add_subplot(cell[0, k]) for k in range(3)]
        draw_volume(axes, planes, records[index])
    draw_legend(figure, seen)
    figure.savefig(file, facecolor=PAPER)
    return [records[i].id for i in picked]


def read_planes(
    record: VolumeRecord, table: ChunkTable, reader: ShardReader
) -> tuple[list[Plane], set[tuple[str, int]]]:
    """Three planes through the labelled structures (or the foreground's middle), and classes."""
    volume = table.index(record.id)
    image_row = int(table.volumes["image"][volume])
    label_row, name = first_label(table, volume)
    centre = centre_of(record, table, label_row)
    low, high = record.intensity.p005, record.intensity.p995
    planes: list[Plane] = []
    classes: set[tuple[str, int]] = set()
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
            label = np.squeeze(reader.read_box(label_row, *box)[0], axis).astype(np.int64)
            classes |= {(name, int(c)) for c in np.unique(label) if c}
        planes.append(Plane(np.nan_to_num(grey), label, *proportions(record, axis)))
    return planes, classes


def first_label(table: ChunkTable, volume: int) -> tuple[int, str]:
    """Row and name of a volume's first label array; (-1, "") without one."""
    record = table.volumes[volume]
    if not int(record["n_labels"]):
        return -1, ""
    row = int(record["first_label"])
    return row, table.label_names[int(table.arrays["label"][row])]


def centre_of(record: VolumeRecord, table: ChunkTable, label_row: int) -> tuple[int, int, int]:
    """Voxel (z, y, x) to cut through: median of labelled sample points, else of the foreground."""
    if label_row >= 0:
        low, high = np.searchsorted(table.points["array"], [label_row, label_row + 1])
        points = table.points["zyx"][low:high]
        if len(points):
            z, y, x = (int(v) for v in np.median(points, axis=0))
            return z, y, x
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


def draw_volume(axes: Sequence[Axes], planes: Sequence[Plane], record: VolumeRecord) -> None:
    """Three planes side by side at one scale, with the volume's name above."""
    tallest = max(plane.image.shape[0] * plane.aspect * plane.voxel_mm for plane in planes)
    for axis, plane, title in zip(axes, planes, PLANES, strict=True):
        axis.set_facecolor(PAPER)
        axis.imshow(overlay(plane), origin="lower", aspect=plane.aspect, interpolation="nearest")
        axis.axis("off")
        # Room down to the tallest plane's foot: all three then have as many mm to the inch.
        edge = plane.image.shape[0] - 0.5
        axis.set_ylim(edge - tallest / (plane.aspect * plane.voxel_mm), edge)
        axis.set_anchor("N")  # pictures of all heights hang from one line, below the name
        left, right, bottom, top = plane.letters
        share = plane.image.shape[0] * plane.aspect * plane.voxel_mm / tallest
        for text, x, y in ((left, 0.035, 0.5), (right, 0.965, 0.5), (bottom, 0.5, 0.045),
                           (top, 0.5, 0.945)):  # fmt: skip
            axis.text(x, 1 - share * (1 - y), text, transform=axis.transAxes, color=INK,
                      fontsize=5.5, ha="center", va="center", path_effects=[HALO])  # fmt: skip
        if title == PLANES[0]:
            size = "x".join(map(str, record.shape))
            mm = "x".join(f"{v:.3g}" for v in record.spacing_mm)
            name = record.id if len(record.id) <= 34 else record.id[:31] + "..."
            text = f"{name}   {size}  {mm} mm  {record.dtype}"
            axis.set_title(text, fontsize=6.5, color=INK, loc="left", pad=3)


def overlay(plane: Plane) -> np.ndarray:
    """Greys with each class tinted and outlined, (rows, columns, 3)."""
    picture = np.repeat(plane.image[..., None], 3, axis=-1)
    for cls in np.unique(plane.label):
        if cls == 0:
            continue
        mask = plane.label == cls
        colour = np.array(to_rgb(colour_of(int(cls))))
        picture[mask] = 0.62 * picture[mask] + 0.38 * colour
        picture[outline(mask)] = colour
    return picture


def outline(mask: np.ndarray) -> np.ndarray:
    """Voxels of the mask with a neighbour outside, none where that would leave no inside."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside if inside.any() else np.zeros_like(mask)


def colour_of(cls: int) -> str:
    """Colour of a class; they repeat after seven."""
    return LABEL_COLOURS[(cls - 1) % len(LABEL_COLOURS)]


def draw_legend(figure: Figure, classes: set[tuple[str, int]]) -> None:
    """Colours of the classes seen, below the pictures."""
    shown = sorted(classes)[:14]
    handles = [Patch(color=colour_of(cls), label=f"{name} {cls}") for name, cls in shown]
    if len(classes) > len(shown):
        handles.append(Patch(color="none", label=f"and {len(classes) - len(shown)} more"))
    if handles:
        figure.legend(
            handles=handles, loc="lower center", ncols=min(len(handles), 8), frameon=False,
            fontsize=7, labelcolor=INK, borderaxespad=0.3,
        )  # fmt: skip
