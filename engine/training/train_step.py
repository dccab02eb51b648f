"""One optimiser step: batches in, forward, backward, update; nothing in it waits for the device."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.training.metrics import StageClock
from mim3d.engine.training.optim import ShardedOptimiser


@runtime_checkable
class Floored(Protocol):
    """A method that can tell what predictors without knowledge come to."""

    def floors(self, batch: Batch) -> dict[str, Tensor]:
        """Their losses on a batch, 0-d on the device."""
        ...


@dataclass
class StepFigures:
    """What a step measured, still on the device."""

    grad_norm: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    waited: float = 0.0


class Stepper:
    """Runs steps of a sharded model; `window_loss` sums this rank's part since it was read."""

    def __init__(
        self,
        model: nn.Module,
        optimiser: ShardedOptimiser,
        batches: Iterator[Batch],
        ranks: Ranks,
        grad_accum: int,
    ) -> None:
        self.model, self.optimiser, self.batches = model, optimiser, batches
        self.ranks, self.grad_accum = ranks, grad_accum
        self.share = 1.0 / (ranks.world * grad_accum)
        self.clock = StageClock(ranks.device)
        self.window_loss = torch.zeros((), device=ranks.device)
        self.last_batch: Batch | None = None

    def step(self, lr: float, measure: bool) -> StepFigures:
        """One update at rate `lr`; `measure` adds trivial predictors and stage times."""
        self.clock.begin(active=measure)
        waited, metrics = 0.0, {}
        for i_micro in range(self.grad_accum):
            began = time.perf_counter()
            batch = next(self.batches)
            waited += time.perf_counter() - began
            self.clock.mark("data")
            last = i_micro == self.grad_accum - 1
            if self.grad_accum > 1 and isinstance(self.model, FSDPModule):
                self.model.set_requires_gradient_sync(last)
            metrics = self._micro_step(batch, measure and last)
            self.last_batch = batch
        norm = self.optimiser.step(lr)
        self.clock.mark("optimiser")
        return StepFigures(norm, metrics, waited)

    def _micro_step(self, batch: Batch, measure: bool) -> dict[str, Tensor]:
        loss = self.model(batch, self.share).loss
        self.clock.mark("forward")
        self.window_loss += loss.detach()
        (loss * self.optimiser.loss_scale if self.optimiser.scaled else loss).backward()
        self.clock.mark("backward")
        if not (measure and isinstance(self.model, Floored)):
            return {}
        # Apart from the forward pass, whose time a row tells: it is up to half as long again.
        metrics = self.model.floors(batch)
        self.clock.mark("measure")
        return metrics

    def read(self, figures: StepFigures, steps: int) -> dict[str, float]:
        """Figures as numbers, reduced over ranks: the one place where the host waits.

        `loss` is the mean over the `steps` since the last reading; trivial losses are this step's.
        """
        names = list(figures.metrics)
        parts = [self.window_loss / steps]
        parts += [figures.metrics[name].to(parts[0]) / self.ranks.world for name in names]
        sums = torch.stack(parts)
        if self.ranks.world > 1:
            dist.all_reduce(sums)
        optimiser = self.optimiser
        same = torch.stack(
            [figures.grad_norm, optimiser.bad_total, optimiser.bad_in_row, optimiser.loss_scale]
        )
        values = torch.cat([sums, same]).tolist()
        self.window_loss.zero_()
        keys = ["loss", *names, "grad_norm", "bad_steps", "bad_in_row", "loss_scale"]
        return dict(zip(keys, values, strict=True))
