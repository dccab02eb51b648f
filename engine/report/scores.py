"""The report's table of final scores: what each arm ended with, by metric and by class."""

from collections.abc import Mapping, Sequence
from typing import Any

from mim3d.engine.analysis.results import Group, Study, group_of
from mim3d.engine.analysis.summary import GroupSummary
from mim3d.engine.analysis.words import arm_name, plus_minus, seed_list
from mim3d.engine.report.section import Table
from mim3d.engine.study.config import CLASSIFY, Row


def final_table(study: Study, group: GroupSummary) -> Table | None:
    """Scores after the last step, mean and deviation over seeds; None where nothing was scored."""
    rows = {arm.arm: final_rows(study, group.group, arm.arm) for arm in group.arms}
    if not any(rows.values()):
        return None
    if group.group.head == CLASSIFY:
        return classification_table(rows, group)
    return segmentation_table(study, rows, group)


def final_rows(study: Study, group: Group, arm: str) -> dict[int, Row]:
    """The last row of each seed: of the test subjects where there are any, else of validation."""
    last: dict[int, Row] = {}
    for row in study.select(group, arm, "test") or study.select(group, arm, "validation"):
        if row["step"] >= last.get(row["seed"], row)["step"]:
            last[row["seed"]] = row
    return dict(sorted(last.items()))


def whose_scores(rows: Mapping[str, Mapping[int, Row]]) -> str:
    """Whose scores they are."""
    splits = {row["split"] for by_seed in rows.values() for row in by_seed.values()}
    return "test subjects, scored once" if splits == {"test"} else "validation subjects"


def titled(arm: str, group: GroupSummary) -> str:
    """An arm's name, with a dagger where it did not learn its pretext task."""
    return arm_name(arm) + " †" * (arm in group.untrained)


def seeds_differ(group: GroupSummary) -> str:
    """That means of arms are over different seeds, where they are, and which."""
    arms_of: dict[tuple[int, ...], list[str]] = {}
    for arm in group.arms:
        arms_of.setdefault(arm.seeds, []).append(arm_name(arm.arm))
    if len(arms_of) < 2:
        return ""
    parts = [
        f"{', '.join(arms)} {seed_list(seeds) if seeds else 'none'}"
        for seeds, arms in arms_of.items()
    ]
    return (
        f" Arms have different seeds ({'; '.join(parts)}), so their means cannot be held against "
        "each other: only paired differences can."
    )


def classification_table(rows: Mapping[str, Mapping[int, Row]], group: GroupSummary) -> Table:
    """Balanced accuracy, accuracy and AUROC."""
    columns = {"balanced accuracy": "score", "accuracy": "accuracy", "AUROC": "auroc"}
    body = tuple(
        (titled(arm, group), *(plus_minus(values(by_seed, key)) for key in columns.values()))
        for arm, by_seed in rows.items()
    )
    note = (
        f"Of the {whose_scores(rows)}, mean ± standard deviation over seeds. Balanced accuracy is "
        "the mean over classes of the share found; of several classes AUROC is the mean of each "
        f"against the rest. A dash: the subjects are all of one class.{seeds_differ(group)}"
    )
    return Table("Final scores", ("arm", *columns), body, note)


def segmentation_table(
    study: Study, rows: Mapping[str, Mapping[int, Row]], group: GroupSummary
) -> Table:
    """Dice and HD95, mean and by class, with the cases that HD95 leaves out."""
    last = [row for by_seed in rows.values() for row in by_seed.values()]
    classes = max((len(row.get("dice_by_class") or ()) for row in last), default=0)
    known = next((row["class_names"] for row in last if row.get("class_names")), [])
    names = [known[k] if k < len(known) else f"class {k + 1}" for k in range(classes)]
    by_class = [f"{name}\n{of}" for of in names for name in ("Dice", "HD95", "missed")]
    body = []
    for arm, by_seed in rows.items():
        cases = final_cases(study, group.group, arm, by_seed)
        cells = [plus_minus(values(by_seed, "score")), plus_minus(values(by_seed, "hd95"), 2)]
        cells.append(missed(cases, range(classes)) or undefined(by_seed))
        for k in range(classes) if classes > 1 else ():
            cells.append(plus_minus(values(by_seed, "dice_by_class", k)))
            cells.append(plus_minus(values(by_seed, "hd95_by_class", k), 2))
            cells.append(missed(cases, [k]) or "–")
        body.append((titled(arm, group), *cells))
    header = ("arm", "Dice", "HD95, mm", "missed", *(by_class if classes > 1 else ()))
    note = (
        f"Of the {whose_scores(rows)}, mean ± standard deviation over seeds. Missed: in how "
        "many (case, class) pairs of all seeds the prediction lacks a class that the truth has, or "
        "has one that it lacks. Dice counts these as 0, but they have no distance and HD95 leaves "
        "them out, so an arm that misses more looks better by HD95 than it is."
        f"{seeds_differ(group)}"
    )
    return Table("Final scores", header, tuple(body), note)


def values(by_seed: Mapping[int, Row], key: str, entry: int | None = None) -> dict[int, float]:
    """A column by seed, or one entry of a column of lists, where it has a value."""
    found = {}
    for seed, row in by_seed.items():
        value: Any = row.get(key)
        if entry is not None:
            value = value[entry] if value and entry < len(value) else None
        if value is not None:
            found[seed] = value
    return found


def final_cases(study: Study, group: Group, arm: str, by_seed: Mapping[int, Row]) -> list[Row]:
    """Scores by case that the final rows are means of."""
    splits = {row["split"] for row in by_seed.values()}
    return [
        case
        for case in study.cases
        if case["arm"] == arm
        and case["split"] in splits
        and not case.get("tuning")
        and group_of(case) == group
    ]


def missed(cases: Sequence[Row], classes: Sequence[int]) -> str:
    """`3 of 80`: (case, class) pairs without a distance of those with a Dice; empty if unknown."""
    pairs = [
        case["hd95"][k]
        for case in cases
        for k in classes
        if case.get("hd95") and k < len(case["hd95"]) and case["dice"][k] is not None
    ]
    return f"{sum(value is None for value in pairs)} of {len(pairs)}" if pairs else ""


def undefined(by_seed: Mapping[int, Row]) -> str:
    """How many distances were undefined by the rows alone, where the cases were not kept."""
    counts = values(by_seed, "hd95_undefined")
    return f"{sum(counts.values()):g}" if counts else "–"
