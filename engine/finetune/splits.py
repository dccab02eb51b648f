"""Which subjects train, validate, test and pretrain: whole subjects, or whole groups, never parts.

Subjects without the label can pretrain only. Subjects of validation and test never pretrain.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from mim3d.dataio.corpus.manifest import LabelRecord
from mim3d.dataio.finite import MOST_SEED, refuse_not_finite, refuse_outside
from mim3d.engine.errors import ConfigError


@dataclass(frozen=True)
class SplitConfig:
    """How many labelled subjects are held out (shares below 1, or numbers), and how they go."""

    validation: float = 0.15
    """Share or number (a quarter at most) of the labelled subjects whose score makes the curves."""
    test: float = 0.15
    """Share or number that is scored once, at the end."""
    seed: int = 0
    """Order in which subjects are dealt."""
    keep: Literal["subject", "group", "number"] = "subject"
    """Kept together: a subject; its group of the manifest; or names with neighbouring numbers."""
    block: int = 10
    """For keep number: consecutive numbers dealt as one block."""
    stratify: bool = True
    """Deal each class of data.targets by itself, or each quarter of its numbers, so that every
    part has its share of it."""

    def __post_init__(self) -> None:
        refuse_not_finite(self, "split", ConfigError)
        refuse_outside(self, "seed", 0, MOST_SEED, part="split", kind=ConfigError)
        shares = [held for held in (self.validation, self.test) if held < 1]
        if min(self.validation, self.test) < 0 or sum(shares) >= 1:
            raise ConfigError(
                f"split.validation {self.validation} and split.test {self.test} must not be "
                "negative and, as shares, must leave subjects to train on (sum below 1)"
            )
        if self.block < 2:
            raise ConfigError(f"split.block {self.block} must be at least 2")


class Dealt(Protocol):
    """What dealing needs to know of a volume; `VolumeRecord` has it."""

    @property
    def subject(self) -> str:
        """Whom the volume shows."""
        ...

    @property
    def group(self) -> str:
        """Data set, site or pair, empty where unknown."""
        ...

    @property
    def labels(self) -> Sequence[LabelRecord]:
        """Its label arrays."""
        ...


@dataclass(frozen=True)
class Splits:
    """Subject names, sorted; `pretrain` holds `train` and unlabelled subjects."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    pretrain: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        held_out = {*self.validation, *self.test}
        leaked = held_out & {*self.train, *self.pretrain} or {*self.validation} & {*self.test}
        if leaked:
            raise ConfigError(f"subjects in more than one split: {sorted(leaked)[:5]}")


def make_splits(
    records: Iterable[Dealt],
    label: str,
    config: SplitConfig,
    targets: Mapping[str, str] | None = None,
) -> Splits:
    """Deal the subjects of a manifest; raises ConfigError where too few carry the label.

    With `targets`, the subjects named there count as labelled, not those with label volumes; each
    class that they map to is dealt by itself where `config.stratify`.
    """
    records = list(records)
    dealing = _dealing(records, label, config, targets)
    labelled, kept_together = dealing.labelled, dealing.kept_together
    train, validation, test = (dealing.part(name) for name in ("train", "validation", "test"))
    if not train or not validation:
        known = {found.name for record in records for found in record.labels}
        what, more = f"label {label!r}", "convert more labelled volumes"
        if known and label not in known:
            more = f"set --data.label {' or '.join(sorted(known))}, which the corpus has, or {more}"
        if targets is not None:
            what, more = "a target", f"name more of the corpus's {len(kept_together)} in targets"
            if not labelled:
                names = f"{few(sorted(targets))} there, {few(sorted(kept_together))} here"
                more += f" as the corpus does ({names})"
        raise ConfigError(
            f"{len(labelled)} subjects with {what} give {len(train)} to train and "
            f"{len(validation)} to validate: {more}{other_split(records, label, config, targets)}"
        )
    unlabelled, left_out = kept_together.keys() - labelled, dealing.left_out
    pretrain = tuple(sorted(set(train) | (unlabelled - left_out)))
    what = f"label {label!r}" if targets is None else "target"
    notes = _notes(labelled, unlabelled, left_out, what) + _foreign_note(targets, kept_together)
    notes += _otherwise(config, dealing)
    notes = (*notes, f"{len(records)} volumes of {len(kept_together)} subjects are dealt")
    if dealing.classes:
        notes = (*notes, _class_note(dealing.classes, train, validation, test))
    return Splits(train, validation, test, pretrain, tuple(sorted(left_out)), notes)


