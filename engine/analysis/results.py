"""What a study left behind, read back: everything the report is built from.

`results.jsonl` has one row per evaluation: arm, encoder, variant, head, labels, seed, lr, tuning,
split, step, score, dice_by_class, flops, seconds. `pretraining.json` has one entry per pretraining,
`study.json` what was asked for, which of it failed, and what was asked for first.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mim3d.engine.analysis.ledger import UNITS, Cost, Spending
from mim3d.engine.errors import ConfigError
from mim3d.engine.runs.files import read_json, read_jsonl
from mim3d.engine.study.config import (
    CASES,
    CLASSIFY,
    PRETRAINING,
    RESULTS,
    STUDY,
    Row,
    labels_in_words,
)
from mim3d.engine.study.curves import Curve, smooth
from mim3d.engine.study.encoders import TITLES

TOLERATED = 0.1
"""Share of an arm's scored pretrainings that may fail to learn before the arm is not compared."""


def decoder_name(head: str) -> str:
    """`UNETR decoder`, `tokens decoder`."""
    return f"{'UNETR' if head == 'unetr' else head} decoder"


def encoder_title(encoder: str) -> str:
    """`Primus` of the name in rows, empty where all arms have one encoder."""
    return TITLES.get(encoder, encoder)


@dataclass(frozen=True, order=True)
class Group:
    """Cells that are compared with each other: same encoder, head, labels and variant.

    `encoder` is empty where all arms of the study have the same.
    """

    head: str
    labels: float
    variant: str
    encoder: str = ""

    @property
    def title(self) -> str:
        """Words for headings."""
        labels = "all labels" if self.labels == 1 else labels_in_words(self.labels)
        variant = self.variant.replace("_", " ")
        head = "classification" if self.head == CLASSIFY else decoder_name(self.head)
        parts = (encoder_title(self.encoder), head, labels, variant)
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Study:
    """Rows as read; `about` is study.json."""

    about: dict[str, Any]
    rows: list[Row]
    cases: list[Row]
    pretraining: list[Row]
    folder: Path

    @staticmethod
    def load(folder: Path) -> "Study":
        """Read a study's results; ConfigError where the folder holds none."""
        if not (folder / STUDY).exists() or not (folder / RESULTS).exists():
            raise ConfigError(
                f"{folder} holds no results of a study ({STUDY}, {RESULTS}): run "
                "`mim3d compare STUDY --data.corpus CORPUS --out DIR` first"
            )
        return Study(
            read_json(folder / STUDY),
            read_jsonl(folder / RESULTS),
            read_jsonl(folder / CASES) if (folder / CASES).exists() else [],
            read_json(folder / PRETRAINING) if (folder / PRETRAINING).exists() else [],
            folder,
        )

    @property
    def scored(self) -> list[Row]:
        """Rows of scored cells: those that tuned the learning rate are left out."""
        return [row for row in self.rows if not row.get("tuning")]

    def groups(self) -> list[Group]:
        """Groups in the order of the configuration, whichever runs are there."""
        found = list(dict.fromkeys(group_of(row) for row in self.scored))
        config = self.about.get("config", {})
        heads, labels = (
            {v: i for i, v in enumerate(config.get(k, ()))} for k in ("heads", "labels")
        )
        variants = {name: i for i, name in enumerate(self.about.get("variants", ()))}

        def place(group: Group) -> tuple[int, ...]:
            places = heads.get(group.head), labels.get(group.labels), variants.get(group.variant)
            return tuple(len(found) if at is None else at for at in places)

        return sorted(found, key=place)

    def arms(self, group: Group) -> list[str]:
        """Arms of a group, in the order run; also one whose runs all diverged."""
        rows = [*self.scored, *(row for row in self.failed if row["diverged"])]
        found = dict.fromkeys(row["arm"] for row in rows if group_of(row) == group)
        order = [*self.about.get("arms", []), *found]
        return [arm for arm in dict.fromkeys(order) if arm in found]

    @property
    def failed(self) -> list[Row]:
        """Scored cells that ended in an error, each with `error` and `diverged`."""
        return [row for row in self.about.get("failed", []) if not row.get("tuning")]

    def diverged(self, group: Group, arm: str) -> list[int]:
        """Seeds of an arm whose loss ceased to be finite: they never reach a target."""
        return sorted(
            row["seed"]
            for row in self.failed
            if row["diverged"] and row["arm"] == arm and group_of(row) == group
        )

    def planned(self, group: Group) -> list[int]:
        """Seeds that every arm of a group was to have, by the configuration and by any arm."""
        asked = self.about.get("config", {}).get("seeds", ())
        rows = (row for row in [*self.scored, *self.failed] if group_of(row) == group)
        return sorted({*(asked if isinstance(asked, list) else ()), *seeds_of(rows)})

    def awaited(self, group: Group, arm: str) -> list[int]:
        """Seeds of an arm in a group that neither ended nor failed: they are still to run."""
        rows = [row for row in [*self.scored, *self.failed] if row["arm"] == arm]
        done = seeds_of(row for row in rows if group_of(row) == group)
        return [seed for seed in self.planned(group) if seed not in done]

    def chance(self, group: Group) -> float:
        """Score of a model that knows nothing: 1 / classes for balanced accuracy, else 0.

        One half, two classes, where the cases that name the classes were not kept.
        """
        if group.head != CLASSIFY:
            return 0.0
        cases = (case for case in self.cases if group_of(case) == group)
        known = next((case["probabilities"] for case in cases if case.get("probabilities")), ())
        return 1 / max(len(known), 2)

    def curves(self, group: Group, arm: str, window: int = 1) -> dict[int, Curve]:
        """Validation curves by seed, smoothed over `window` evaluations."""
        by_seed: dict[int, dict[float, float]] = {}
        for row in self.select(group, arm, "validation"):
            if row["score"] is not None:
                by_seed.setdefault(row["seed"], {})[float(row["step"])] = row["score"]
        curves = {}
        for seed, table in sorted(by_seed.items()):
            steps = sorted(table)
            curves[seed] = smooth(Curve(tuple(steps), tuple(table[s] for s in steps)), window)
        return curves

    def select(self, group: Group, arm: str, split: str) -> list[Row]:
        """Rows of one arm in one group and split."""
        return [
            row
            for row in self.scored
            if group_of(row) == group and row["arm"] == arm and row["split"] == split
        ]

    def finals(self, group: Group, arm: str, field: str = "score") -> dict[int, float]:
        """The last test value by seed, of validation where there is no test split."""
        rows = self.select(group, arm, "test") or self.select(group, arm, "validation")
        last: dict[int, Row] = {}
        for row in rows:
            if row.get(field) is not None and row["step"] >= last.get(row["seed"], row)["step"]:
                last[row["seed"]] = row
        return {seed: row[field] for seed, row in sorted(last.items())}

    def pretraining_of(self, group: Group, arm: str, seed: int | None = None) -> Row | None:
        """The pretraining an arm starts from: that of the seed where there is one per seed."""
        found = [p for p in self.pretraining if p["arm"] == arm and is_of(p, group)]
        shared = (p for p in found if p.get("seed") is None)
        return next((p for p in found if p.get("seed") == seed), next(shared, None))

    def untrained(self, group: Group, arm: str) -> list[int]:
        """Seeds of an arm whose pretraining did not learn its task."""
        seeds = seeds_of(self.select(group, arm, "validation"))
        found = {seed: self.pretraining_of(group, arm, seed) for seed in seeds}
        return [seed for seed, row in found.items() if row is not None and row["trained"] is False]

    def is_untrained(self, group: Group, arm: str) -> bool:
        """Whether an arm is compared with nobody, as more than `TOLERATED` did not learn.

        Where fewer did not, their seeds count as all others: a method that fails now and then is
        judged with its failures, and no seed is left out for what became of it.
        """
        failed = self.untrained(group, arm)
        rows = [self.pretraining_of(group, arm, seed) for seed in failed]
        if any(row is not None and row.get("seed") is None for row in rows):
            return True
        return len(failed) > TOLERATED * len(self.planned(group))

    def spending(self, group: Group, arm: str) -> Spending:
        """Cost of the arm's pretraining and of one fine-tuning step, by seed.

        A diverged run's step counts as the mean of the arm's others.
        """
        last: dict[int, Row] = {}
        for row in self.select(group, arm, "validation"):
            if row["step"] >= last.get(row["seed"], row)["step"]:
                last[row["seed"]] = row
        steps = {
            seed: Cost(row["step"], row["flops"], row["seconds"]).per_step()
            for seed, row in last.items()
            if row["step"] > 0
        }
        if steps:
            mean = Cost(1.0, *(fmean(c.of(unit) for c in steps.values()) for unit in UNITS[1:]))
            steps = dict.fromkeys(self.diverged(group, arm), mean) | steps
        fixed = {seed: self.pretraining_cost(group, arm, seed) for seed in steps}
        return Spending({seed: cost for seed, cost in fixed.items() if cost is not None}, steps)

    def pretraining_cost(self, group: Group, arm: str, seed: int) -> Cost | None:
        """What the pretraining of a seed cost: nothing for scratch, None where it is not known."""
        row = self.pretraining_of(group, arm, seed)
        if row is None:
            return Cost()
        return Cost(row["steps"], row["flops"], row["seconds"]) if row["crops"] else None


def group_of(row: Row) -> Group:
    """The group a row belongs to."""
    return Group(row["head"], row["labels"], row.get("variant", ""), row.get("encoder", ""))


def is_of(pretraining: Row, group: Group) -> bool:
    """Whether a pretraining is of a group's encoder and variant.

    One given by path is the same in every variant.
    """
    here = is_given(pretraining) or pretraining.get("variant", "") == group.variant
    return here and pretraining.get("encoder", "") == group.encoder


def is_given(pretraining: Row) -> bool:
    """Whether the study did not pretrain the arm itself."""
    return "given" in pretraining or pretraining.get("method") == "given"


def seeds_of(rows: Iterable[Row]) -> list[int]:
    """Seeds that occur, sorted."""
    return sorted({row["seed"] for row in rows})
