"""Steps without a finite gradient: told with their volumes, and a way out where they go on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mim3d.dataio.loader.loader import Loader
from mim3d.dataio.progress import Progress
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.errors import DivergedError
from mim3d.engine.runs.checkpoint_files import CheckpointFacts
from mim3d.engine.training.checkpoints import Checkpoints
from mim3d.engine.training.config import DivergenceConfig
from mim3d.engine.training.log import Log
from mim3d.engine.training.rewinds import STATE, Rewind
from mim3d.engine.training.trainer import Hook, Trainer

SHOWN_STEPS, SHOWN_VOLUMES = 5, 5
"""So many a row are told on the console; metrics.jsonl has them all."""


@dataclass(frozen=True)
class Trace:
    """What is kept of a step until a row: tensors of the device, and where its crops came from."""

    step: int
    grad_norm: Tensor
    losses: list[Tensor]
    volumes: list[Tensor]


@dataclass(frozen=True)
class Skipped:
    """A step that changed no weights, and the volumes of its crops.

    Of a step with several micro-batches or ranks only those whose loss was not finite, where the
    loss of any was not.
    """

    step: int
    volumes: tuple[str, ...]
    overflow: bool
    """Every loss was finite: the gradient alone was not, as where fp16's loss scale is too high."""


class SkippedSteps(Hook):
    """Tells of skipped steps where a row is made; stands before the log.

    Nothing is read from the device but in such steps.
    """

    name = "skipped_steps"

    def __init__(self, loader: Loader, ranks: Ranks, shown: Progress) -> None:
        self.table, self.ranks, self.shown = loader.corpus.table, ranks, shown
        self.traces: list[Trace] = []
        self.before = 0
        self.last: list[Skipped] = []
        """Those of the last row that had some."""

    def begin(self, trainer: Trainer) -> None:
        """Count from what the run had skipped before."""
        self.traces, self.before = [], int(trainer.stepper.optimiser.bad_total)

    def after_step(self, trainer: Trainer) -> None:
        """Keep the step's trace; where a row is due, tell of those since the row before."""
        figures = trainer.figures
        assert figures is not None
        self.traces.append(Trace(trainer.step, figures.grad_norm, figures.losses, figures.volumes))
        if not trainer.due:
            return
        traces, self.traces = self.traces, []
        total = int(trainer.stepper.optimiser.bad_total)
        if total > self.before:
            self.last = self.found(traces)
            trainer.row["skipped_steps"] = [
                {"step": one.step, "volumes": list(one.volumes)} for one in self.last
            ]
            self.report(self.last, trainer.stepper.optimiser.scaled)
        self.before = total

    def found(self, traces: Sequence[Trace]) -> list[Skipped]:
        """The skipped ones among these steps; every rank takes part."""
        bad = (~torch.stack([trace.grad_norm for trace in traces]).isfinite()).tolist()
        mine = [self.own(trace) for trace, skipped in zip(traces, bad, strict=True) if skipped]
        parts: list[list[tuple[int, set[int], set[int]]]] = [mine] * self.ranks.world
        if self.ranks.world > 1:
            dist.all_gather_object(parts, mine, group=self.ranks.control)
        found = []
        for per_rank in zip(*parts, strict=True):
            guilty = set().union(*(rows for _, rows, _ in per_rank))
            rows = guilty or set().union(*(every for _, _, every in per_rank))
            names = tuple(self.table.volume_id(row) for row in sorted(rows))
            found.append(Skipped(per_rank[0][0], names, not guilty))
        return found

    def own(self, trace: Trace) -> tuple[int, set[int], set[int]]:
        """Step; this rank's volumes in micro-batches without a finite loss; all its volumes."""
        every = [set(rows.tolist()) for rows in trace.volumes]
        finite = [bool(loss.isfinite().all()) for loss in trace.losses]
        guilty = [rows for rows, fine in zip(every, finite, strict=True) if not fine]
        return trace.step, set().union(*guilty), set().union(*every)

    def report(self, skipped: Sequence[Skipped], scaled: bool) -> None:
        """A line for each of the first few."""
        for one in skipped[:SHOWN_STEPS]:
            why = "its gradient is not finite"
            if one.overflow and scaled:
                why += " (fp16's loss scale was too high, and is halved)"
            self.shown.note(f"step {one.step} was skipped, {why}: {few(one.volumes)}")
        if len(skipped) > SHOWN_STEPS:
            self.shown.note(
                f"and so were {len(skipped) - SHOWN_STEPS} more, to step {skipped[-1].step}"
            )


def few(volumes: Sequence[str]) -> str:
    """The first names of many."""
    more = len(volumes) - SHOWN_VOLUMES
    return f"volumes {', '.join(volumes[:SHOWN_VOLUMES])}" + f" and {more} more" * (more > 0)


@dataclass(frozen=True)
class Remedies:
    """Options of the run's command that a diverged one is told of."""

    lr: str = "--schedule.lr"
    clip_norm: str = "--optim.clip-norm"


