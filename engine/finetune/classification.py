"""Classification of whole volumes as a downstream task: cross-entropy on crops, three scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.finetune.targets import in_order, read_targets
from mim3d.engine.finetune.task import Evaluation
from mim3d.engine.finetune.volume_task import VolumeTask


@dataclass(frozen=True)
class CaseClass:
    """One volume: its class, and the probability given to each class, in the classes' order."""

    volume: str
    target: int
    probabilities: tuple[float, ...]
    class_name: str = ""
    """Of the target, as the table has it."""
    predicted_name: str = ""


class ClassificationTask(VolumeTask):
    """Cross-entropy on crops; balanced accuracy, accuracy and AUROC on whole volumes."""

    name = "classification"
    metric = "balanced accuracy"

    by_subject: Mapping[str, str]

    def to_learn(self, table: Path) -> tuple[Mapping[str, float], int]:
        """The place of each subject's class among the names, and how many these are."""
        found = read_targets(table)
        self.by_subject, self.names = found.by_subject, found.names
        place = {name: float(k) for k, name in enumerate(self.names)}
        return {subject: place[name] for subject, name in self.by_subject.items()}, len(place)

    @cached_property
    def weights(self) -> Tensor | None:
        """Of the classes in the loss, on the device; None where they weigh the same."""
        if self.config.class_weights == "none":
            return None
        return balanced_weights(self.trained.long(), len(self.names)).to(self.device)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of a batch of crops, each with the class of its subject.

        With weights it is divided by the number of crops, not by their weights: a small batch of
        one class would otherwise weigh as much as any.
        """
        logits, target = self.outputs(batch)
        target = target.long()
        if self.weights is None:
            return nn.functional.cross_entropy(logits, target)
        each = nn.functional.cross_entropy(logits, target, reduction="none")
        return (self.weights[target] * each).mean()

    def score(self, net: nn.Module, volume: str, final: bool) -> CaseClass:
        """Mean probability over the windows of one volume."""
        mean = mean_probabilities(self.outputs_of(net, volume))
        target = int(self.target_of(volume))
        names = self.names[target], self.names[int(mean.argmax())]
        return CaseClass(volume, target, tuple(mean.tolist()), *names)

    def evaluation(self, cases: Sequence[CaseClass], final: bool) -> Evaluation:
        """Balanced accuracy makes the curve; accuracy and AUROC stand beside it."""
        targets = np.array([case.target for case in cases])
        probabilities = np.array([case.probabilities for case in cases])
        predicted = probabilities.argmax(1)
        fields: dict[str, object] = {
            "accuracy": float((predicted == targets).mean()),
            "auroc": auroc(probabilities, targets),
            "majority_accuracy": float(np.bincount(targets).max() / len(targets)),
        }
        if final:
            fields["class_names"] = list(self.names)
            fields["recall_by_class"] = recalls(predicted, targets, len(self.names))
        notes = one_class_notes(predicted, targets, self.names) if final else ()
        return Evaluation(balanced_accuracy(predicted, targets), fields, cases, notes)

    def classes_among(self, subjects: Sequence[str]) -> set[str]:
        """Classes that subjects have."""
        found = {self.by_subject[subject] for subject in subjects if subject in self.by_subject}
        return {f"class {name!r}" for name in found}

    def notes(self, subjects: Sequence[str], split: str = "training") -> list[str]:
        """Classes that the subjects of a split lack."""
        return absent_targets(self.by_subject, subjects, split)


def mean_probabilities(outputs: Tensor) -> Tensor:
    """Probability of each class (k,), the mean over windows' logits (n, k)."""
    return outputs.softmax(-1).mean(0).cpu()


def balanced_weights(classes: Tensor, n_classes: int) -> Tensor:
    """Weight of each class: inverse to its volumes (n,), their mean over volumes 1; 0 of none."""
    counts = torch.bincount(classes, minlength=n_classes).float()
    present = int((counts > 0).sum())
    return torch.where(counts > 0, len(classes) / (present * counts.clamp(min=1)), 0.0)


def one_class_notes(
    predicted: np.ndarray, targets: np.ndarray, names: Sequence[str]
) -> tuple[str, ...]:
    """A remark where all volumes got one class although they are of several."""
    given = np.unique(predicted)
    if len(given) > 1 or len(np.unique(targets)) < 2:
        return ()
    share = float((targets == given[0]).mean())
    return (
        f"ALL {len(targets)} VOLUMES ARE PREDICTED AS {names[int(given[0])]!r}, which {share:.0%} "
        "of them are: nothing was learned; train longer, try --class-weights balanced or another "
        "--schedule.lr",
    )


def recalls(predicted: np.ndarray, targets: np.ndarray, n_classes: int) -> list[float | None]:
    """Share of each class's volumes that was found; None where there is no such volume."""
    return [
        float((predicted[targets == k] == k).mean()) if (targets == k).any() else None
        for k in range(n_classes)
    ]


def absent_targets(by_subject: Mapping[str, str], subjects: Sequence[str], split: str) -> list[str]:
    """A remark for each class that none of a split's subjects has."""
    present = {by_subject[subject] for subject in subjects if subject in by_subject}
    what = {"training": "it cannot be learned"}.get(split, "scores are means over the others")
    return [
        f"class {name!r} does not occur in the {len(subjects)} {split} subjects: {what}"
        for name in in_order(set(by_subject.values()) - present)
    ]


def balanced_accuracy(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Mean over the classes present of the share found."""
    shares = [(predicted[targets == k] == k).mean() for k in np.unique(targets)]
    return float(np.mean(shares)) if shares else math.nan


def auroc(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Area under the ROC curve by ranks, ties counted half; of several classes the mean."""
    from scipy.stats import rankdata

    n_classes = probabilities.shape[1]
    areas = []
    for k in range(1, 2) if n_classes == 2 else range(n_classes):
        positive = targets == k
        n_positive, n_negative = int(positive.sum()), int((~positive).sum())
        if n_positive and n_negative:
            ranks = rankdata(probabilities[:, k])[positive].sum()
            areas.append((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
    return float(np.mean(areas)) if areas else math.nan
