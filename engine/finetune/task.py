"""What a downstream task is to the loop that trains it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from mim3d.dataio.loader.batch import Batch


@dataclass(frozen=True)
class Evaluation:
    """Scores of one evaluation; `score` makes the curve, `cases` are dataclasses, one a volume."""

    score: float
    fields: dict[str, object]
    cases: Sequence[Any]


class Task(Protocol):
    """A network, its loss, and its scores on held-out subjects."""

    name: str
    metric: str

    @property
    def net(self) -> nn.Module:
        """Has `encoder` and `decoder` as submodules."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """Loss of a batch of crops."""
        ...

    def evaluate(self, subjects: Sequence[str], final: bool) -> Evaluation:
        """Scores of the subjects' whole volumes; costlier ones only where `final`."""
        ...

    def save_pictures(self, subjects: Sequence[str], file: Path) -> None:
        """Slices of a few cases, for tasks that have any."""
        ...

    def notes(self, subjects: Sequence[str], split: str = "training") -> list[str]:
        """What a reader must know of the subjects of a split (training, validation or test)."""
        ...
