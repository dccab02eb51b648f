"""One optimiser step: batches in, forward, backward, update; nothing in it waits for the device."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mim3d.dataio.loader.batch import Batch
from mim3d.dataio.loader.loader import Loader
from mim3d.dataio.waiting import GivenUpError
from mim3d.engine.arithmetic.graph import Capture, StepGraph, cuda_capture
from mim3d.engine.distributed.heartbeat import COMPUTING, WAITING, beat
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.models.objective import HasBaselines
from mim3d.engine.training.clocks import StageClock
from mim3d.engine.training.optim import ShardedOptimiser


@dataclass
class StepFigures:
    """What a step measured, still on the device."""

    grad_norm: Tensor
    losses: list[Tensor]
    """This rank's parts of the loss, one a micro-batch."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    waited: float = 0.0
    volumes: list[Tensor] = field(default_factory=list)
    """Rows of the chunk table that this rank's crops came from, one tensor a micro-batch."""


class MeanLoss:
    """Mean of the loss over steps, from this rank's parts, which are summed on the device."""

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), device=device)
        self.steps = 0

    def add(self, losses: list[Tensor]) -> None:
        """One more step."""
        for loss in losses:
            self.total += loss
        self.steps += 1

    def clear(self) -> None:
        """Begin anew."""
        self.total.zero_()
        self.steps = 0

    def state(self) -> dict[str, Tensor]:
        """What a resumed run must have, of this rank."""
        return {"total": self.total, "steps": torch.tensor(float(self.steps))}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave."""
        self.total.copy_(state["total"])
        self.steps = int(state["steps"])


class Stepper:
    """Runs steps of a sharded model."""

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
        self.last_batch: Batch | None = None
        self.graph: StepGraph | None = None
        """Steps that the device repeats by itself, where there is one micro-batch."""

    def repeat(self, note: Callable[[str], None], capture: Capture = cuda_capture) -> None:
        """Have the device repeat steps; `note` hears of it where it cannot."""
        self.optimiser.make_capturable()
        forget, device = self.optimiser.forget, self.ranks.device
        self.graph = StepGraph(self._whole_step, device, note, forget, capture)

    def step(self, lr: float, measure: bool) -> StepFigures:
        """One update at rate `lr`; `measure` adds the baselines' losses and stage times."""
        self.clock.begin(active=measure)
        self.optimiser.set_rate(lr)
        waited, losses, metrics, norm = 0.0, [], {}, None
        place = self.batches.state_dict() if isinstance(self.batches, Loader) else None
        volumes: list[Tensor] = []
        for i_micro in range(self.grad_accum):
            began = time.perf_counter()
            beat(WAITING)
            batch = self._next(place)
            beat(COMPUTING)
            waited += time.perf_counter() - began
            self.clock.mark("data")
            last = i_micro == self.grad_accum - 1
            if self.grad_accum > 1 and isinstance(self.model, FSDPModule):
                self.model.set_requires_gradient_sync(last)
            if self.graph is not None and self.graph.fits(batch):
                loss, norm, metrics = self._repeated(self.graph, batch)
            else:
                loss, metrics = self._micro_step(batch)
            if not last:
                self.optimiser.collect()
            losses.append(loss)
            volumes.append(batch.volume)
            if measure and last and isinstance(self.model, HasBaselines):
                # Apart from the forward pass, whose time a row tells: up to half as long again.
                metrics = metrics | self.model.baselines(batch)
                self.clock.mark("measure")
            self.last_batch = batch
        if norm is None:
            norm = self.optimiser.update()
            self.clock.mark("optimiser")
        return StepFigures(norm, losses, metrics, waited, volumes)

    def _next(self, place: Mapping[str, int] | None) -> Batch:
        """The next batch; where it is not waited for, the step's first is the next one again."""
        try:
            return next(self.batches)
        except GivenUpError:
            if place is not None and isinstance(self.batches, Loader):
                self.batches.load_state_dict(place)
            raise

    def _micro_step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Its part of the loss, and what the forward pass measured beside it."""
        loss, metrics = self.model(batch, self.share)
        self.clock.mark("forward")
        (loss * self.optimiser.loss_scale if self.optimiser.scaled else loss).backward()
        self.clock.mark("backward")
        return loss.detach(), metrics

    def _whole_step(self, batch: Batch) -> dict[str, Tensor]:
        """Loss, gradient norm and metrics of one step, which asks the host for nothing."""
        loss, metrics = self._micro_step(batch)
        return {"loss": loss, "grad_norm": self.optimiser.update(), **metrics}

    def _repeated(self, graph: StepGraph, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The same by the device alone, whose stages are not told apart."""
        timed, self.clock.active = self.clock.active, False
        found = graph(batch)
        self.clock.active = timed
        self.clock.mark("step")
        return found.pop("loss"), found.pop("grad_norm"), found

    def read(self, figures: StepFigures, mean: MeanLoss) -> dict[str, float]:
        """Figures as numbers, reduced over ranks: the one place where the host waits.

        `loss` is the mean, the losses of channels and baselines are this step's.
        """
        names = list(figures.metrics)
        parts = [mean.total / mean.steps]
        parts += [figures.metrics[name].to(parts[0]) / self.ranks.world for name in names]
        sums = torch.stack(parts)
        if self.ranks.world > 1:
            dist.all_reduce(sums)
        optimiser = self.optimiser
        same = torch.stack(
            [figures.grad_norm, optimiser.bad_total, optimiser.bad_in_row, optimiser.loss_scale]
        )
        values = torch.cat([sums, same]).tolist()
        keys = ["loss", *names, "grad_norm", "bad_steps", "bad_in_row", "loss_scale"]
        return dict(zip(keys, values, strict=True))
