"""What stands in a chart's panels: curves over seeds, steps to a target, ratios against it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mim3d.engine.report.palette import Palette
from mim3d.engine.report.plots import arm_dash
from mim3d.engine.study.curves import Band, Curve, Reach, band

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BOUND_MARKS = {"at least": "^", "at most": "v"}
SEED_SPREAD = 0.25
"""Height that the seeds of one arm are spread over: marks at the same step stay apart."""


def draw_targets(axes: "Axes", palette: Palette, targets: Sequence[tuple[str, float]]) -> None:
    """A dotted line at each target score, with its name."""
    for label, score in targets:
        axes.axhline(score, color=palette["muted"], linewidth=0.8, linestyle=(0, (1, 3)))
        axes.annotate(
            label,
            (0.004, score),
            xycoords=("axes fraction", "data"),
            ha="left",
            va="bottom",
            fontsize=7.5,
            color=palette["muted"],
        )


def draw_means(axes: "Axes", palette: Palette, curves: Mapping[str, Mapping[int, Curve]]) -> None:
    """Each arm's mean over seeds alone, to compare another with."""
    for arm, by_seed in curves.items():
        found: Band = band(list(by_seed.values()))
        colour = palette.arm(arm)
        axes.plot(found.steps, found.mean, arm_dash(arm), color=colour, linewidth=1.0)


def draw_curves(
    axes: "Axes",
    palette: Palette,
    curves: Mapping[str, Mapping[int, Curve]],
    names: Callable[[str], str],
) -> None:
    """Score against steps: each arm's mean, its range over seeds, each seed as a thin line."""
    for arm, by_seed in curves.items():
        colour = palette.arm(arm)
        found: Band = band(list(by_seed.values()))
        if len(by_seed) > 1:
            axes.fill_between(found.steps, found.low, found.high, color=colour, alpha=0.13, lw=0)
        for curve in by_seed.values():
            axes.plot(curve.steps, curve.values, color=colour, linewidth=0.6, alpha=0.45)
        axes.plot(
            found.steps, found.mean, arm_dash(arm), color=colour, linewidth=2.0, label=names(arm)
        )


def draw_reaches(
    axes: "Axes",
    palette: Palette,
    reaches: Mapping[str, Mapping[int, Reach]],
    names: Callable[[str], str],
) -> None:
    """Steps to one target, a dot per seed; open arrows stand where a cost is only a bound."""
    arms = list(reaches)
    labels: dict[str, str] = {}
    for row, arm in enumerate(reversed(arms)):
        colour, seeds = palette.arm(arm), len(reaches[arm])
        for place, reach in enumerate(reaches[arm].values()):
            marker, words = reach_mark(reach)
            labels[marker] = words
            height = row + SEED_SPREAD * (2 * place - seeds + 1) / max(seeds, 2)
            fill = colour if marker == "o" else "none"
            axes.plot(reach.cost, height, marker, markersize=5.5, alpha=0.85, mfc=fill, mec=colour)
    if set(labels) - {"o"}:
        for marker, words in sorted(labels.items()):
            fill = palette["muted"] if marker == "o" else "none"
            axes.plot([], [], marker, markersize=5.5, mfc=fill, mec=palette["muted"], label=words)
        axes.figure.legend(
            loc="outside lower center",
            ncol=len(labels),
            frameon=False,
            fontsize=8,
            labelcolor=palette["ink"],
        )
    axes.set_yticks(range(len(arms)), [names(arm) for arm in reversed(arms)])
    axes.set_ylim(-0.6, len(arms) - 0.4)
    furthest = max(reach.cost for of_seed in reaches.values() for reach in of_seed.values())
    axes.set_xlim(0, 1.05 * furthest)


def reach_mark(reach: Reach) -> tuple[str, str]:
    """Marker of a run and what it means."""
    if not reach.reached:
        return ">", "not reached by then"
    return ("<", "there by the first evaluation") if reach.early else ("o", "reached")


@dataclass(frozen=True)
class RatioPoint:
    """A ratio at one target score, with the interval and the kind of bound of `PairedRatio`."""

    score: float
    ratio: float
    low: float | None
    high: float | None
    bound: str


def line_style(name: str) -> str | tuple[float, tuple[float, ...]]:
    """Of a comparison: solid over SimCLR, dashed over scratch, both broken by dots at equal FLOPs.

    Two budgets of one method have one colour.
    """
    if "scratch" in name:
        return (0, (4, 2, 1, 2, 1, 2)) if "FLOPs" in name else "--"
    return "-." if "FLOPs" in name else "-"


def draw_ratios(
    axes: "Axes",
    palette: Palette,
    lines: Mapping[str, tuple[str, Sequence[RatioPoint]]],
    targets: Sequence[tuple[str, float]],
    all_bands: bool = False,
    fixed: tuple[str, float] | None = None,
) -> None:
    """Ratio against target score, 1 marked: exact ones as a line, bounds as triangles.

    Bands are of solid lines alone where there are any, unless `all_bands`. `fixed` is a target
    named along its line, for it may stand close to another.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.axhline(1.0, color=palette["ink"], linewidth=0.9)
    for index, (label, score) in enumerate(targets):
        axes.axvline(score, color=palette["muted"], linewidth=0.8, linestyle=(0, (1, 3)))
        axes.annotate(
            label,
            (score, 1.0),
            xycoords=("data", "axes fraction"),
            ha="left" if index == len(targets) - 1 else "right",
            va="bottom",
            fontsize=7.5,
            color=palette["muted"],
        )
    if fixed:
        axes.axvline(fixed[1], color=palette["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(
            f"{fixed[0]} ",
            (fixed[1], 0.02),
            xycoords=("data", "axes fraction"),
            rotation=90,
            ha="right",
            va="bottom",
            fontsize=7.5,
            color=palette["muted"],
        )
    solid = [name for name in lines if line_style(name) == "-"]
    with_bands = list(lines) if all_bands else solid or list(lines)
    for name, (arm, points) in lines.items():
        colour = palette.arm(arm)
        banded = [(p.score, p.low, p.high) for p in points if p.low and p.high]
        if banded and name in with_bands:
            at, lows, highs = zip(*banded, strict=True)
            axes.fill_between(at, lows, highs, color=colour, alpha=0.12, lw=0)
        dash = line_style(name)
        exact = [(p.score, p.ratio if p.bound == "exact" else math.nan) for p in points]
        axes.plot(
            *zip(*exact, strict=True), linestyle=dash, color=colour, linewidth=1.8, label=name
        )
        for bound, marker in BOUND_MARKS.items():
            marked = [(p.score, p.ratio) for p in points if p.bound == bound]
            if marked:
                fill = "none" if "scratch" in name else colour
                at, ratios = zip(*marked, strict=True)
                axes.plot(at, ratios, marker, markersize=4, mfc=fill, mec=colour, mew=0.9)
    axes.set_yscale("log", base=2)
    ticks = [0.125, 0.25, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0]
    low, high = axes.get_ylim()
    low, high = min(low, 0.78), max(high, 1.28)
    axes.yaxis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set_ylim(low, high)
