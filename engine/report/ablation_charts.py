"""Charts of ablations: heat maps of two varied settings, lines of one.

All heat maps of one outcome share one colour scale, which is never narrower than the seeds' noise
allows; a setting that did not learn its pretext task is left uncoloured, in a dashed frame.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any

from mim3d.engine.analysis.ablation import DAGGER, Ablation, Setting, pooled_spread, words
from mim3d.engine.analysis.naming import capital
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.words import arm_name, median_reach
from mim3d.engine.report.palette import Palette
from mim3d.engine.report.plots import (
    NARROW,
    Chart,
    Drawing,
    Plotter,
    arms_legend,
    is_narrow,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NARROWEST = 0.1
"""Least width of the colour scale, in score."""
NOISES = 6.0
"""Standard deviations over seeds that the colour scale spans at least."""
HALF = (5.2, 3.1)


@dataclass(frozen=True)
class Scale:
    """Scores at the ends of the colour scale, and the seeds' standard deviation where known."""

    low: float
    high: float
    noise: float | None

    def share(self, score: float) -> float:
        """Where a score stands, 0 to 1."""
        return min(max((score - self.low) / (self.high - self.low), 0.0), 1.0)


@dataclass(frozen=True)
class Outcome:
    """What a chart shows of each setting, by seed; `name` is in the chart's."""

    name: str
    words: str
    of: Callable[[Setting], Mapping[int, float]]

    def mean(self, setting: Setting) -> float | None:
        """Over the seeds; None without any."""
        return fmean(self.of(setting).values()) if self.of(setting) else None


def outcomes(metric: str) -> tuple[Outcome, Outcome]:
    """The area, which is tested, and the final score."""
    area = Outcome("area-", f"area under the {metric} curve", lambda setting: setting.summary.area)
    return area, Outcome("", f"final {metric}", lambda setting: setting.final)


def scale_of(ablation: Ablation, outcome: Outcome) -> Scale:
    """One scale for every arm: from the lowest to the highest score, widened where that is little.

    A scale stretched over differences within the seeds' noise would make them look decisive.
    """
    scores = [m for s in ablation.settings if (m := outcome.mean(s)) is not None] or [0.0]
    noise = pooled_spread([outcome.of(setting) for setting in ablation.settings])
    low, high = min(scores), max(scores)
    wanted = max(high - low, NARROWEST, NOISES * (noise or 0.0))
    low = max(0.0, min((low + high - wanted) / 2, 1.0 - wanted))
    return Scale(low, low + wanted, noise)


def scale_in_words(ablation: Ablation, metric: str) -> str:
    """How to read the charts of an ablation."""
    parts = []
    if any(len(ablation.varied_of(arm)) == 2 for arm in ablation.arms):
        scales = [(outcome.words, scale_of(ablation, outcome)) for outcome in outcomes(metric)]
        shown = ", ".join(f"{what} {s.low:.3f} to {s.high:.3f}" for what, s in scales)
        parts.append(
            f"All maps of one outcome share one colour scale ({shown}), at least {NARROWEST:g} and "
            f"{NOISES:g} standard deviations over seeds wide, so that noise does not look like a "
            "difference; ± is the deviation over "
            "seeds. Outlined: the highest of those that learned, whatever its lead. Steps are "
            "coloured from the whole budget (pale) to none."
        )
    if any(len(ablation.varied_of(arm)) == 1 for arm in ablation.arms):
        parts.append(
            "Lines: mean over seeds with bars of one standard deviation, median of the steps; "
            "small dots are seeds, open triangles seeds that did not reach the target."
        )
    if any(not setting.learned for setting in ablation.settings):
        parts.append(
            f"{DAGGER} (dashed or hollow): the pretext task was not learned, so the setting is "
            "shown but not ranked."
        )
    return f"{' '.join(parts)} Target of the steps: {ablation.target}."


def ablation_charts(study: Study, ablation: Ablation, plotter: Plotter) -> list[Chart]:
    """Area, final score and steps: a heat map for each arm that two settings vary, else lines."""
    metric = str(study.about.get("metric", "Dice"))
    charts = []
    crossed = [arm for arm in ablation.arms if len(ablation.varied_of(arm)) == 2]
    for arm in crossed:
        charts += [score_map(ablation, arm, outcome, plotter) for outcome in outcomes(metric)]
        charts += [steps_map(ablation, arm, plotter)] * any(s.reaches for s in ablation.of(arm))
    names = {tuple(v) for arm in ablation.arms if len(v := ablation.varied_of(arm)) == 1}
    for (name,) in sorted(names):
        charts += [score_lines(ablation, name, outcome, plotter) for outcome in outcomes(metric)]
        charts += [steps_lines(ablation, name, plotter)] * any(s.reaches for s in ablation.settings)
    return charts


