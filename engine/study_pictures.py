"""Pictures of a study: each arm's segmentation beside the truth, as one PNG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASS_COLOURS = ("#ffb000", "#00b4d8", "#e5548a", "#7bd389", "#b388ff", "#ff7a45")
PLATE, LABEL = "#0e1116", "#e8edf3"
MASKS = (".truth", ".prediction")
Slices = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Column:
    """One model's predictions: its title, its slices, and the Dice of whole volumes where known.

    `slices` are named `{case}.image`, `.truth`, `.prediction` (y, x) and `.volume`.
    """

    title: str
    slices: Slices
    dice: Mapping[str, float]

    def told(self, case: str) -> str:
        """What stands below a prediction."""
        found = self.dice.get(volume_of(self.slices, case))
        return "" if found is None else f"Dice {found:.2f}"


def draw_segmentations(file: Path, columns: Sequence[Column]) -> None:
    """One row per case: the image, the truth, then each model's prediction, outlined by class.

    Cases are named on the left, volumes' Dice stands below predictions, classes at the bottom.
    """
    from matplotlib.figure import Figure

    first = columns[0].slices
    cases = sorted({key.split(".")[0] for key in first})
    height, width = first[f"{cases[0]}.image"].shape
    tall = min(max(height / width, 0.6), 1.6)
    size = (1.62 * (2 + len(columns)) + 0.2, 1.62 * tall * len(cases) + 0.7)
    figure = Figure(figsize=size, facecolor=PLATE, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.04, wspace=0.01, hspace=0.01)  # pyright: ignore
    grid = figure.subplots(len(cases), 2 + len(columns), squeeze=False)
    for row, case in zip(grid, cases, strict=True):
        image, truth = first[f"{case}.image"], first[f"{case}.truth"]
        draw_slice(row[0], image, None)
        draw_slice(row[1], image, truth)
        row[0].set_ylabel(volume_of(first, case), color=LABEL, fontsize=7.5)
        for axes, column in zip(row[2:], columns, strict=True):
            draw_slice(axes, image, column.slices[f"{case}.prediction"])
            axes.set_xlabel(column.told(case), color=LABEL, fontsize=8, labelpad=2)
    for axes, title in zip(
        grid[0], ["image", "truth", *(column.title for column in columns)], strict=True
    ):
        axes.set_title(title, color=LABEL, fontsize=9)
    class_legend(figure, [column.slices for column in columns])
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, facecolor=PLATE)


def class_legend(figure: "Figure", shown: Sequence[Slices]) -> None:
    """The colour of each class in the slices, below."""
    from matplotlib.patches import Patch

    labels = [array for s in shown for key, array in s.items() if key.endswith(MASKS)]
    present = sorted({int(k) for array in labels for k in np.unique(array)} - {0})
    if present:
        figure.legend(
            handles=[Patch(color=class_colour(k), label=f"class {k}") for k in present],
            loc="outside lower center",
            ncol=len(present),
            frameon=False,
            fontsize=8.5,
            labelcolor=LABEL,
        )


def class_colour(k: int) -> str:
    """Colour of class k, from 1 on."""
    return CLASS_COLOURS[(k - 1) % len(CLASS_COLOURS)]


def volume_of(slices: Slices, case: str) -> str:
    """Name of a case's volume, its number where none was kept."""
    return str(slices.get(f"{case}.volume", f"case {case}"))


def draw_slice(axes: "Axes", image: np.ndarray, labels: np.ndarray | None) -> None:
    """A grey slice with classes filled faintly and outlined."""
    shown = image.astype(np.float32)
    low, high = np.percentile(shown, (1, 99.5))
    axes.imshow(shown, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="bicubic")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_frame_on(False)
    axes.invert_yaxis()
    if labels is None:
        return
    for k in range(1, int(labels.max()) + 1):
        mask = (labels == k).astype(np.float32)
        if mask.any():
            colour = class_colour(k)
            axes.contourf(mask, levels=[0.5, 2.0], colors=[colour], alpha=0.28)
            axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.1)


def load_slices(file: Path) -> dict[str, np.ndarray]:
    """Slices of one fine-tuning run, without unpickling anything."""
    with np.load(file, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}