@dataclass(frozen=True)
class _Dealing:
    """What becomes of each subject: its key (those of one are kept together), and its part."""

    kept_together: dict[str, str]
    labelled: set[str]
    classes: Mapping[str, str]
    dealt: dict[str, set[str]]
    left_out: set[str]

    def part(self, name: str) -> tuple[str, ...]:
        """Subjects of train, validation or test."""
        return tuple(sorted(self.dealt[name] - self.left_out))


def _dealing(
    records: Sequence[Dealt], label: str, config: SplitConfig, targets: Mapping[str, str] | None
) -> _Dealing:
    kept_together = {record.subject: _key(record, config) for record in records}
    labelled = {
        record.subject
        for record in records
        if (
            any(found.name == label for found in record.labels)
            if targets is None
            else record.subject in targets
        )
    }
    classes = targets if config.stratify and targets is not None else {}
    dealt = _deal(kept_together, labelled, config, classes)
    unlabelled = kept_together.keys() - labelled
    held_out_keys = {kept_together[s] for part in ("validation", "test") for s in dealt[part]}
    left_out = {s for s in unlabelled if kept_together[s] in held_out_keys}
    if config.keep == "number":
        left_out |= _adjacent(dealt, unlabelled)
    return _Dealing(kept_together, labelled, classes, dealt, left_out)


OTHERS: tuple[dict[str, Any], ...] = (
    {"validation": 0.15},
    {"test": 0},
    {"validation": 0.15, "test": 0},
    {"block": 2},
    {"block": 2, "validation": 0.15, "test": 0},
    {"keep": "subject"},
    {"keep": "subject", "validation": 0.15, "test": 0},
)
"""Other ways to deal, those first that change less."""


def other_split(
    records: Sequence[Dealt], label: str, config: SplitConfig, targets: Mapping[str, str] | None
) -> str:
    """The first other way that leaves subjects to train and to validate; empty where none does."""
    for changes in OTHERS:
        if changes.get("block") and config.keep != "number":
            continue
        found = _dealing(records, label, replace(config, **changes), targets)
        if found.part("train") and found.part("validation"):
            options = (f"--data.split.{name} {value}" for name, value in changes.items())
            return f", or set {' '.join(options)}"
    return ""


def labelled_subset(train: Sequence[str], labels: float, seed: int) -> tuple[str, ...]:
    """The subjects whose labels are used: a share up to 1, or a number above 1; nested by size."""
    if labels <= 0:
        raise ConfigError(f"labels {labels} must be a share in (0, 1] or a number of subjects")
    wanted = math.ceil(labels * len(train)) if labels <= 1 else round(labels)
    if wanted > len(train):
        raise ConfigError(
            f"{wanted} labelled subjects are asked for, {len(train)} can train: set --labels "
            f"{len(train)}, or hold fewer out (--data.split.test, --data.split.validation)"
        )
    order = np.random.default_rng([seed, 17]).permutation(len(train))
    return tuple(sorted(train[int(index)] for index in order[:wanted]))


