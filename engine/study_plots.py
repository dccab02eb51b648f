"""The study's charts, drawn once with real colours (PNG) and once with CSS variables (inline SVG).

In the SVG every colour is a stand-in that is replaced by `var(--name)`, so one picture follows
the page from light to dark.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mim3d.engine.curves import Band, Curve, Reach, band

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
}
LIGHT = {**INKS, **ARMS}
STAND_IN = {name: f"#0a0b{index + 16:02x}" for index, name in enumerate(LIGHT)}

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


def arm_colour(arm: str, palette: Palette) -> str:
    """Colour of an arm by its method; others take turns by name."""
    method = arm.split("-", 1)[0]
    if method in palette:
        return palette[method]
    return palette[f"other{1 + sum(map(ord, arm)) % 2}"]


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


def draw_curves(
    axes: "Axes",
    palette: Palette,
    curves: Mapping[str, Mapping[int, Curve]],
    names: Callable[[str], str],
    targets: Sequence[tuple[str, float]],
) -> None:
    """Score against steps: each arm's mean, its range over seeds, each seed as a thin line."""
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
    """Steps to one target, a dot per seed; an open arrow stands where it was not reached."""
    arms = list(reaches)
    for row, arm in enumerate(reversed(arms)):
        colour = arm_colour(arm, palette)
        for reach in reaches[arm].values():
            marker, fill = ("o", colour) if reach.reached else (">", "none")
            axes.plot(
                reach.cost, row, marker, markersize=6.5, alpha=0.85, mfc=fill, mec=colour, mew=1.2
            )
    axes.set_yticks(range(len(arms)), [names(arm) for arm in reversed(arms)])
    axes.set_ylim(-0.6, len(arms) - 0.4)
    furthest = max(reach.cost for of_seed in reaches.values() for reach in of_seed.values())
    axes.set_xlim(0, 1.05 * furthest)


def draw_ratios(
    axes: "Axes",
    palette: Palette,
    lines: Mapping[str, tuple[str, Sequence[tuple[float, float, float | None, float | None]]]],
    targets: Sequence[tuple[str, float]],
) -> None:
    """Ratio against target score: lines of (score, ratio, low, high), 1 marked."""
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
    for name, (arm, points) in lines.items():
        colour = arm_colour(arm, palette)
        scores, ratios = [p[0] for p in points], [p[1] for p in points]
        banded = [(s, low, high) for s, _, low, high in points if low and high]
        if banded:
            at, lows, highs = zip(*banded, strict=True)
            axes.fill_between(at, lows, highs, color=colour, alpha=0.12, lw=0)
        dash = "--" if "scratch" in name else "-"
        axes.plot(scores, ratios, dash, color=colour, linewidth=1.8, label=name)
    axes.set_yscale("log", base=2)
    ticks = [0.125, 0.25, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0]
    low, high = axes.get_ylim()
    low, high = min(low, 0.78), max(high, 1.28)
    axes.yaxis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set_ylim(low, high)