class Divergence(Hook):
    """Ends a run whose gradients stay non-finite, or takes it back; stands last.

    Healthy is a checkpoint from before the first such step; those since are removed, so that the
    same command goes on from the healthy one.
    """

    doing = "looking for divergence"

    name = STATE

    def __init__(
        self,
        config: DivergenceConfig,
        max_bad_steps: int,
        checkpoints: Checkpoints,
        skipped: SkippedSteps,
        log: Log,
        remedies: Remedies,
    ) -> None:
        self.config, self.max_bad_steps, self.remedies = config, max_bad_steps, remedies
        self.checkpoints, self.skipped, self.log = checkpoints, skipped, log
        self.rewinds = checkpoints.rewinds

    def begin(self, trainer: Trainer) -> None:
        """What may have to be gone back to is there from the beginning."""
        if self.config.on_divergence == "rewind" and trainer.step == 0:
            self.checkpoints.save(trainer)

    def before_step(self, trainer: Trainer) -> None:
        """Every row tells how often the run went back."""
        trainer.row |= self.rewinds.row()

    def after_step(self, trainer: Trainer) -> None:
        """Go back or stop, after `log.max_bad_steps` such steps in a row or where all were."""
        bad = int(trainer.row.get("bad_in_row", 0))
        if not trainer.due or bad < min(self.max_bad_steps, trainer.steps):
            return
        self.checkpoints.checkpointer.wait()
        first = trainer.step - bad + 1
        if self.config.on_divergence == "rewind" and len(self.rewinds) < self.config.max_rewinds:
            target = self.target(first)
            if target is not None:
                self.go_back(trainer, first, target)
                return
        self.stop(trainer, first)

    def target(self, first: int) -> CheckpointFacts | None:
        """The newest healthy checkpoint; an older one where the last led to no good step."""
        last = self.rewinds.done[-1] if len(self.rewinds) else None
        if last is not None and first <= last.to_step + 1:
            older = self.checkpoints.healthy_before(last.to_step)
            if older is not None:
                return older
        return self.checkpoints.healthy_before(first)

    def go_back(self, trainer: Trainer, first: int, target: CheckpointFacts) -> None:
        """Take up a checkpoint with the samples after those that were seen, at a lower rate."""
        at, optimiser = trainer.step, trainer.stepper.optimiser
        bad_total = optimiser.bad_total.clone()
        place = self.checkpoints.loader.state_dict()["sample"]
        before = self.rewinds.done[-1].sample if self.rewinds.since(target) else 0
        rewind = Rewind(
            at,
            first,
            target.step,
            place,
            place - max(before, int(target.loader["sample"])),
            self.rewinds.lr_scale * self.config.rewind_rate,
            self.skipped.last[-1].volumes if self.skipped.last else (),
        )
        self.rewinds.add(rewind, self.checkpoints.ranks.first)
        with trainer.clock.paused():
            self.checkpoints.checkpointer.discard_after(target.step)
            self.checkpoints.take_up(trainer, target)
        optimiser.bad_total.copy_(bad_total)
        self.skipped.begin(trainer)
        self.log.go_back(trainer, at)
        self.log.shown.note(
            f"REWOUND from step {at} to the checkpoint of step {target.step} "
            f"({len(self.rewinds)} of at most {self.config.max_rewinds} times): steps {first} to "
            f"{at} had no finite gradient, {rewind.skipped_samples} samples are skipped, the rate "
            f"is {rewind.lr_scale:g} of the schedule's from here on"
        )

    def stop(self, trainer: Trainer, first: int) -> None:
        """Raise a DivergedError that says where a healthy checkpoint is and what to do."""
        found = self.checkpoints.healthy_before(first)
        lower = (
            f"a lower {self.remedies.lr}, a smaller {self.remedies.clip_norm}, or "
            "--parallel.precision bf16 or fp32 where it is fp16"
        )
        if found is None:
            way = (
                "no checkpoint is from before them: begin anew in another --out with "
                f"--on-divergence rewind, which keeps one from before the first step, with {lower}"
            )
        else:
            self.checkpoints.checkpointer.discard_after(found.step)
            rewind = "--on-divergence rewind, which skips their samples and lowers the rate"
            if self.config.on_divergence == "rewind":
                rewind = f"--max-rewinds above {self.config.max_rewinds}"
            way = (
                f"the checkpoint of step {found.step}, from before them, is healthy (those since "
                f"are removed): run the same command with {rewind}, with {lower}"
            )
        times = f" after going back {len(self.rewinds)} times" * bool(len(self.rewinds))
        volumes = few(self.skipped.last[-1].volumes) if self.skipped.last else "unknown volumes"
        raise DivergedError(
            f"the gradient was not finite in {trainer.step - first + 1} steps in a row{times}, "
            f"steps {first} to {trainer.step} (the last of {volumes}); none of them changed the "
            f"weights, and {way}"
        )

    def state(self) -> dict[str, int]:
        """How often the run had gone back; nothing where it never did."""
        return {"rewinds": len(self.rewinds)} if len(self.rewinds) else {}
