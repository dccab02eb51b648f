"""Segmentation as a downstream task: DiceCE on crops, sliding windows over whole volumes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.extras import extra
from mim3d.dataio.loader.batch import Batch
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import Shards
from mim3d.dataio.reader.whole_volume import read_volume
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import FinetuneConfig
from mim3d.engine.finetune.dice import (
    CaseScore,
    class_means,
    dice_by_class,
    hd95_by_class,
    mean_of,
    mean_over_cases,
)
from mim3d.engine.finetune.network import build_segmentation
from mim3d.engine.finetune.sliding_window import CHANNELS_LAST, Windows, best_class, blended
from mim3d.engine.finetune.task import Evaluation, Task

with extra():
    from monai.losses.dice import DiceCELoss, DiceLoss

PICTURES = 3


@dataclass(frozen=True)
class Case:
    """A whole labelled volume: `image` (c, z, y, x) float32, normalised; `truth` (z, y, x)."""

    volume: str
    image: Tensor
    truth: np.ndarray
    spacing_mm: tuple[float, float, float]


class SegmentationTask(Task):
    """DiceCE on labelled crops; Dice and distances on whole volumes."""

    name = "segmentation"
    metric = "Dice"

    def __init__(
        self,
        config: FinetuneConfig,
        corpus: Corpus,
        device: torch.device,
        shards: Shards | None = None,
    ) -> None:
        super().__init__(config, corpus, device, shards)
        self.classes = n_classes(corpus.records, config.data.label)
        self.names = class_names(corpus.records, config.data.label, self.classes)
        self.ignore = ignored_value(corpus.records, config.data.label)
        net = build_segmentation(config, self.classes, self.starts)
        self.net = net.to(device).to(memory_format=CHANNELS_LAST)  # pyright: ignore[reportCallIssue]
        self.dice_ce = DiceCELoss(to_onehot_y=True, softmax=True)
        self.dice_of_known = DiceLoss()
        self._cases: dict[str, Case] = {}

    def loss(self, batch: Batch) -> Tensor:
        """DiceCE of a batch of labelled crops."""
        assert batch.label is not None
        label = batch.label.to(self.device)[:, None].long()
        image = batch.image.to(self.device, self.dtype, memory_format=CHANNELS_LAST)
        logits = self.net(image).float()
        return (
            self.dice_ce(logits, label) if self.ignore is None else self.known_loss(logits, label)
        )

    def known_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """DiceCE over the voxels whose class is told; 0 where no voxel's is."""
        known = label != self.ignore
        label = torch.where(known, label, 0)
        each = nn.functional.cross_entropy(logits, label[:, 0], reduction="none")
        cross_entropy = (each * known[:, 0]).sum() / known.sum().clamp(min=1)
        wanted = nn.functional.one_hot(label[:, 0], self.classes).movedim(-1, 1)
        return self.dice_of_known(logits.softmax(1) * known, wanted * known) + cross_entropy

    def volumes(self, subjects: Sequence[str]) -> list[str]:
        """Ids of the subjects' volumes that have the label."""
        return [
            record.id
            for record in records_of(self.corpus.records, subjects)
            if any(label.name == self.config.data.label for label in record.labels)
        ]

    def score(self, net: nn.Module, volume: str, final: bool) -> CaseScore:
        """Dice of one whole volume; distances too where `final`."""
        case = self.case(volume)
        found = self.predict(net, case)
        if self.ignore is not None:  # neither right nor wrong
            found = np.where(case.truth == self.ignore, 0, found).astype(found.dtype)
            case = replace(case, truth=np.where(case.truth == self.ignore, 0, case.truth))
        dice = dice_by_class(found, case.truth, self.classes)
        hd95 = hd95_by_class(found, case.truth, self.classes, case.spacing_mm) if final else ()
        return CaseScore(case.volume, dice, hd95)

    def evaluation(self, cases: Sequence[CaseScore], final: bool) -> Evaluation:
        """Means over the volumes, by class too."""
        fields: dict[str, object] = {"dice_by_class": class_means([s.dice for s in cases])}
        if final:
            fields["class_names"] = list(self.names)
            fields["hd95"] = mean_of([s.mean_hd95 for s in cases])
            fields["hd95_by_class"] = class_means([s.hd95 for s in cases])
            fields["hd95_undefined"] = sum(not math.isfinite(x) for s in cases for x in s.hd95)
        return Evaluation(mean_over_cases(cases), fields, cases)

    @torch.no_grad()
    def predict(self, net: nn.Module, case: Case) -> np.ndarray:
        """Label volume (z, y, x) by sliding windows of the encoder's crop."""
        z, y, x = case.truth.shape
        windows = Windows((z, y, x), self.config.vit.crop_size, self.config.overlap)
        image = case.image.to(self.device)
        planes = blended(net, lambda start, end: image[:, start:end], windows, self.device)
        labels = [best_class(logits).cpu() for _, logits in planes]
        return torch.cat(labels).numpy()

    def case(self, volume: str) -> Case:
        """A labelled volume, read once and kept."""
        if volume not in self._cases:
            data, row = self.config.data, self.corpus.table.index(volume)
            whole = read_volume(self.reader, row, data.label, data.normalise)
            assert whole.label is not None
            image = torch.from_numpy(whole.image)
            self._cases[volume] = Case(whole.id, image, whole.label, whole.spacing_mm)
        return self._cases[volume]

    def save_pictures(self, net: nn.Module, subjects: Sequence[str], file: Path) -> None:
        """Mid-slices of a few cases through the label's middle: image, truth, prediction."""
        slices: dict[str, np.ndarray] = {}
        for index, volume in enumerate(self.volumes(subjects)[:PICTURES]):
            case = self.case(volume)
            z = middle_slice(case.truth)
            slices[f"{index}.image"] = case.image[0, z].numpy().astype(np.float16)
            slices[f"{index}.truth"] = case.truth[z].astype(np.uint8)
            slices[f"{index}.prediction"] = self.predict(net, case)[z]
            slices[f"{index}.volume"] = np.array(case.volume)
        with file.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **slices)

    def classes_among(self, subjects: Sequence[str]) -> set[str]:
        """Classes that labelled voxels of subjects have."""
        records, label = self.corpus.records, self.config.data.label
        present = classes_present(records_of(records, subjects), label) - {0}
        return {titled(number, self.names) for number in present}

    def notes(self, subjects: Sequence[str], split: str = "training") -> list[str]:
        """What a reader must know of the subjects of a split: classes they lack."""
        return absent_classes(self.corpus.records, self.config.data.label, subjects, split)


