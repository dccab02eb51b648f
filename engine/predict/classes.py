"""One volume to a class or a number, and all of them to a table."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mim3d.dataio.errors import Rejection
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.classification import auroc, balanced_accuracy, mean_probabilities
from mim3d.engine.finetune.regression import RegressionNet, mean_value, r2
from mim3d.engine.finetune.targets import read_targets, read_values
from mim3d.engine.finetune.volume_task import window_outputs
from mim3d.engine.predict.dealt import Dealt
from mim3d.engine.predict.scans import OpenVolume

CLASSES, VALUES = "classes.csv", "values.csv"


@dataclass(frozen=True)
class VolumeRow:
    """A volume, whose it is, and the probability of each class, or one number."""

    volume: str
    subject: str
    source: str
    figures: tuple[float, ...]


def figures_of(
    net: nn.Module, volume: OpenVolume, size: tuple[int, int, int], device: torch.device
) -> list[float]:
    """The probability of each class, or the one number, as validation has it."""
    image = volume.planes(0, volume.shape[0])
    outputs = window_outputs(net, image, size, device)
    if isinstance(net, RegressionNet):
        return [mean_value(net, outputs)]
    return mean_probabilities(outputs).tolist()


def write_rows(folder: Path, rows: Sequence[VolumeRow], names: Sequence[str]) -> Path:
    """The table: the most probable class and all probabilities; of a regression the number."""
    file = folder / (CLASSES if names else VALUES)
    partial = folder / f".{file.name}.part"
    columns = ["class", *(f"p_{name}" for name in names)] if names else ["value"]
    with partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "subject", "source", *columns])
        for row in rows:
            best = [names[int(np.argmax(row.figures))]] if names else []
            shown = [f"{figure:.6f}" if names else f"{figure:.8g}" for figure in row.figures]
            writer.writerow([row.volume, row.subject, row.source, *best, *shown])
    partial.replace(file)
    return file


def row_scores(
    rows: Sequence[VolumeRow], names: Sequence[str], table: str, dealt: Dealt
) -> dict[str, Any]:
    """Balanced accuracy, accuracy and AUROC, or R2 and MAE, against a table of subject and target;
    apart those of subjects that were trained on, and of others.

    ConfigError where it has a class that the network does not know, or none of the subjects.
    """
    file = Path(table)
    targets = read_targets(file).by_subject if names else read_values(file).by_subject
    foreign = sorted(set(map(str, targets.values())) - set(names)) if names else []
    if foreign:
        raise ConfigError(
            f"{table} has the class {foreign[0]!r}, and the network knows {', '.join(names)}: name "
            "classes as in the run's targets"
        )
    known = [row for row in rows if row.subject in targets]
    if not known and rows:
        raise ConfigError(
            f"{table} has none of the {len(rows)} subjects, such as {rows[0].subject!r}: name them "
            "in its column subject"
        )
    unscored = [
        vars(Rejection(row.source, "no-target", f"{table} has no row of {row.subject!r}"))
        for row in rows
        if row.subject not in targets
    ]
    score = class_scores if names else value_scores
    parts = dealt.parts([(dealt.whose(row.subject), row) for row in known])
    apart = {
        name: {**facts, **(score(of, names, targets) if of else {})}
        for name, (facts, of) in parts.items()
    }
    scores = score(known, names, targets) if known else {}
    return {"scored": len(known), **scores, **apart, "unscored": unscored}


def class_scores(
    rows: Sequence[VolumeRow], names: Sequence[str], targets: Mapping[str, Any]
) -> dict[str, float]:
    """Of a classification."""
    number = {name: k for k, name in enumerate(names)}
    true = np.array([number[targets[row.subject]] for row in rows])
    shares = np.array([row.figures for row in rows])
    return {
        "balanced_accuracy": balanced_accuracy(shares.argmax(1), true),
        "accuracy": float((shares.argmax(1) == true).mean()),
        "auroc": auroc(shares, true),
    }


def value_scores(
    rows: Sequence[VolumeRow], names: Sequence[str], targets: Mapping[str, Any]
) -> dict[str, float]:
    """Of a regression."""
    true = np.array([targets[row.subject] for row in rows], np.float64)
    found = np.array([row.figures[0] for row in rows])
    return {"r2": r2(found, true), "mae": float(np.abs(found - true).mean())}
