"""Scores of held-out subjects at fixed steps: whole volumes, dealt over the ranks."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from itertools import chain, zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mim3d.dataio.progress import Progress
from mim3d.engine.arithmetic.masters import whole_state
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.finetune.config import FinetuneConfig
from mim3d.engine.finetune.splits import Splits
from mim3d.engine.finetune.task import Evaluation, Task
from mim3d.engine.training.train_step import MeanLoss
from mim3d.engine.training.trainer import Hook, Trainer


class WholeNetwork:
    """A network with whole float32 weights for inference, whatever training has made of it.

    Where it is sharded or cast, a copy made before that is filled by each gathering, so that every
    rank can score volumes of its own and scores do not hang on the number of ranks.
    """

    def __init__(self, net: nn.Module, left_whole: bool) -> None:
        self.net = net
        self.whole = net if left_whole else copy.deepcopy(net).requires_grad_(False)

    @contextmanager
    @torch.no_grad()
    def gathered(self) -> Iterator[nn.Module]:
        """The network in evaluation mode; every rank takes part."""
        if self.whole is not self.net:
            into = self.whole.state_dict()
            for name, tensor in whole_state(self.net).items():
                into[name].copy_(tensor)
        self.whole.eval()
        try:
            yield self.whole
        finally:
            self.whole.train()


class Validate(Hook):
    """Scores validation subjects at `config.evaluation_steps`, and test subjects at the end.

    `rows` are tidy, one an evaluation; `cases` has the scores of each volume at the end.
    """

    doing = "scoring validation volumes"

    name = "validate"

    def __init__(
        self,
        task: Task,
        network: WholeNetwork,
        splits: Splits,
        config: FinetuneConfig,
        step_flops: float,
        ranks: Ranks,
        shown: Progress,
    ) -> None:
        self.task, self.network, self.splits, self.config = task, network, splits, config
        self.step_flops, self.ranks, self.shown = step_flops, ranks, shown
        self.steps = frozenset(config.evaluation_steps)
        self.mean = MeanLoss(ranks.device)
        self.rows: list[dict[str, Any]] = []
        self.cases: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def begin(self, trainer: Trainer) -> None:
        """Score the network as it begins."""
        if not self.rows:
            self.evaluate(trainer, "validation")

    def due(self, step: int, steps: int) -> bool:
        """Where there is a score there is a row."""
        return step in self.steps

    def after_step(self, trainer: Trainer) -> None:
        """Score where it is time."""
        assert trainer.figures is not None
        self.mean.add(trainer.figures.losses)
        if trainer.step in self.steps:
            self.evaluate(trainer, "validation")

    def end(self, trainer: Trainer) -> None:
        """Score the test subjects, once."""
        if trainer.finished and self.splits.test and self.rows[-1]["split"] != "test":
            self.evaluate(trainer, "test")

    def evaluate(self, trainer: Trainer, split: str) -> None:
        """Add a tidy row of the scores now and, at the last step, the scores by case."""
        final = trainer.finished
        train_loss, seconds = self.train_loss(), trainer.clock.seconds
        with trainer.clock.paused():
            found = self.scores(getattr(self.splits, split), final)
        row = {
            "split": split,
            "step": trainer.step,
            "crops": trainer.step * self.config.global_batch,
            "score": found.score,
            **found.fields,
            "train_loss": train_loss,
            "flops": trainer.steps_done * self.step_flops,
            "seconds": seconds,
        }
        self.rows.append(row)
        if final:
            self.notes += [f"{split}: {note}" for note in found.notes]
            self.cases += [{"split": split, **asdict(case)} for case in found.cases]
        trainer.row[f"{split}_score"] = found.score
        self.shown.advance(0, f"{self.task.metric} {found.score:.3f}")

    def train_loss(self) -> float | None:
        """Mean loss of the steps since the evaluation before, over all ranks."""
        if not self.mean.steps:
            return None
        mean = self.mean.value()
        if self.ranks.world > 1:
            dist.all_reduce(mean)
        self.mean.clear()
        return float(mean)

    def scores(self, subjects: tuple[str, ...], final: bool) -> Evaluation:
        """Score the subjects' volumes, each on one rank; every rank has the whole evaluation."""
        volumes = self.task.volumes(subjects)
        with self.network.gathered() as net, autocast(self.ranks.device, self.task.dtype):
            mine = [
                self.task.score(net, volume, final)
                for volume in volumes[self.ranks.rank :: self.ranks.world]
            ]
        return self.task.evaluation(dealt_back(mine, self.ranks), final)

    def state(self) -> dict[str, Any]:
        """The evaluations so far."""
        return {"rows": self.rows, "cases": self.cases, "notes": self.notes}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on after them."""
        self.rows, self.cases = list(state["rows"]), list(state["cases"])
        self.notes = list(state.get("notes", []))

    def rank_state(self) -> dict[str, Tensor]:
        """The part of a mean that an evaluation has not had yet."""
        return self.mean.state()

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """Go on with that mean."""
        self.mean.load_state(state)


def dealt_back(mine: list[Any], ranks: Ranks) -> list[Any]:
    """What ranks made of items dealt to them one by one, in the items' order, on every rank."""
    if ranks.world == 1:
        return mine
    parts: list[Any] = [None] * ranks.world
    dist.all_gather_object(parts, mine, group=ranks.control)
    missing = object()
    rounds = zip_longest(*parts, fillvalue=missing)
    return [item for item in chain.from_iterable(rounds) if item is not missing]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Half arithmetic where training has it; whole weights in float32 otherwise."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