def number_of(amount: float, subjects: int) -> int:
    """Subjects in a share below 1, rounded up, or in a number, which is at most a quarter."""
    return math.ceil(amount * subjects) if amount < 1 else min(round(amount), subjects // 4)


def trailing_number(subject: str) -> int | None:
    """The last number in a name: 33 of `hippocampus_033`, None where there is none."""
    found = re.findall(r"\d+", subject)
    return int(found[-1]) if found else None


def _key(record: Dealt, config: SplitConfig) -> str:
    if config.keep == "group":
        return record.group or record.subject
    number = trailing_number(record.subject)
    if config.keep == "number" and number is not None:
        return f"block {number // config.block}"
    return record.subject


def _deal(
    kept_together: dict[str, str],
    labelled: set[str],
    config: SplitConfig,
    classes: Mapping[str, str],
) -> dict[str, set[str]]:
    """Groups in random order to test, then validation, until each has its share; then train.

    Each class by itself; a group of several classes goes with its most frequent one.
    """
    groups: dict[str, list[str]] = {}
    for subject in sorted(labelled):
        groups.setdefault(kept_together[subject], []).append(subject)
    strata: dict[str, list[str]] = {}
    for name in sorted(groups):
        counts = Counter(classes.get(subject, "") for subject in groups[name])
        strata.setdefault(max(sorted(counts), key=counts.__getitem__), []).append(name)
    dealt: dict[str, set[str]] = {"test": set(), "validation": set(), "train": set()}
    for i_stratum, names in enumerate(strata[key] for key in sorted(strata)):
        size = sum(len(groups[name]) for name in names)
        wanted = _goals(config, size, len(labelled), len(names))
        found: Counter[str] = Counter()
        # One stratum is dealt as it was before there were several.
        seeds = [config.seed, 5, i_stratum][: 2 + (len(strata) > 1)]
        for index in np.random.default_rng(seeds).permutation(len(names)):
            part = next((p for p, goal in wanted.items() if found[p] < goal), "train")
            dealt[part].update(groups[names[index]])
            found[part] += len(groups[names[index]])
    return dealt


def _goals(config: SplitConfig, size: int, of: int, groups: int) -> dict[str, int]:
    """Subjects out of `size` for test and validation, as many as they are of all `of`.

    At least one, where a class has three groups or more: all parts should know it.
    """
    goals = {part: number_of(getattr(config, part), of) for part in ("test", "validation")}
    if size == of:
        return goals
    asked = [part for part, goal in goals.items() if goal]
    least = int(groups > len(asked))
    return {
        part: max(round(goal * size / of), least) if goal else 0 for part, goal in goals.items()
    }


def _class_note(classes: Mapping[str, str], *parts: Collection[str]) -> str:
    counts = [Counter(classes[subject] for subject in part if subject in classes) for part in parts]
    each = [
        f"{name} {', '.join(str(count[name]) for count in counts)}"
        for name in sorted(set(classes.values()))
    ]
    return f"subjects by class (train, validation, test): {'; '.join(each)}"


def _adjacent(dealt: dict[str, set[str]], unlabelled: Iterable[str]) -> set[str]:
    """Subjects whose number is next to one of a split held out more strictly: a buffer.

    Left and right of one patient are neighbours in such lists, and no parity tells which; with
    the buffer no two neighbouring numbers stand in different splits, wherever blocks end.
    """
    out: set[str] = set()
    ranked = [dealt["test"], dealt["validation"], dealt["train"] | set(unlabelled)]
    guarded: set[int] = set()
    for part in ranked:
        numbers = {s: n for s in part if (n := trailing_number(s)) is not None}
        near = {s for s, n in numbers.items() if {n - 1, n, n + 1} & guarded}
        out |= near
        guarded |= {n for s, n in numbers.items() if s not in near}
    return out


def _notes(
    labelled: set[str], unlabelled: Iterable[str], left_out: set[str], what: str
) -> tuple[str, ...]:
    notes = []
    n_unlabelled = len(set(unlabelled))
    if n_unlabelled:
        notes.append(
            f"{n_unlabelled} of {n_unlabelled + len(labelled)} subjects have no {what}: "
            "they can pretrain but are not fine-tuned on or scored"
        )
    if left_out:
        notes.append(
            f"{len(left_out)} subjects are left out because they stand next to a held-out one"
        )
    return tuple(notes)


def _otherwise(config: SplitConfig, dealing: _Dealing) -> tuple[str, ...]:
    """How subjects are dealt otherwise than asked."""
    labelled, keys = len(dealing.labelled), dealing.kept_together
    alone = [subject for subject, key in keys.items() if key == subject]
    notes = [
        f"{part}: {labelled // 4} of {labelled} labelled subjects, a quarter, in the place of the "
        f"{getattr(config, part):g} asked for"
        for part in ("validation", "test")
        if getattr(config, part) >= 1 and round(getattr(config, part)) > labelled // 4
    ]
    if config.keep != "subject" and alone:
        lacks = "group in the manifest" if config.keep == "group" else "number in their name"
        notes.append(
            f"{len(alone)} subjects have no {lacks}, and are each dealt alone though split.keep is "
            f"{config.keep}: {few(sorted(alone))}"
        )
    return tuple(notes)


def few(names: Sequence[str]) -> str:
    """The first of many names."""
    return f"{', '.join(names[:3])}{' and so on' if len(names) > 3 else ''}"


def _foreign_note(targets: Collection[str] | None, known: Collection[str]) -> tuple[str, ...]:
    foreign = sorted(set(targets or ()) - set(known))
    if not foreign:
        return ()
    return (
        f"{len(foreign)} of {len(targets or ())} subjects with a target are not in the corpus: "
        f"{few(foreign)}",
    )
