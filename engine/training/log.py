"""Rows of a run as they are made: loss, rates, memory, stages of a step; and where they go."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mim3d.dataio.loader.loader import Loader
from mim3d.dataio.progress import Progress
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.training.config import LogConfig
from mim3d.engine.training.metrics import (
    METRICS,
    JsonLines,
    LoaderDeltas,
    RateBasis,
    Row,
    Sink,
    TensorBoard,
    WeightsAndBiases,
    Window,
    memory_row,
)
from mim3d.engine.training.train_step import MeanLoss
from mim3d.engine.training.trainer import Hook, Trainer


class Log(Hook):
    """Makes rows on every rank and writes them on the first.

    A row holds the step, its rate, the mean loss since the row before, what other hooks had to say
    of the step, and rates.
    """

    doing = "writing a row"

    name = "log"

    def __init__(
        self,
        config: LogConfig,
        out: Path,
        ranks: Ranks,
        basis: RateBasis,
        loader: Loader,
        shown: Progress,
    ) -> None:
        self.config, self.out, self.ranks, self.basis = config, out, ranks, basis
        self.loader, self.shown = loader, shown
        self.about: Mapping[str, Any] = {}
        """The run's configuration, for Weights & Biases."""
        self.communication_s = 0.0
        """What a step's collectives take alone."""
        self.attention = ""
        """Kernels that compute it."""
        self.deltas = LoaderDeltas()
        self.mean = MeanLoss(ranks.device)
        self.window = Window(0.0)
        self.last: Row = {}
        self._since_save: list[float] = []
        self._sinks: list[Sink] = []

    def begin(self, trainer: Trainer) -> None:
        """Open the files; rows past the step that the run goes on from are dropped."""
        self.window = Window(trainer.clock.seconds)
        if not self.ranks.first:
            return
        self._sinks.append(JsonLines(self.out / METRICS, trainer.step))
        if self.config.tensorboard:
            self._sinks.append(TensorBoard(self.out / "tensorboard", trainer.step))
        if self.config.wandb:
            self._sinks.append(WeightsAndBiases(self.out, self.about))

    def due(self, step: int, steps: int) -> bool:
        """The first step, every `log.every`, and the last."""
        return step in (1, steps) or step % self.config.every == 0

    def after_step(self, trainer: Trainer) -> None:
        """Count the step; where it was measured, write a row."""
        assert trainer.figures is not None
        self.mean.add(trainer.figures.losses, trainer.figures.counted)
        self.window.steps += 1
        self.window.waited += trainer.figures.waited
        if trainer.due:
            self.write(trainer)
        else:
            self.shown.advance()

    def write(self, trainer: Trainer) -> None:
        """Complete a row, write it, and begin a new window."""
        assert trainer.figures is not None
        read = trainer.stepper.read(trainer.figures, self.mean)
        now = trainer.clock.seconds
        row: Row = {"step": trainer.step, "lr": trainer.lr, **read, "seconds": now, **trainer.row}
        stages = trainer.stepper.clock.read()
        if self.ranks.world > 1:
            stages["communication_alone"] = self.communication_s
        row |= self.window.rates(self.basis, now)
        row["world"] = self.ranks.world
        if self.attention:
            row["attention"] = self.attention
        row["flops"] = trainer.steps_done * self.basis.global_batch * self.basis.flops_per_crop
        row |= {f"stage_{name}_s": seconds for name, seconds in stages.items()}
        row |= self.deltas.row(self.loader.metrics(), self.window.steps, now - self.window.began)
        row |= memory_row(self.ranks.device)
        self.last = trainer.row = row
        if math.isfinite(row["loss"]):
            self._since_save.append(row["loss"])
        for sink in self._sinks:
            sink.write(row)
        nothing = math.isnan(read["loss"]) and self.mean.is_of_nothing
        self.mean.clear()
        self.window = Window(trainer.clock.seconds)
        self.shown.advance(1, "nothing scored" if nothing else f"loss {read['loss']:.4f}")

    def mean_loss_since_save(self) -> float | None:
        """Mean of the rows' finite losses since the last call; None where there is none."""
        losses, self._since_save = self._since_save, []
        return sum(losses) / len(losses) if losses else None

    def go_back(self, trainer: Trainer, before: int) -> None:
        """Forget rows past the step that the run goes on from, as where it is resumed."""
        for sink in self._sinks:
            sink.go_back(trainer.step)
        self.window, self._since_save = Window(trainer.clock.seconds), []
        self.shown.move(trainer.step - before, "rewound")

    def rank_state(self) -> dict[str, Tensor]:
        """The part of a mean that a row has not had yet."""
        return self.mean.state()

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """Go on with that mean."""
        self.mean.load_state(state)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()
