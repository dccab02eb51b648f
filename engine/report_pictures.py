"""The report's pictures as data URIs: segmentations beside the truth, reconstructions.

Pictures are kept in the report's folder of figures: results whose cells and pictures were left
behind still show them, and where there are none the report says so.
"""

import base64
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from mim3d.engine.ablation import DAGGER, Ablation
from mim3d.engine.study_pictures import Column, draw_segmentations, load_slices
from mim3d.engine.study_plan import slug
from mim3d.engine.study_results import CLASSIFY, Group, Row, Study, group_of
from mim3d.engine.study_summary import GroupSummary
from mim3d.engine.verdict import arm_name

MOST_COLUMNS, MOST_PAINTED = 6, 4
KEPT = "As drawn when the runs were at hand; they are not beside these results. "
One = TypeVar("One")


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page, or, without `data`, why there is none."""

    title: str
    data: str
    caption: str = ""


def segmentations(study: Study, group: GroupSummary, index: int, figures: Path) -> list[Picture]:
    """The first seed's predictions of every arm beside the truth."""
    if group.group.head == CLASSIFY:
        return []
    found = [(arm_name(arm.arm), group.group, arm.arm) for arm in group.arms]
    return [drawn(study, found, figures / f"segmentations-{index}.png", "")]


def ablation_segmentations(study: Study, ablation: Ablation, figures: Path) -> list[Picture]:
    """Of each arm, predictions in some of its settings, evenly chosen where there are many."""
    pictures = []
    for arm in ablation.arms:
        settings = ablation.of(arm)
        if settings[0].group.group.head == CLASSIFY:
            continue
        found = [
            (s.name.replace(", ", "\n") + f" {DAGGER}" * (not s.learned), s.group.group, arm)
            for s in spread_out(settings, MOST_COLUMNS)
        ]
        who = f"{arm_name(arm)}, {len(found)} of {len(settings)} settings. "
        pictures.append(drawn(study, found, figures / f"ablation-segmentations-{arm}.png", who))
    return pictures


def drawn(study: Study, wanted: Sequence[tuple[str, Group, str]], file: Path, who: str) -> Picture:
    """A picture with a column for each (title, group, arm) whose slices are there."""
    columns = [c for title, group, arm in wanted if (c := column(study, title, group, arm))]
    title = "Segmentations beside the truth"
    caption = (
        f"{who}Validation cases of the first seed after the last step: the slice with most "
        "labelled voxels, and the mean Dice of the whole volume."
    )
    if columns:
        draw_segmentations(file, columns)
        return embedded(file, title, caption)
    if file.exists():
        return embedded(file, title, KEPT + caption)
    return Picture(title, "", f"{who}No picture: no run kept slices beside these results.")


def column(study: Study, title: str, group: Group, arm: str) -> Column | None:
    """An arm's slices of its first seed that has some, with the Dice of the volumes."""
    rows = study.select(group, arm, "validation")
    kept = [r for r in rows if r.get("pictures") and (study.folder / r["pictures"]).exists()]
    if not kept:
        return None
    row = kept[0]
    dice = {
        case["volume"]: fmean(values)
        for case in study.cases
        if group_of(case) == group
        and (case["arm"], case["seed"], case["split"]) == (arm, row["seed"], "validation")
        and not case.get("tuning")
        and (values := [value for value in case.get("dice", ()) if value is not None])
    }
    return Column(title, load_slices(study.folder / row["pictures"]), dice)


def reconstructions(study: Study, figures: Path) -> list[Picture]:
    """What masked models painted: one picture a pretraining, some of them where there are many."""
    by_arm: dict[str, list[Row]] = {}
    for p in study.pretraining:
        if p.get("picture") and p.get("seed") in (None, first_seed(study)):
            by_arm.setdefault(p["arm"], []).append(p)
    return [
        painted(study, p, len(rows), figures)
        for rows in by_arm.values()
        for p in spread_out(rows, MOST_PAINTED)
    ]


def first_seed(study: Study) -> int | None:
    """The smallest seed of the scored runs."""
    return min((row["seed"] for row in study.scored), default=None)


def painted(study: Study, pretraining: Row, number: int, figures: Path) -> Picture:
    """The picture of one pretraining, from its run's or from an earlier report's figures."""
    variant = str(pretraining.get("variant") or "").replace("_", " ")
    title = ", ".join(filter(None, [arm_name(pretraining["arm"]), variant]))
    source = study.folder / pretraining["picture"]
    kept = figures / f"reconstruction-{slug(pretraining['arm'], variant)}.png"
    if source.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, kept)
    elif not kept.exists():
        words = f"No picture: {pretraining['picture']} is not beside these results."
        return Picture(title, "", words)
    caption = "Crops of the pretraining set: input, masked input, reconstruction."
    if pretraining.get("normalised"):
        caption += (
            " The model predicts patches of zero mean and unit deviation; each is given its true "
            "mean and deviation back, as in MAE's own pictures."
        )
    if number > MOST_PAINTED:
        caption += f" One of {MOST_PAINTED} shown of {number} settings."
    return embedded(kept, title, caption if source.exists() else KEPT + caption)


def spread_out(items: Sequence[One], most: int) -> list[One]:
    """All of a few items, else `most` at even distances, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def embedded(file: Path, title: str, caption: str = "") -> Picture:
    """A PNG as a data URI."""
    data = base64.b64encode(file.read_bytes()).decode()
    return Picture(title, f"data:image/png;base64,{data}", caption)