def absent_classes(
    records: Sequence[VolumeRecord], label: str, subjects: Sequence[str], split: str
) -> list[str]:
    """A remark for each class of a label that no labelled voxel of a split's subjects has; of one
    that no volume has at all, for training alone."""
    there, present = (classes_present(of, label) for of in (records, records_of(records, subjects)))
    what = {"training": "its Dice says nothing about the encoder"}.get(
        split, "it has no score there but 0 where it is predicted"
    )
    numbers = range(1, n_classes(records, label))
    names = class_names(records, label, len(numbers) + 1)
    found = [
        f"{titled(k, names)} does not occur in the {len(subjects)} {split} subjects: {what}"
        for k in numbers
        if k in there - present
    ]
    if (gaps := [k for k in numbers if k not in there]) and split == "training":
        classes = ", ".join(titled(k, names) for k in gaps)
        dense = ",".join(str(k) for k in numbers if k in there)
        found.append(
            f"{classes} of label {label!r}: in no volume of the corpus; the network has outputs "
            "that nothing teaches, and predicting one is an error. Where the numbers have gaps, "
            f"the same `mim3d convert` into a new corpus with --label-values {label}={dense} "
            "numbers the classes without"
        )
    return found


def classes_present(records: Iterable[VolumeRecord], label: str) -> set[int]:
    """Classes of a label that voxels of the volumes have."""
    labels = (each for record in records for each in record.labels if each.name == label)
    return {number for each in labels for number, voxels in each.classes.items() if voxels}


def titled(number: int, names: Sequence[str]) -> str:
    """`class 2 (spleen)`, `class 2` where the source did not name it."""
    name = names[number - 1]
    return name if name == f"class {number}" else f"class {number} ({name})"


def class_names(records: Sequence[VolumeRecord], label: str, classes: int) -> tuple[str, ...]:
    """Names of classes 1 and up as the sources told them, `class 1` where they did not."""
    names: dict[int, str] = {}
    for record in records:
        for found in record.labels:
            if found.name == label:
                names |= found.class_names
    return tuple(names.get(k, f"class {k}") for k in range(1, classes))


def ignored_value(records: Sequence[VolumeRecord], label: str) -> int | None:
    """The value of a label that is no class; ConfigError where volumes differ in it."""
    labels = [found for record in records for found in record.labels if found.name == label]
    values = {found.ignore for found in labels if found.ignore is not None}
    if len(values) > 1:
        raise ConfigError(
            f"label {label!r} is to be ignored where it is {sorted(values)}: convert its volumes "
            "into one corpus with the same --ignore-label"
        )
    value = next(iter(values), None)
    if any(value in found.classes for found in labels):
        raise ConfigError(
            f"label {label!r}: {value} is a class of some volumes and to be ignored in others; "
            "convert them with the same --ignore-label"
        )
    return value


def n_classes(records: Sequence[VolumeRecord], label: str) -> int:
    """Classes of a label over the corpus, background included; ConfigError where there are none."""
    found = {
        k
        for record in records
        for labels in record.labels
        if labels.name == label
        for k in labels.classes
    }
    if not found - {0}:
        names = sorted({labels.name for record in records for labels in record.labels})
        ignored = any(a.n_ignored for record in records for a in record.labels if a.name == label)
        why = " (its voxels above 0 count as ignored; `mim3d inspect` says more)" if ignored else ""
        raise ConfigError(
            f"label {label!r} has no foreground in this corpus{why}; it holds labels: "
            f"{names or 'none'}"
        )
    if min(found) < 0 or max(found) > 255:
        raise ConfigError(f"label {label!r} has classes outside 0 to 255: {sorted(found)[:9]}")
    return max(found) + 1


def records_of(records: Sequence[VolumeRecord], subjects: Sequence[str]) -> list[VolumeRecord]:
    """Records of the subjects, in the manifest's order."""
    wanted = set(subjects)
    return [record for record in records if record.subject in wanted]


def middle_slice(truth: np.ndarray) -> int:
    """The z with most labelled voxels, the middle one where there are none."""
    area = (truth > 0).sum((1, 2))
    return int(area.argmax()) if area.any() else truth.shape[0] // 2