def score_map(ablation: Ablation, arm: str, outcome: Outcome, plotter: Plotter) -> Chart:
    """An outcome of an arm over its two settings; the highest that learned is outlined."""
    scale = scale_of(ablation, outcome)
    learned = [s for s in ablation.of(arm) if s.learned and outcome.of(s)]
    highest = max(learned, key=lambda s: outcome.mean(s) or 0.0) if len(learned) > 1 else None

    def cell(setting: Setting) -> tuple[str, float | None]:
        mean, values = outcome.mean(setting), outcome.of(setting).values()
        if mean is None:
            return "–", None
        deviation = f"\n± {stdev(values):.3f}" if len(values) > 1 else ""
        return f"{mean:.3f}{deviation}", scale.share(mean)

    def below(axes: "Axes", palette: Palette) -> None:
        draw_scale(axes, palette, arm, scale)

    across, down = ablation.varied_of(arm)
    alt = f"{arm_name(arm)}: {outcome.words} by {words(across)} and {words(down)}"
    name = f"ablation-{outcome.name}{arm}"
    return heat_map(ablation, arm, name, alt, cell, plotter, below, highest)


def steps_map(ablation: Ablation, arm: str, plotter: Plotter) -> Chart:
    """Steps to the target of an arm over its two settings, coloured from 0 to the budget."""

    def cell(setting: Setting) -> tuple[str, float | None]:
        runs = list(setting.reaches.values())
        if not runs or not any(run.reached for run in runs):
            return median_reach(setting.reaches).replace(" (", "\n("), None
        cost, budget = median(run.cost for run in runs), setting.budget
        return median_reach(setting.reaches).replace(" (", "\n("), 1.0 - min(cost / budget, 1.0)

    across, down = ablation.varied_of(arm)
    alt = f"{arm_name(arm)}: steps to the target by {words(across)} and {words(down)}"
    return heat_map(ablation, arm, f"ablation-steps-{arm}", alt, cell, plotter)


def heat_map(
    ablation: Ablation,
    arm: str,
    name: str,
    alt: str,
    cell: Callable[[Setting], tuple[str, float | None]],
    plotter: Plotter,
    below: "Callable[[Axes, Palette], None] | None" = None,
    highest: Setting | None = None,
) -> Chart:
    """A cell for each setting, and beside them arms that the settings do not vary.

    `cell` gives a setting's text and how strongly it is coloured (0 to 1, None not at all).
    """
    across, down = ablation.varied_of(arm)
    columns = sorted({s.values[across] for s in ablation.of(arm)})
    rows = sorted({s.values[down] for s in ablation.of(arm)})
    beside = [s for s in ablation.settings if not ablation.varied_of(s.arm)]
    placed = [
        (columns.index(s.values[across]), rows.index(s.values[down]), s) for s in ablation.of(arm)
    ]
    placed += [(len(columns) + 0.45, index, s) for index, s in enumerate(beside)]
    width = len(columns) + 1.45 * bool(beside)
    size = (1.1 + 0.86 * width, 1.15 + 0.56 * len(rows) + 0.62 * (below is not None))

    def draw(figure: Any, palette: Palette) -> None:
        ratios = [len(rows), 0.3] if below else [1]
        parts = figure.subplots(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
        axes = parts[0]
        style_axes(axes, palette, words(across), words(down))
        axes.grid(visible=False)
        for x, y, setting in placed:
            text, share = cell(setting)
            colour = palette.arm(setting.arm)
            draw_cell(axes, palette, (x, y), text, share, colour, setting, setting is highest)
        ticks: dict[float, str] = {i: f"{value:g}" for i, value in enumerate(columns)}
        if beside:
            ticks[len(columns) + 0.45] = f"{arm_name(beside[0].arm)},\n{beside[0].name}"
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
        axes.set_xlim(-0.55, width - 0.45)
        axes.set_ylim(-0.55, len(rows) - 0.45)
        if below:
            below(parts[1], palette)

    return plotter.chart(name, alt, size, draw, Drawing((NARROW[0], size[1]), draw))


def draw_cell(
    axes: "Axes",
    palette: Palette,
    place: tuple[float, float],
    text: str,
    share: float | None,
    colour: str,
    setting: Setting,
    outlined: bool,
) -> None:
    """One setting: coloured where it learned, in a dashed frame with a dagger where not."""
    from matplotlib.patches import Rectangle

    size = 6.5 if is_narrow(axes.get_figure()) else 8  # five columns fit a phone
    corner = place[0] - 0.47, place[1] - 0.46
    ink = palette["ink"]
    if not setting.learned:
        frame = {"fill": False, "ec": palette["muted"], "lw": 0.9, "ls": (0, (3, 2))}
        text, ink = f"{text} {DAGGER}" if "\n" not in text else daggered(text), palette["muted"]
    else:
        strength = 0.06 if share is None else 0.10 + 0.75 * share
        frame = {"color": colour, "alpha": strength, "lw": 0}
        ink = palette["page" if share is not None and share > 0.7 else "ink"]
    axes.add_patch(Rectangle(corner, 0.94, 0.92, **frame))
    if outlined:
        axes.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, ec=palette["ink"], lw=1.6))
    axes.text(*place, text, ha="center", va="center", color=ink, fontsize=size, linespacing=1.15)


