"""What a downstream task is to the loop that trains it."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mim3d.dataio.loader.batch import Batch
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import ShardReader, Shards
from mim3d.engine.finetune.config import FinetuneConfig
from mim3d.engine.models.objective import Objective, StepOutput
from mim3d.engine.transfer.start_report import Start


@dataclass(frozen=True)
class Evaluation:
    """Scores of one evaluation; `score` makes the curve, `cases` are dataclasses, one a volume."""

    score: float
    fields: dict[str, object]
    cases: Sequence[Any]
    notes: Sequence[str] = ()
    """What a reader must know of these scores."""


class Task(Objective):
    """A network, its loss, and its scores on held-out subjects.

    `net` has `encoder` and `decoder` as submodules. Volumes are scored by a network that is given:
    over many ranks `net` holds shards, and each rank scores some volumes with whole weights.
    """

    name: str
    metric: str
    net: nn.Module
    names: Sequence[str] = ()
    """Of its classes, where it has some."""
    dtype: torch.dtype = torch.float32
    """Of the training arithmetic; crops are cast to it."""

    def __init__(
        self,
        config: FinetuneConfig,
        corpus: Corpus,
        device: torch.device,
        shards: Shards | None = None,
    ) -> None:
        super().__init__()
        self.config, self.corpus, self.device = config, corpus, device
        self.reader = ShardReader(corpus.table, corpus.root, shards)
        self.starts: list[Start] = []
        """What became of the weights that the encoder began with; empty from scratch."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch of crops."""

    def forward(self, batch: Batch, share: float = 1.0, measure: bool = False) -> StepOutput:
        """The loss as `share` of the global batch's."""
        return StepOutput(self.loss(batch) * share, {})

    @abstractmethod
    def volumes(self, subjects: Sequence[str]) -> list[str]:
        """Ids of the subjects' volumes that can be scored, in the manifest's order."""

    @abstractmethod
    def score(self, net: nn.Module, volume: str, final: bool) -> Any:
        """Scores of one whole volume; costlier ones only where `final`."""

    @abstractmethod
    def evaluation(self, cases: Sequence[Any], final: bool) -> Evaluation:
        """What the scores of volumes come to."""

    def save_pictures(self, net: nn.Module, subjects: Sequence[str], file: Path) -> None:
        """Slices of a few cases, for tasks that have any."""

    def classes_among(self, subjects: Sequence[str]) -> set[str]:
        """What the classes that subjects have are called; none of a task without classes."""
        del subjects
        return set()

    @abstractmethod
    def notes(self, subjects: Sequence[str], split: str = "training") -> list[str]:
        """What a reader must know of the subjects of a split (training, validation or test)."""
