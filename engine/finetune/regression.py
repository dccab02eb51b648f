"""Regression of a number of each subject, such as its age, as a downstream task."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.finetune.encoder import Encoder
from mim3d.engine.finetune.targets import read_values
from mim3d.engine.finetune.task import Evaluation
from mim3d.engine.finetune.volume_task import PooledNet, VolumeTask


@dataclass(frozen=True)
class CaseValue:
    """One volume: its number, and what was predicted, in the table's units."""

    volume: str
    target: float
    predicted: float


class RegressionNet(PooledNet):
    """Outputs are standardised; `in_units` takes them to the table's units.

    Mean and deviation of the training targets are buffers, so they go where the weights go.
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(self, encoder: Encoder, mean: float, std: float) -> None:
        super().__init__(encoder, 1)
        self.register_buffer("target_mean", torch.tensor(mean))
        self.register_buffer("target_std", torch.tensor(std))

    def in_units(self, outputs: Tensor) -> Tensor:
        """Standardised numbers in the table's units."""
        return outputs.float() * self.target_std + self.target_mean

    def standardised(self, targets: Tensor) -> Tensor:
        """The way back."""
        return (targets - self.target_mean) / self.target_std


class RegressionTask(VolumeTask):
    """Smooth L1 on crops' standardised numbers; R2 and MAE on whole volumes."""

    name = "regression"
    metric = "R2"
    net: RegressionNet

    def to_learn(self, table: Path) -> tuple[Mapping[str, float], int]:
        """Each subject's number, by one output."""
        return read_values(table).by_subject, 1

    def make_net(self, encoder: Encoder, outputs: int) -> nn.Module:
        """With mean and deviation of what is trained on, or of all where nothing is."""
        known = self.trained if len(self.trained) else self.by_row[~self.by_row.isnan()]
        std = float(known.std(correction=0)) if len(known) else 0.0
        return RegressionNet(encoder, float(known.mean()) if len(known) else 0.0, std or 1.0)

    def loss(self, batch: Batch) -> Tensor:
        """Smooth L1 of a batch of crops, each with the number of its subject."""
        found, target = self.outputs(batch)
        return nn.functional.smooth_l1_loss(found[:, 0], self.net.standardised(target))

    def score(self, net: nn.Module, volume: str, final: bool) -> CaseValue:
        """Mean over the windows of one volume."""
        assert isinstance(net, RegressionNet)
        found = mean_value(net, self.outputs_of(net, volume))
        return CaseValue(volume, self.target_of(volume), found)

    def evaluation(self, cases: Sequence[CaseValue], final: bool) -> Evaluation:
        """R2 makes the curve; errors stand beside that of the training mean for every volume."""
        targets = np.array([case.target for case in cases])
        predicted = np.array([case.predicted for case in cases])
        constant = float(np.abs(targets - float(self.net.target_mean)).mean())
        fields: dict[str, object] = {
            "mae": float(np.abs(predicted - targets).mean()),
            "rmse": float(np.sqrt(np.square(predicted - targets).mean())),
            "mae_of_mean": constant,
        }
        notes = () if not final else remarks(float(np.abs(predicted - targets).mean()), constant)
        return Evaluation(r2(predicted, targets), fields, cases, notes)

    def notes(self, subjects: Sequence[str], split: str = "training") -> list[str]:
        """Nothing: every number can be learned of and scored."""
        return []


def mean_value(net: RegressionNet, outputs: Tensor) -> float:
    """The number of a volume in the table's units, the mean over windows' outputs (n, 1)."""
    return float(net.in_units(outputs).mean())


def r2(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Share of the variance that is explained; NaN where there is none."""
    total = np.square(targets - targets.mean()).sum()
    return float(1.0 - np.square(predicted - targets).sum() / total) if total else math.nan


def remarks(mae: float, constant: float) -> tuple[str, ...]:
    """What is to be said of a model that is no better than none."""
    if mae < constant:
        return ()
    return (
        f"THE MEAN OF THE TRAINING SUBJECTS PREDICTS AS WELL (MAE {constant:.4g}, the model's "
        f"{mae:.4g}): nothing was learned; train longer or try another --schedule.lr",
    )
