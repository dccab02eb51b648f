"""Classification of whole volumes as a downstream task: mean token, linear layer, three scores."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mim3d.dataio.loader.batch import Batch
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import Shards
from mim3d.dataio.reader.whole_volume import read_volume
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import FinetuneConfig
from mim3d.engine.finetune.network import build_encoder, seeded
from mim3d.engine.finetune.task import Evaluation, Task
from mim3d.engine.models.swin import SwinEncoder
from mim3d.engine.models.vit import ViT3D


@dataclass(frozen=True)
class CaseClass:
    """One volume: its class, and the probability given to each class."""

    volume: str
    target: int
    probabilities: tuple[float, ...]


class ClassificationNet(nn.Module):
    """Volume (b, c, z, y, x) to logits (b, k): the mean of the encoder's tokens, one layer."""

    def __init__(self, encoder: ViT3D | SwinEncoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = nn.Linear(encoder.config.width, classes)

    def forward(self, volume: Tensor) -> Tensor:
        """Logits of each crop."""
        return self.decoder(self.encoder(volume).mean(1))


class ClassificationTask(Task):
    """Cross-entropy on crops; balanced accuracy, accuracy and AUROC on whole volumes."""

    name = "classification"
    metric = "balanced accuracy"

    def __init__(
        self,
        config: FinetuneConfig,
        corpus: Corpus,
        device: torch.device,
        shards: Shards | None = None,
    ) -> None:
        super().__init__(config, corpus, device, shards)
        self.by_subject = read_targets(Path(config.data.targets))
        self.names = sorted(set(self.by_subject.values()))
        number = {name: k for k, name in enumerate(self.names)}
        self.targets = {subject: number[name] for subject, name in self.by_subject.items()}
        table = corpus.table
        rows = (self.targets.get(table.subject(i), -1) for i in range(table.n_volumes))
        self.by_row = torch.tensor(list(rows))
        encoder = build_encoder(config)
        with seeded(config.seed, "decoder"):
            self.net = ClassificationNet(encoder, len(self.names)).to(device)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of a batch of crops, each with the class of its subject."""
        target = self.by_row[batch.volume].to(self.device)
        logits = self.net(batch.image.to(self.device, self.dtype)).float()
        return nn.functional.cross_entropy(logits, target)

    def volumes(self, subjects: Sequence[str]) -> list[str]:
        """Ids of the subjects' volumes that have a class."""
        wanted, table = set(subjects), self.corpus.table
        return [
            table.volume_id(row)
            for row in range(table.n_volumes)
            if table.subject(row) in wanted and self.by_row[row] >= 0
        ]

    @torch.no_grad()
    def score(self, net: nn.Module, volume: str, final: bool) -> CaseClass:
        """Mean probability over the windows of one volume."""
        row = self.corpus.table.index(volume)
        whole = read_volume(self.reader, row, None, self.config.data.normalise)
        crops = windows(torch.from_numpy(whole.image), self.config.vit.crop_size)
        logits = net(crops.to(self.device)).float()
        mean = logits.softmax(-1).mean(0).cpu()
        return CaseClass(whole.id, int(self.by_row[row]), tuple(mean.tolist()))

    def evaluation(self, cases: Sequence[CaseClass], final: bool) -> Evaluation:
        """Balanced accuracy makes the curve; accuracy and AUROC stand beside it."""
        targets = np.array([case.target for case in cases])
        probabilities = np.array([case.probabilities for case in cases])
        fields: dict[str, object] = {
            "accuracy": float((probabilities.argmax(1) == targets).mean()),
            "auroc": auroc(probabilities, targets),
        }
        return Evaluation(balanced_accuracy(probabilities.argmax(1), targets), fields, cases)

    def notes(self, subjects: Sequence[str], split: str = "training") -> list[str]:
        """Classes that the subjects of a split lack."""
        return absent_targets(self.by_subject, subjects, split)


def absent_targets(by_subject: Mapping[str, str], subjects: Sequence[str], split: str) -> list[str]:
    """A remark for each class that none of a split's subjects has."""
    present = {by_subject[subject] for subject in subjects if subject in by_subject}
    what = {"training": "it cannot be learned"}.get(split, "scores are means over the others")
    return [
        f"class {name!r} does not occur in the {len(subjects)} {split} subjects: {what}"
        for name in sorted(set(by_subject.values()) - present)
    ]


def read_targets(file: Path) -> dict[str, str]:
    """Class of each subject from a CSV with columns subject and target."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"subject", "target"} <= rows[0].keys():
        raise ConfigError(f"{file}: needs a header with the columns subject and target, and rows")
    found = {row["subject"]: row["target"] for row in rows}
    if len(set(found.values())) < 2:
        raise ConfigError(f"{file}: all targets are {rows[0]['target']!r}; two classes are needed")
    return found


def windows(image: Tensor, crop_size: tuple[int, int, int]) -> Tensor:
    """Crops (n, c, z, y, x) that cover a volume (c, z, y, x) evenly; small ones are padded."""
    pads: list[int] = []
    for have, want in zip(reversed(image.shape[1:]), reversed(crop_size), strict=True):
        short = max(want - have, 0)
        pads += [short // 2, short - short // 2]
    image = nn.functional.pad(image, pads, value=float(image.min()))
    starts = []
    for have, want in zip(image.shape[1:], crop_size, strict=True):
        count = math.ceil(have / want)
        starts.append([round(i * (have - want) / max(count - 1, 1)) for i in range(count)])
    crops = [
        image[:, z : z + crop_size[0], y : y + crop_size[1], x : x + crop_size[2]]
        for z, y, x in product(*starts)
    ]
    return torch.stack(crops)


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
