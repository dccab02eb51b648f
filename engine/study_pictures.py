"""Pictures of a study: each arm's segmentation beside the truth, as one PNG."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLASS_COLOURS = ("#ffb000", "#00b4d8", "#e5548a", "#7bd389", "#b388ff", "#ff7a45")
PLATE = "#0e1116"
Slices = Mapping[str, np.ndarray]


def draw_segmentations(file: Path, arms: Mapping[str, Slices], names: Mapping[str, str]) -> None:
    """One row per case: the image, the truth, then each arm's prediction, outlined by class.

    `arms` holds, by arm, slices named `{case}.image`, `.truth`, `.prediction` (y, x).
    """
    from matplotlib.figure import Figure

    first = next(iter(arms.values()))
    cases = sorted({key.split(".")[0] for key in first})
    columns = 2 + len(arms)
    height, width = first[f"{cases[0]}.image"].shape
    tall = min(max(height / width, 0.6), 1.6)
    size = (1.62 * columns, 1.62 * tall * len(cases) + 0.32)
    figure = Figure(figsize=size, facecolor=PLATE, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)  # pyright: ignore
    grid = figure.subplots(len(cases), columns, squeeze=False)
    titles = ["image", "truth", *(names[arm] for arm in arms)]
    for row, case in enumerate(cases):
        overlays: list[Any] = [None, first[f"{case}.truth"]]
        overlays += [slices[f"{case}.prediction"] for slices in arms.values()]
        for axes, overlay in zip(grid[row], overlays, strict=True):
            draw_slice(axes, first[f"{case}.image"], overlay)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, color="#e8edf3", fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, facecolor=PLATE)


def draw_slice(axes: "Axes", image: np.ndarray, labels: np.ndarray | None) -> None:
    """A grey slice with classes filled faintly and outlined."""
    shown = image.astype(np.float32)
    low, high = np.percentile(shown, (1, 99.5))
    axes.imshow(shown, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="bicubic")
    axes.set_axis_off()
    axes.invert_yaxis()
    if labels is None:
        return
    for k in range(1, int(labels.max()) + 1):
        mask = (labels == k).astype(np.float32)
        if mask.any():
            colour = CLASS_COLOURS[(k - 1) % len(CLASS_COLOURS)]
            axes.contourf(mask, levels=[0.5, 2.0], colors=[colour], alpha=0.28)
            axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.1)


def load_slices(file: Path) -> dict[str, np.ndarray]:
    """Slices of one fine-tuning run, without unpickling anything."""
    with np.load(file, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files if not key.endswith(".volume")}
