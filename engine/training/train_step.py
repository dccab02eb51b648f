"""One optimiser step: batches in, forward, backward, update; nothing in it waits for the device."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from mim3d.engine.models.objective import HasBaselines, StepOutput
from mim3d.engine.training.clocks import StageClock
from mim3d.engine.training.optim import ShardedOptimiser, divisor


@dataclass
class StepFigures:
    """What a step measured, still on the device."""

    grad_norm: Tensor
    losses: list[Tensor]
    """This rank's parts of the loss, one a micro-batch."""
    counted: Tensor | None = None
    """Share of what the loss could be of that counts in it, over all ranks; None: all of it."""
    counted_last: Tensor | None = None
    """The same of this rank's last micro-batch, which the metrics are of."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    waited: float = 0.0
    volumes: list[Tensor] = field(default_factory=list)
    """Rows of the chunk table that this rank's crops came from, one tensor a micro-batch."""


class MeanLoss:
    """Mean of the loss over steps, from this rank's parts, which are summed on the device."""

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), device=device)
        self.empty = torch.zeros((), device=device)
        """Steps in which nothing counted."""
        self.steps, self.may_be_empty = 0, False

    def add(self, losses: list[Tensor], counted: Tensor | None = None) -> None:
        """One more step, of which `counted` is the share that counts, if that is not all."""
        for loss in losses:
            self.total += loss
        self.steps += 1
        if counted is not None:
            self.may_be_empty = True
            self.empty += counted == 0

    def value(self) -> Tensor:
        """This rank's part of the mean over the steps in which something counted."""
        return self.total / (self.steps - self.empty if self.may_be_empty else self.steps)

    @property
    def is_of_nothing(self) -> bool:
        """Whether there were steps in none of which anything counted; the host waits for it."""
        return self.may_be_empty and bool(self.empty == self.steps)

    def clear(self) -> None:
        """Begin anew."""
        self.total.zero_()
        self.empty.zero_()
        self.steps = 0

    def state(self) -> dict[str, Tensor]:
        """What a resumed run must have, of this rank."""
        return {"total": self.total, "steps": float(self.steps) - self.empty.cpu()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave."""
        self.total.copy_(state["total"])
        self.empty.zero_()
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
        counts: list[Tensor | None] = []
        counted: Tensor | None = None
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
                found, norm, counted = self._repeated(self.graph, batch)
            else:
                found = self._micro_step(batch)
            if not last:
                self.optimiser.collect()
            metrics = found.metrics
            losses.append(found.loss)
            counts.append(found.counted)
            volumes.append(batch.volume)
            if measure and last and isinstance(self.model, HasBaselines):
                # Apart from the forward pass, whose time a row tells: up to half as long again.
                metrics = metrics | self.model.baselines(batch)
                self.clock.mark("measure")
            self.last_batch = batch
        if norm is None:
            counted = self._counted(counts)
            norm = self.optimiser.update(counted)
            self.clock.mark("optimiser")
        last_part = counts[-1]
        if counted is not None and last_part is not None:
            losses = [loss / divisor(counted) for loss in losses]
            last_part = last_part / self.share
        return StepFigures(norm, losses, counted, last_part, metrics, waited, volumes)

    def _counted(self, counts: Sequence[Tensor | None]) -> Tensor | None:
        """Share of the whole step that counts, over all ranks, which all have counts or none."""
        parts = [part for part in counts if part is not None]
        if not parts:
            return None
        counted = torch.stack(parts).sum()
        if self.ranks.world > 1:
            dist.all_reduce(counted)
        return counted

    def _next(self, place: Mapping[str, int] | None) -> Batch:
        """The next batch; where it is not waited for, the step's first is the next one again."""
        try:
            return next(self.batches)
        except GivenUpError:
            if place is not None and isinstance(self.batches, Loader):
                self.batches.load_state_dict(place)
            raise

    def _micro_step(self, batch: Batch) -> StepOutput:
        """Its part of the loss, and what the forward pass measured beside it."""
        loss, metrics, counted = self.model(batch, self.share)
        self.clock.mark("forward")
        (loss * self.optimiser.loss_scale if self.optimiser.scaled else loss).backward()
        self.clock.mark("backward")
        return StepOutput(loss.detach(), metrics, counted)

    def _whole_step(self, batch: Batch) -> dict[str, Tensor]:
        """Loss, gradient norm and metrics of one step, which asks the host for nothing."""
        found = self._micro_step(batch)
        counted = self._counted([found.counted])
        figures = {"loss": found.loss, "grad_norm": self.optimiser.update(counted), **found.metrics}
        if found.counted is not None and counted is not None:
            figures |= {"counted_part": found.counted, "counted": counted}
        return figures

    def _repeated(self, graph: StepGraph, batch: Batch) -> tuple[StepOutput, Tensor, Tensor | None]:
        """The same by the device alone, whose stages are not told apart."""
        timed, self.clock.active = self.clock.active, False
        found = graph(batch)
        self.clock.active = timed
        self.clock.mark("step")
        loss, norm, part, counted = (
            found.pop(name, None) for name in ("loss", "grad_norm", "counted_part", "counted")
        )
        assert loss is not None and norm is not None
        return StepOutput(loss, found, part), norm, counted

    def read(self, figures: StepFigures, mean: MeanLoss) -> dict[str, float]:
        """Figures as numbers, reduced over ranks: the one place where the host waits.

        `loss` is the mean, the losses of channels and baselines are this step's, and so is
        `counted`. Where nothing counted they are NaN.
        """
        names = list(figures.metrics)
        parts = [mean.value()]
        parts += [figures.metrics[name].to(parts[0]) / self.ranks.world for name in names]
        if figures.counted_last is not None:
            parts.append(figures.counted_last / self.ranks.world)
        sums = torch.stack(parts)
        if self.ranks.world > 1:
            dist.all_reduce(sums)
        if figures.counted is not None:
            sums = torch.cat([sums[:1], sums[1:-1] / sums[-1], figures.counted[None]])
            names.append("counted")
        optimiser = self.optimiser
        same = torch.stack(
            [figures.grad_norm, optimiser.bad_total, optimiser.bad_in_row, optimiser.loss_scale]
        )
        values = torch.cat([sums, same]).tolist()
        keys = ["loss", *names, "grad_norm", "bad_steps", "bad_in_row", "loss_scale"]
        return dict(zip(keys, values, strict=True))
