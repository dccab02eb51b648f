"""A run put together: the loop with the hooks that every run has, around those it brings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mim3d.dataio.loader.loader import Loader
from mim3d.dataio.progress import Progress
from mim3d.engine.arithmetic.graph import WARMUP, Capture, cuda_capture
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.distributed.stop import StopSignal
from mim3d.engine.runs.checkpoint import Checkpointer
from mim3d.engine.runs.config import CheckpointConfig
from mim3d.engine.runs.shelf import Shelf
from mim3d.engine.training.checkpoints import Checkpoints, RunIdentity
from mim3d.engine.training.config import DivergenceConfig, LogConfig, ScheduleConfig
from mim3d.engine.training.divergence import Divergence, Remedies, SkippedSteps
from mim3d.engine.training.log import Log
from mim3d.engine.training.metrics import RateBasis
from mim3d.engine.training.profiler import Profile
from mim3d.engine.training.rewinds import Rewinds
from mim3d.engine.training.schedule import lr_at
from mim3d.engine.training.sharding import ShardedObjective
from mim3d.engine.training.train_step import Stepper
from mim3d.engine.training.trainer import Hook, Trainer


@dataclass(frozen=True)
class Sitting:
    """Where a run goes on: its folder, this rank, its batches, who listens, and its checkpoints."""

    out: Path
    ranks: Ranks
    loader: Loader
    shown: Progress
    stop: StopSignal
    shelf: Shelf


@dataclass(frozen=True)
class RunSettings:
    """What the loop must know of a run's configuration."""

    steps: int
    schedule: ScheduleConfig
    log: LogConfig
    checkpoint: CheckpointConfig
    identity: RunIdentity
    basis: RateBasis
    about: Mapping[str, Any]
    """The configuration in plain values, for Weights & Biases."""
    divergence: DivergenceConfig
    remedies: Remedies
    """Options that a diverged run is told of."""
    save_after: Callable[[int], bool]
    """Steps after which a checkpoint is written."""
    head_steps: int = 0
    """Steps before the schedule, in which a head trains alone."""


def repeat_steps(
    stepper: Stepper,
    sharded: ShardedObjective,
    note: Callable[[str], None],
    capture: Capture = cuda_capture,
) -> None:
    """Have the device repeat steps where nothing is in the way, and say which it is."""
    obstacle = sharded.capture_obstacle()
    if obstacle:
        note(f"steps are launched kernel by kernel, not repeated as one CUDA graph: {obstacle}")
        return
    stepper.repeat(note, capture)
    note(
        f"steps are repeated as one CUDA graph, captured after the first {WARMUP} "
        "(--parallel.no-cuda-graph launches them kernel by kernel)"
    )


class Run:
    """One sitting of a run; `before` are hooks whose figures stand in rows, `after` the others."""

    def __init__(
        self,
        sitting: Sitting,
        sharded: ShardedObjective,
        settings: RunSettings,
        before: Sequence[Hook] = (),
        after: Sequence[Hook] = (),
    ) -> None:
        out, ranks, loader = sitting.out, sitting.ranks, sitting.loader
        self.sitting, self.steps = sitting, settings.steps
        saver = Checkpointer(sitting.shelf, settings.checkpoint, ranks, sitting.shown.note)
        self.log = Log(settings.log, out, ranks, settings.basis, loader, sitting.shown)
        self.log.about, self.log.communication_s = settings.about, sharded.communication_s()
        self.log.attention = sharded.attention
        self.checkpoints = Checkpoints(
            *(saver, sharded, loader, self.log, settings.identity, settings.save_after),
            Rewinds(out),
        )
        skipped = SkippedSteps(loader, ranks, sitting.shown)
        max_bad = settings.log.max_bad_steps
        hooks = [
            *before,
            skipped,
            self.log,
            *after,
            Profile(settings.log, out, ranks, settings.steps, self.settle),
            self.checkpoints,
            Divergence(
                *(settings.divergence, max_bad, self.checkpoints, skipped, self.log),
                settings.remedies,
            ),
        ]
        stepper = Stepper(
            sharded.module, sharded.optimiser, loader, ranks, sharded.parallel.grad_accum
        )
        if sharded.float8_layers:
            emulated = "" if ranks.device.type == "cuda" else ", emulated here: slower than bf16"
            sitting.shown.note(
                f"products of {sharded.float8_layers} linear layers are in float8{emulated}"
            )
        if ranks.device.type == "cuda":
            repeat_steps(stepper, sharded, sitting.shown.note)
        steps, head_steps = settings.steps, settings.head_steps
        rate = partial(lr_at, settings.schedule, steps=steps, head_steps=head_steps)
        self.trainer = Trainer(stepper, rate, settings.steps, hooks)
        self.checkpoints.restore(self.trainer)

    def go(self) -> bool:
        """Train to the end, or until told to stop; whether it came to the end."""
        finished = self.trainer.run(self.sitting.stop)
        if not finished:
            self.checkpoints.finish()
            self.sitting.shown.note(
                f"told to stop: step {self.trainer.step} of {self.steps} is saved in "
                f"{self.sitting.shelf.run}. Run the same command again to go on"
            )
        return finished

    def settle(self) -> None:
        """Let collectives of other threads end."""
        self.sitting.stop.settle()
        self.checkpoints.checkpointer.settle()

    def close(self) -> None:
        """Release what hooks hold."""
        self.sitting.stop.settle()
        self.trainer.close()
