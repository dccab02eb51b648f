"""Pictures of what a masked model paints: input, masked input, reconstruction, mid-slices."""

import dataclasses
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.models.objective import Reconstructs
from mim3d.engine.training.trainer import Hook, Trainer

TITLES = ("input", "masked", "reconstruction")
PLANES = ("axial", "coronal", "sagittal")
PLATE, LABEL = "#0e1116", "#e8edf3"
"""Colours of the ground and of words: readable on light pages and on dark ones."""


def draw_reconstruction(
    file: Path, volume: Tensor, masked: Tensor, painted: Tensor, title: str, rows: int = 4
) -> None:
    """Write a PNG of the first `rows` crops, each (b, c, z, y, x), first channel.

    A crop is one row: for each of the three mid-planes input, masked input and reconstruction,
    on the input's own grey scale.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = min(rows, volume.shape[0])
    height = count * 1.5 + 0.95
    figure = Figure(figsize=(9 * 1.5, height), dpi=110, facecolor=PLATE)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=14, color=LABEL)
    # Fixed margins: a computed layout would take longer than many steps.
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.9 / height, wspace=0.05, hspace=0.05)
    axes = figure.subplots(count, 9, squeeze=False)
    for i_crop in range(count):
        stages = [part[i_crop, 0].float().cpu().numpy() for part in (volume, masked, painted)]
        low, high = np.percentile(stages[0], (0.5, 99.5))
        for i_plane, plane in enumerate(PLANES):
            for i_stage, stage in enumerate(stages):
                panel = axes[i_crop, 3 * i_plane + i_stage]
                panel.imshow(mid_slice(stage, i_plane), cmap="gray", vmin=low, vmax=high)
                panel.set_axis_off()
                if i_crop == 0:
                    panel.set_title(f"{plane}\n{TITLES[i_stage]}", fontsize=11, color=LABEL)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, facecolor=PLATE)


def mid_slice(volume: np.ndarray, axis: int) -> np.ndarray:
    """Middle slice of a (z, y, x) volume across `axis`, superior or anterior side up."""
    return np.flipud(np.take(volume, volume.shape[axis] // 2, axis=axis))


PICTURE_CROPS = 4


def first_crops(batch: Batch) -> Batch:
    """A copy of the first crops of a batch, kept for pictures."""
    return dataclasses.replace(
        batch,
        image=batch.image[:PICTURE_CROPS].clone(),
        second_view=None,
        label=None,
        weight=None if batch.weight is None else batch.weight[:PICTURE_CROPS].clone(),
        volume=batch.volume[:PICTURE_CROPS].clone(),
        start=batch.start[:PICTURE_CROPS].clone(),
        sample=batch.sample[:PICTURE_CROPS].clone(),
    )


class Pictures(Hook):
    """Paints this sitting's first crops every so many steps (0: at the end only), and at the end.

    A method that paints nothing (SimCLR) has no pictures.
    """

    doing = "drawing a picture"

    def __init__(self, module: nn.Module, out: Path, ranks: Ranks, every: int, method: str) -> None:
        self.module, self.folder, self.ranks = module, out / "pictures", ranks
        self.every, self.method = every, method
        self.batch: Batch | None = None

    def after_step(self, trainer: Trainer) -> None:
        """Keep the first crops; draw them where it is time."""
        if self.batch is None:
            assert trainer.stepper.last_batch is not None
            self.batch = first_crops(trainer.stepper.last_batch)
        if self.every and trainer.step % self.every == 0:
            self.draw(trainer, f"step-{trainer.step:08d}.png", self.batch)

    def end(self, trainer: Trainer) -> None:
        """What the finished model paints."""
        if trainer.finished and self.batch is not None:
            self.draw(trainer, f"step-{trainer.step:08d}.png", self.batch)

    def draw(self, trainer: Trainer, name: str, batch: Batch) -> None:
        """A picture of a batch, painted by the present weights; all ranks take part."""
        if not isinstance(self.module, Reconstructs):
            return
        with trainer.clock.paused():
            masked, painted = self.module.reconstruct(batch)
            if self.ranks.first:
                title = f"{self.method}, step {trainer.step}"
                draw_reconstruction(self.folder / name, batch.image, masked, painted, title)