def daggered(text: str) -> str:
    """The dagger behind the first of two lines."""
    first, rest = text.split("\n", 1)
    return f"{first} {DAGGER}\n{rest}"


def draw_scale(axes: "Axes", palette: Palette, arm: str, scale: Scale) -> None:
    """The colour scale with its ends, and how far seeds of one setting stand apart on it."""
    from matplotlib.patches import Rectangle

    steps, colour = 40, palette.arm(arm)
    for k in range(steps):
        alpha = 0.10 + 0.75 * (k + 0.5) / steps
        axes.add_patch(Rectangle((k / steps, 0.0), 1 / steps, 1.0, color=colour, alpha=alpha, lw=0))
    axes.set_xlim(0, 1)
    axes.set_ylim(-1.5, 1.1)
    axes.set_axis_off()
    small = {"fontsize": 7.5, "color": palette["muted"], "va": "top"}
    axes.text(0.0, -0.25, f"{scale.low:.3f}", ha="left", **small)
    axes.text(1.0, -0.25, f"{scale.high:.3f}", ha="right", **small)
    label = "one seed: noise not known"
    if scale.noise is not None:
        half = min(scale.noise / (scale.high - scale.low), 0.5)
        axes.plot([0.5 - half, 0.5 + half], [0.5, 0.5], "|-", color=palette["ink"], lw=1.2, ms=7)
        label = f"|–| seeds, ± {scale.noise:.3f}"
    axes.text(0.5, -0.25, label, ha="center", **small)


def score_lines(ablation: Ablation, name: str, outcome: Outcome, plotter: Plotter) -> Chart:
    """An outcome of every arm over one setting, a dot per seed and bars of one deviation."""

    def draw(figure: Any, palette: Palette) -> None:
        axes = figure.subplots()
        style_axes(axes, palette, words(name), outcome.words)

        def point(x: float, setting: Setting, colour: str) -> float | None:
            mean, numbers = outcome.mean(setting), list(outcome.of(setting).values())
            if mean is None:
                return None
            if len(numbers) > 1:
                axes.errorbar(x, mean, stdev(numbers), color=colour, lw=1.1, capsize=2)
            axes.plot([x] * len(numbers), numbers, ".", color=colour, alpha=0.45, ms=4)
            return mean

        draw_lines(figure, axes, palette, ablation, name, point)
        axes.set_ylim(bottom=0)

    alt = f"{capital(outcome.words)} by {words(name)}"
    return plotter.chart(f"ablation-{outcome.name}{name}", alt, HALF, draw, Drawing(NARROW, draw))


def steps_lines(ablation: Ablation, name: str, plotter: Plotter) -> Chart:
    """Median steps to the target over one setting; open triangles are seeds that missed it."""

    def draw(figure: Any, palette: Palette) -> None:
        axes = figure.subplots()
        style_axes(axes, palette, words(name), "steps to the target")

        def point(x: float, setting: Setting, colour: str) -> float | None:
            for run in setting.reaches.values():
                mark = "." if run.reached else "^"
                face = colour if run.reached else "none"
                axes.plot(x, run.cost, mark, mec=colour, mfc=face, alpha=0.6, ms=5)
            runs = setting.reaches.values()
            middle = median(run.cost if run.reached else math.inf for run in runs) if runs else 0.0
            return middle if 0 < middle < math.inf else None

        draw_lines(figure, axes, palette, ablation, name, point)
        axes.set_ylim(bottom=0)

    alt = f"Steps to the target by {words(name)}"
    return plotter.chart(f"ablation-steps-{name}", alt, HALF, draw, Drawing(NARROW, draw))


def draw_lines(
    figure: Any,
    axes: "Axes",
    palette: Palette,
    ablation: Ablation,
    name: str,
    point: Callable[[float, Setting, str], float | None],
) -> None:
    """A line per arm over the values in order; hollow where the pretext task was not learned.

    `point` draws a setting's seeds at x and gives its height, None where it has none.
    """
    touched = [s for s in ablation.settings if name in s.values]
    values = sorted({s.values[name] for s in touched})
    arms = [arm for arm in ablation.arms if any(s.arm == arm for s in touched)]
    for turn, arm in enumerate(arms):
        colour = palette.arm(arm)
        aside = 0.09 * (turn - (len(arms) - 1) / 2)
        found = [(s, values.index(s.values[name]) + aside) for s in ablation.of(arm)]
        known = [(x, y, s) for s, x in found if (y := point(x, s, colour)) is not None]
        label = arm_name(arm) + f" {DAGGER}" * (not all(s.learned for s, _ in found))
        axes.plot([x for x, *_ in known], [y for _, y, _ in known], color=colour, lw=1.5)
        for x, y, s in known:
            face = colour if s.learned else palette["page"]
            axes.plot(x, y, "o", mec=colour, mfc=face, ms=5.5, mew=1.3)
        axes.plot([], [], "o-", color=colour, label=label)
    axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axes.set_xlim(-0.35, len(values) - 0.65)
    arms_legend(figure, len(arms), palette)
