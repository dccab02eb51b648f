"""The report's pictures as data URIs: segmentations beside the truth, reconstructions.

Pictures are kept in the report's folder of figures: results whose cells and pictures were left
behind still show them, and where there are none the report says so.
"""

import base64
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mim3d.engine.analysis.ablation import DAGGER, Ablation
from mim3d.engine.analysis.results import Group, Study, group_of
from mim3d.engine.analysis.summary import GroupSummary
from mim3d.engine.analysis.words import arm_name, pretrained_arm
from mim3d.engine.report.section import Picture
from mim3d.engine.study.config import CLASSIFY, Row
from mim3d.engine.study.plan import slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS, MOST_PAINTED = 6, 4
KEPT = "As drawn when the runs were at hand; they are not beside these results. "
One = TypeVar("One")


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
            for s in evenly_chosen(settings, MOST_COLUMNS)
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


def reconstructions(study: Study, figures: Path) -> list[Picture]:
    """What masked models painted: one picture a pretraining, some of them where there are many."""
    by_arm: dict[str, list[Row]] = {}
    for p in study.pretraining:
        if p.get("picture") and p.get("seed") in (None, first_seed(study)):
            by_arm.setdefault(pretrained_arm(p), []).append(p)
    return [
        painted(study, p, len(rows), figures)
        for rows in by_arm.values()
        for p in evenly_chosen(rows, MOST_PAINTED)
    ]


def first_seed(study: Study) -> int | None:
    """The smallest seed of the scored runs."""
    return min((row["seed"] for row in study.scored), default=None)


def painted(study: Study, pretraining: Row, number: int, figures: Path) -> Picture:
    """The picture of one pretraining, from its run's or from an earlier report's figures."""
    variant = str(pretraining.get("variant") or "").replace("_", " ")
    title = ", ".join(filter(None, [pretrained_arm(pretraining), variant]))
    source = study.folder / pretraining["picture"]
    name = slug(pretraining["arm"], pretraining.get("encoder", ""), variant)
    kept = figures / f"reconstruction-{name}.png"
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


def evenly_chosen(items: Sequence[One], most: int) -> list[One]:
    """All of a few items, else `most` at even distances, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def embedded(file: Path, title: str, caption: str = "") -> Picture:
    """A PNG as a data URI."""
    data = base64.b64encode(file.read_bytes()).decode()
    return Picture(title, f"data:image/png;base64,{data}", caption)


CLASS_COLOURS = ("#ffb000", "#00b4d8", "#e5548a", "#7bd389", "#b388ff", "#ff7a45")
PLATE, LABEL = "#0e1116", "#e8edf3"
MASKS = (".truth", ".prediction")
Slices = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Column:
    """One model's predictions: its title, its slices, and the Dice of whole volumes where known.

    `slices` are named `{case}.image`, `.truth`, `.prediction` (y, x) and `.volume`.
    """

    title: str
    slices: Slices
    dice: Mapping[str, float]

    def caption(self, case: str) -> str:
        """What stands below a prediction."""
        found = self.dice.get(volume_of(self.slices, case))
        return "" if found is None else f"Dice {found:.2f}"


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


def draw_segmentations(file: Path, columns: Sequence[Column]) -> None:
    """One row per case: the image, the truth, then each model's prediction, outlined by class.

    Cases are named on the left, volumes' Dice stands below predictions, classes at the bottom.
    """
    from matplotlib.figure import Figure

    first = columns[0].slices
    cases = sorted({key.split(".")[0] for key in first})
    height, width = first[f"{cases[0]}.image"].shape
    tall = min(max(height / width, 0.6), 1.6)
    size = (1.62 * (2 + len(columns)) + 0.2, 1.62 * tall * len(cases) + 0.7)
    figure = Figure(figsize=size, facecolor=PLATE, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.04, wspace=0.01, hspace=0.01)  # pyright: ignore
    grid = figure.subplots(len(cases), 2 + len(columns), squeeze=False)
    for row, case in zip(grid, cases, strict=True):
        image, truth = first[f"{case}.image"], first[f"{case}.truth"]
        draw_slice(row[0], image, None)
        draw_slice(row[1], image, truth)
        row[0].set_ylabel(volume_of(first, case), color=LABEL, fontsize=7.5)
        for axes, column in zip(row[2:], columns, strict=True):
            draw_slice(axes, image, column.slices[f"{case}.prediction"])
            axes.set_xlabel(column.caption(case), color=LABEL, fontsize=8, labelpad=2)
    for axes, title in zip(
        grid[0], ["image", "truth", *(column.title for column in columns)], strict=True
    ):
        axes.set_title(title, color=LABEL, fontsize=9)
    class_legend(figure, [column.slices for column in columns])
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, facecolor=PLATE)


def class_legend(figure: "Figure", shown: Sequence[Slices]) -> None:
    """The colour of each class in the slices, below."""
    from matplotlib.patches import Patch

    labels = [array for s in shown for key, array in s.items() if key.endswith(MASKS)]
    present = sorted({int(k) for array in labels for k in np.unique(array)} - {0})
    if present:
        figure.legend(
            handles=[Patch(color=class_colour(k), label=f"class {k}") for k in present],
            loc="outside lower center",
            ncol=len(present),
            frameon=False,
            fontsize=8.5,
            labelcolor=LABEL,
        )


def class_colour(k: int) -> str:
    """Colour of class k, from 1 on."""
    return CLASS_COLOURS[(k - 1) % len(CLASS_COLOURS)]


def volume_of(slices: Slices, case: str) -> str:
    """Name of a case's volume, its number where none was kept."""
    return str(slices.get(f"{case}.volume", f"case {case}"))


def draw_slice(axes: "Axes", image: np.ndarray, labels: np.ndarray | None) -> None:
    """A grey slice with classes filled faintly and outlined."""
    shown = image.astype(np.float32)
    low, high = np.percentile(shown, (1, 99.5))
    axes.imshow(shown, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="bicubic")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_frame_on(False)
    axes.invert_yaxis()
    if labels is None:
        return
    for k in range(1, int(labels.max()) + 1):
        mask = (labels == k).astype(np.float32)
        if mask.any():
            colour = class_colour(k)
            axes.contourf(mask, levels=[0.5, 2.0], colors=[colour], alpha=0.28)
            axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.1)


def load_slices(file: Path) -> dict[str, np.ndarray]:
    """Slices of one fine-tuning run, without unpickling anything."""
    with np.load(file, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}
