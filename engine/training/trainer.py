"""The training loop of every run, and what can be hung into it.

    trainer = Trainer(stepper, lr_at, steps, hooks)
    finished = trainer.run(stop)

The loop knows steps, a rate and a signal to stop. Rows, checkpoints, scores, pictures and traces
are hooks, called in the order in which they are given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mim3d.dataio.waiting import GivenUpError, patience
from mim3d.engine.distributed.heartbeat import beat
from mim3d.engine.distributed.stop import StopSignal
from mim3d.engine.training.clocks import TrainingClock
from mim3d.engine.training.metrics import Row
from mim3d.engine.training.train_step import StepFigures, Stepper


@dataclass(frozen=True)
class Judgement:
    """What a checkpoint of the present step is judged by, where not by its loss."""

    by: str
    """Errors by other things cannot be compared with it."""
    error: float | None = None
    """Lower is better; None where this step was not judged."""
    is_best: bool = False
    """Whether it is to be kept: none was better so far."""


class Hook:
    """What happens around the steps of a run: nothing, but for what a hook overrides."""

    doing = "between steps"
    """What is told of a rank that hangs in it."""
    name = ""
    """Under which a hook's state stands in checkpoints."""

    def begin(self, trainer: "Trainer") -> None:
        """Before the first step of this sitting, at `trainer.step` finished ones."""

    def due(self, step: int, steps: int) -> bool:
        """Whether the coming `step` (from 1) of `steps` is to be measured."""
        return False

    def before_step(self, trainer: "Trainer") -> None:
        """Before a step."""

    def after_step(self, trainer: "Trainer") -> None:
        """After a step: `trainer.step` is its number, `trainer.figures` what it measured."""

    def enough(self) -> bool:
        """Whether the run is to end before its last step."""
        return False

    def end(self, trainer: "Trainer") -> None:
        """After the last step, or where the run was told to stop."""

    def close(self) -> None:
        """Release what is held, however the run ended."""

    def state(self) -> dict[str, Any]:
        """JSON values that a resumed run must have, the same on every rank."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""

    def rank_state(self) -> dict[str, Tensor]:
        """This rank's own tensors; loading writes into what is returned."""
        return {}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `rank_state` gave; not called at another number of ranks."""


class Trainer:
    """One run in progress."""

    def __init__(
        self,
        stepper: Stepper,
        lr_at: Callable[[int], float],
        steps: int,
        hooks: Sequence[Hook] = (),
    ) -> None:
        self.stepper, self.lr_at, self.steps, self.hooks = stepper, lr_at, steps, hooks
        self.clock = TrainingClock(stepper.ranks.device)
        self.step, self.seconds_before = 0, 0.0
        self.due, self.lr = False, 0.0
        self.lr_scale = 1.0
        """Of the schedule's rate: below 1 where the run has gone back."""
        self.redone = 0
        """Steps that were done and gone back over."""
        self.figures: StepFigures | None = None
        self.row: Row = {}
        """What hooks have to say of the step just done."""
        self.judgement: Judgement | None = None
        """What a hook has to say of its checkpoint."""

    def run(self, stop: StopSignal) -> bool:
        """Steps to the end, or until told to stop; whether it came to the end."""
        self.clock.start(self.seconds_before)
        for hook in self.hooks:
            hook.begin(self)
        while not self.finished and not stop.agreed():
            try:
                with patience(left=stop.at_once):
                    self.one_step()
            except GivenUpError:
                break  # the run stands where it was before the step
        for hook in self.hooks:
            hook.end(self)
        return self.finished

    def one_step(self) -> None:
        """One step, with what is hung around it."""
        self.row = {}
        beat("between steps", self.step + 1)
        for hook in self.hooks:
            hook.before_step(self)
        self.due = any(hook.due(self.step + 1, self.steps) for hook in self.hooks)
        self.lr = self.lr_scale * self.lr_at(self.step)
        self.figures = self.stepper.step(self.lr, measure=self.due)
        self.step += 1
        for hook in self.hooks:
            beat(hook.doing)
            hook.after_step(self)

    @property
    def steps_done(self) -> int:
        """Steps up to here, with those that were gone back over: what the work is measured by."""
        return self.step + self.redone

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or a hook has had enough."""
        return self.step >= self.steps or any(hook.enough() for hook in self.hooks)

    def close(self) -> None:
        """Release what hooks hold, the last one first."""
        for hook in reversed(self.hooks):
            hook.close()
