"""Which scans are of subjects that the run was trained on, as its result tells them, by name."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mim3d.dataio.subjects.grouping import counted
from mim3d.engine.finetune.run_folder import RESULT, SPLITS
from mim3d.engine.runs.files import read_json

One = TypeVar("One")


@dataclass(frozen=True)
class Whose:
    """A subject, and the split of the run that it was in: train, validation, test, or none."""

    subject: str
    split: str


class Dealt:
    """The subjects of a run by split; of a run that does not tell them, `is_known` is False."""

    def __init__(self, run: Path) -> None:
        file = run / RESULT
        stored = read_json(file).get("subjects", {}) if file.is_file() else {}
        self.split = {subject: name for name in SPLITS for subject in stored.get(name, ())}
        self.trained_on = next(iter(stored.get("train", ())), "")

    @property
    def is_known(self) -> bool:
        """Whether the run tells whom it was trained on."""
        return bool(self.trained_on)

    def whose(self, subject: str) -> Whose:
        """The subject with its split."""
        return Whose(subject, self.split.get(subject, ""))

    def parts(
        self, scored: Sequence[tuple[Whose, One]]
    ) -> dict[str, tuple[dict[str, Any], list[One]]]:
        """Facts and volumes of the subjects that were trained on, and of the others; nothing where
        the run does not tell."""
        if not self.is_known:
            return {}
        groups: dict[str, list[tuple[Whose, One]]] = {"trained_on": [], "others": []}
        for whose, one in scored:
            groups["trained_on" if whose.split == "train" else "others"].append((whose, one))
        return {
            name: (
                {"scored": len(group), "subjects": sorted({whose.subject for whose, _ in group})},
                [one for _, one in group],
            )
            for name, group in groups.items()
        }

    def in_words(self, scores: dict[str, Any], shown: str) -> tuple[str, ...]:
        """Lines of how many of the scored were trained on; `shown` is the figure that is told."""
        if not scores.get("scored"):
            return ()
        if not self.is_known:
            return ("the run does not tell whom it was trained on: they may be among the scored",)
        known, others = scores["trained_on"], scores["others"]
        if not known["scored"]:
            return (
                f"none of the scored (such as {others['subjects'][0]}) has the name of a subject "
                f"that the run was trained on (such as {self.trained_on})",
            )
        return (
            f"trained on, by name: {part_in_words(known, shown)}",
            f"not trained on: {part_in_words(others, shown)}",
        )


def part_in_words(part: dict[str, Any], shown: str) -> str:
    """How many volumes of which subjects, and their figure where they have one."""
    if not part["scored"]:
        return "none"
    value = part.get(shown, math.nan)
    figure = f"{value:.4f}" if math.isfinite(value) else "-"
    of = f"{counted(part['scored'], 'volume')} of {counted(len(part['subjects']), 'subject')}"
    return f"{shown.replace('_', ' ')} {figure} of {of} (such as {part['subjects'][0]})"
