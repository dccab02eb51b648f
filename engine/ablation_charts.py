"""Charts of ablations: a heat map of two varied settings, a curve of one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mim3d.engine.study_plots import Chart, Palette, arm_colour, house, make_chart
from mim3d.engine.study_results import Study
from mim3d.engine.study_summary import GroupSummary
from mim3d.engine.verdict import arm_name

Point = tuple[Mapping[str, Any], Mapping[str, float]]
"""Settings of a variant, and by arm the mean final score."""


def ablation_charts(study: Study, groups: Sequence[GroupSummary], folder: Path) -> list[Chart]:
    """One heat map per arm that two settings vary, one chart of curves where one is varied."""
    axes_varied = list(study.about.get("ablation_axes", []))
    points = ablation_points(study, groups, axes_varied)
    if len(points) < 2:
        return []
    metric = str(study.about.get("metric", "Dice"))
    if len(axes_varied) == 1:
        return [lines_chart(points, axes_varied[0], metric, folder)]
    arms = list(dict.fromkeys(arm for _, scores in points for arm in scores))
    by_arm = [(arm, varied_of(points, arm)) for arm in arms]
    return [
        heat_chart(points, varied[0], varied[1], arm, metric, folder)
        for arm, varied in by_arm
        if len(varied) == 2
    ]


def varied_of(points: Sequence[Point], arm: str) -> list[str]:
    """The settings that take several values for an arm."""
    own = [settings for settings, scores in points if arm in scores]
    return [name for name in own[0] if len({settings[name] for settings in own}) > 1]


def ablation_points(
    study: Study, groups: Sequence[GroupSummary], varied: Sequence[str]
) -> list[Point]:
    """Settings and mean final scores of each group, labels counted as a setting."""
    variants = study.about.get("variants", {})
    points = []
    for group in groups:
        settings = dict(variants.get(group.group.variant, {}))
        settings["labels"] = group.group.labels
        settings["head"] = group.group.head
        if all(name in settings for name in varied):
            scores = {arm.arm: fmean(arm.final.values()) for arm in group.arms if arm.final}
            points.append(({name: settings[name] for name in varied}, scores))
    return points if varied else []


def heat_chart(
    points: Sequence[Point], across: str, down: str, arm: str, metric: str, folder: Path
) -> Chart:
    """Final score of one arm over two settings, each cell with its number."""
    columns = sorted({settings[across] for settings, scores in points if arm in scores})
    rows = sorted({settings[down] for settings, scores in points if arm in scores})
    table = {
        (settings[across], settings[down]): scores[arm]
        for settings, scores in points
        if arm in scores
    }
    low, high = min(table.values()), max(table.values())

    def draw(figure: Any, palette: Palette) -> None:
        axes = figure.subplots()
        house(axes, palette, words(across), words(down))
        axes.grid(visible=False)
        for (x, y), score in table.items():
            share = (score - low) / (high - low) if high > low else 0.5
            place = columns.index(x), rows.index(y)
            corner = place[0] - 0.48, place[1] - 0.48
            from matplotlib.patches import Rectangle

            alpha = 0.10 + 0.75 * share
            axes.add_patch(
                Rectangle(corner, 0.96, 0.96, color=arm_colour(arm, palette), alpha=alpha, lw=0)
            )
            ink = palette["page" if share > 0.6 else "ink"]
            axes.text(*place, f"{score:.3f}", ha="center", va="center", color=ink)
        axes.set_xticks(range(len(columns)), [f"{value}" for value in columns])
        axes.set_yticks(range(len(rows)), [f"{value}" for value in rows])
        axes.set_xlim(-0.55, len(columns) - 0.45)
        axes.set_ylim(-0.55, len(rows) - 0.45)

    alt = f"{arm_name(arm)}: final {metric} by {words(across)} and {words(down)}"
    size = (1.6 + 0.85 * len(columns), 1.2 + 0.62 * len(rows))
    return make_chart(f"ablation-{arm}", alt, size, draw, folder)


def lines_chart(points: Sequence[Point], varied: str, metric: str, folder: Path) -> Chart:
    """Final score of every arm over one setting."""
    arms = list(dict.fromkeys(arm for _, scores in points for arm in scores))

    def draw(figure: Any, palette: Palette) -> None:
        axes = figure.subplots()
        house(axes, palette, words(varied), f"final {metric}")
        ordered = sorted(points, key=lambda point: point[0][varied])
        values = [settings[varied] for settings, _ in ordered]
        for arm in arms:
            known = [(i, s[arm]) for i, (_, s) in enumerate(ordered) if arm in s]
            colour = arm_colour(arm, palette)
            axes.plot(*zip(*known, strict=True), "o-", color=colour, label=arm_name(arm))
        axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axes.legend(frameon=False, fontsize=8.5, labelcolor=palette["ink"])

    return make_chart(
        f"ablation-{varied}", f"Final {metric} by {words(varied)}", (5.2, 3.1), draw, folder
    )


def words(setting: str) -> str:
    """`mask ratio` of `mask_ratio`."""
    return setting.replace("_", " ")
