"""The study's charts, drawn once with real colours (PNG) and once with CSS variables (inline SVG).

In the SVG every colour is a stand-in that is replaced by `var(--name)`, so one picture follows
the page from light to dark.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim3d.engine.study.curves import Band, Curve, Reach, band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INKS = {"ink": "#1c2430", "muted": "#6b7583", "grid": "#dfe4ea", "page": "#ffffff"}
ARMS = {
    "scratch": "#6b7583",
    "simclr": "#c8561b",
    "mae": "#1f62c4",
    "simmim": "#1b8a5a",
    "other1": "#8a4bbf",
    "other2": "#b03a6f",
    "other3": "#0f7f8c",
    "other4": "#8a6d00",
    "other5": "#5a54d6",
    "other6": "#6b4a2f",
}
N_OTHERS = sum(name.startswith("other") for name in ARMS)
LIGHT = {**INKS, **ARMS}
STAND_IN = {name: f"#0a0b{index + 16:02x}" for index, name in enumerate(LIGHT)}
BOUND_MARKS = {"at least": "^", "at most": "v"}
SEED_SPREAD = 0.25
"""Height that the seeds of one arm are spread over: marks at the same step stay apart."""
Palette = Mapping[str, str]
Draw = Callable[["Figure", Palette], None]


@dataclass(frozen=True)
class Chart:
    """One figure: name of its PNG, alternative text, inline SVG."""

    name: str
    alt: str
    svg: str


def make_chart(name: str, alt: str, size: tuple[float, float], draw: Draw, folder: Path) -> Chart:
    """Draw a chart twice: a PNG into `folder`, and an SVG whose colours are CSS variables."""
    folder.mkdir(parents=True, exist_ok=True)
    new_figure(size, draw, LIGHT).savefig(folder / f"{name}.png", dpi=160, facecolor="white")
    stream = io.StringIO()
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure = new_figure(size, draw, STAND_IN)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return Chart(name, alt, inline_svg(stream.getvalue(), alt, name))


def new_figure(size: tuple[float, float], draw: Draw, palette: Palette) -> "Figure":
    """A figure in the house style, drawn."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.family": "sans-serif", "font.size": 9, "axes.titlesize": 9.5}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, palette)
    return figure


def inline_svg(text: str, alt: str, name: str) -> str:
    """The <svg> element alone: fluid width, page fonts, colours by name, ids of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for colour, stand_in in STAND_IN.items():
        text = text.replace(stand_in, f"var(--{colour})")
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1; font-family: inherit", text)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\1{name}-", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{alt}"', 1)


DEALT: dict[str, str] = {}
"""Colour names of arms given by path, as `deal_colours` dealt them last."""


def deal_colours(arms: Sequence[str]) -> None:
    """Give arms of no known method a colour each, in their order: called when a report begins."""
    others = [arm for arm in arms if method_colour(arm) is None]
    DEALT.clear()
    DEALT.update({arm: f"other{1 + turn % N_OTHERS}" for turn, arm in enumerate(others)})


def method_colour(arm: str) -> str | None:
    """Colour name of an arm's method, None where its name tells none."""
    method = arm.split("-", 1)[0]
    return method if method in ARMS and not method.startswith("other") else None


def arms_legend(figure: Any, n_arms: int, palette: Palette) -> None:
    """One row above the panels that share it."""
    figure.legend(
        loc="outside upper center",
        ncol=n_arms,
        frameon=False,
        fontsize=8,
        labelcolor=palette["ink"],
    )


def arm_colour(arm: str, palette: Palette) -> str:
    """Colour of an arm by its method; others take those that `deal_colours` gave them."""
    return palette[method_colour(arm) or DEALT.get(arm, "other1")]


def arm_dash(arm: str) -> str:
    """Equal-FLOPs arms are dashed."""
    return "--" if arm.endswith("-flops") else "-"


def house(axes: "Axes", palette: Palette, x: str, y: str) -> None:
    """Axes of the house: two spines, a light horizontal grid, muted ticks."""
    axes.set_facecolor("none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(palette["grid"])
    axes.grid(axis="y", color=palette["grid"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=palette["muted"], length=0, labelsize=8)
    axes.set_xlabel(x, color=palette["muted"], fontsize=8.5)
    axes.set_ylabel(y, color=palette["muted"], fontsize=8.5)


def legend(axes: "Axes", palette: Palette) -> None:
    """A legend without a frame, below on the right, where learning curves leave room."""
    axes.legend(loc="lower right", frameon=False, fontsize=8.5, labelcolor=palette["ink"])


def panel_title(axes: "Axes", palette: Palette, arm: str, name: str) -> None:
    """The arm of a panel, what its name has in brackets on a line of its own."""
    first, _, rest = name.partition(" (")
    words = f"{first}\n({rest}" if rest else first
    axes.set_title(words, loc="left", fontsize=8.5, color=arm_colour(arm, palette))


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
        colour = arm_colour(arm, palette)
        axes.plot(found.steps, found.mean, arm_dash(arm), color=colour, linewidth=1.0)


def draw_curves(
    axes: "Axes",
    palette: Palette,
    curves: Mapping[str, Mapping[int, Curve]],
    names: Callable[[str], str],
) -> None:
    """Score against steps: each arm's mean, its range over seeds, each seed as a thin line."""
    for arm, by_seed in curves.items():
        colour = arm_colour(arm, palette)
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
    told: dict[str, str] = {}
    for row, arm in enumerate(reversed(arms)):
        colour, seeds = arm_colour(arm, palette), len(reaches[arm])
        for place, reach in enumerate(reaches[arm].values()):
            marker, words = reach_mark(reach)
            told[marker] = words
            height = row + SEED_SPREAD * (2 * place - seeds + 1) / max(seeds, 2)
            fill = colour if marker == "o" else "none"
            axes.plot(reach.cost, height, marker, markersize=5.5, alpha=0.85, mfc=fill, mec=colour)
    if set(told) - {"o"}:
        for marker, words in sorted(told.items()):
            fill = palette["muted"] if marker == "o" else "none"
            axes.plot([], [], marker, markersize=5.5, mfc=fill, mec=palette["muted"], label=words)
        axes.figure.legend(
            loc="outside lower center",
            ncol=len(told),
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
) -> None:
    """Ratio against target score, 1 marked: exact ones as a line, bounds as triangles."""
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
    solid = [name for name in lines if line_style(name) == "-"]
    with_bands = solid or list(lines)
    for name, (arm, points) in lines.items():
        colour = arm_colour(arm, palette)
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
