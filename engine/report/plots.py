"""The study's charts, drawn once with real colours (PNG) and once with CSS variables (inline SVG).

In the SVG every colour is a stand-in that is replaced by `var(--name)`, so one picture follows
the page from light to dark.
"""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim3d.engine.report.palette import LIGHT, STAND_IN, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Figure", Palette], None]


NARROW = (3.9, 2.9)
"""Size in inches of a chart on a phone: type of 8 points is then about 11 pixels tall."""


@dataclass(frozen=True)
class Drawing:
    """What a chart is drawn by, and its size in inches."""

    size: tuple[float, float]
    draw: Draw


@dataclass(frozen=True)
class Chart:
    """One figure: name of its PNG, alternative text, inline SVG, and the one that phones get."""

    name: str
    alt: str
    svg: str
    narrow_svg: str = ""


@dataclass(frozen=True)
class Plotter:
    """Draws charts: where their PNGs go, and the colours of arms given by path."""

    folder: Path
    others: Mapping[str, str] = field(default_factory=dict)

    def chart(
        self,
        name: str,
        alt: str,
        size: tuple[float, float],
        draw: Draw,
        narrow: Drawing | None = None,
    ) -> Chart:
        """Draw a chart as a PNG and as an SVG whose colours are CSS variables.

        `narrow` is what screens below 600 pixels get instead; without it they scroll.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        light = new_figure(size, draw, Palette(LIGHT, self.others))
        light.savefig(self.folder / f"{name}.png", dpi=160, facecolor="white")
        svg, small = self.inline(name, alt, size, draw), ""
        if narrow:
            small = self.inline(f"{name}-narrow", alt, narrow.size, narrow.draw)
        return Chart(name, alt, svg, small)

    def inline(self, name: str, alt: str, size: tuple[float, float], draw: Draw) -> str:
        """The chart as an <svg> element that takes its colours from the page."""
        import matplotlib as mpl

        stream = io.StringIO()
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
            figure = new_figure(size, draw, Palette(STAND_IN, self.others))
            figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        return inline_svg(stream.getvalue(), alt, name)


def new_figure(size: tuple[float, float], draw: Draw, palette: Palette) -> "Figure":
    """A figure with the fonts of all, drawn."""
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


def arms_legend(figure: Any, n_arms: int, palette: Palette) -> None:
    """One row above the panels that share it."""
    figure.legend(
        loc="outside upper center",
        ncol=min(n_arms, 3) if is_narrow(figure) else n_arms,
        frameon=False,
        fontsize=8,
        labelcolor=palette["ink"],
    )


def below_legend(figure: Any, palette: Palette, columns: int) -> None:
    """A legend below the axes, for lines that leave no room inside; one column on a phone."""
    figure.legend(
        loc="outside lower center",
        ncol=1 if is_narrow(figure) else columns,
        frameon=False,
        fontsize=8,
        labelcolor=palette["ink"],
    )


def is_narrow(figure: Any) -> bool:
    """Whether a figure is drawn for a phone."""
    return figure.get_figwidth() <= NARROW[0]


def arm_dash(arm: str) -> str:
    """Equal-FLOPs arms are dashed."""
    return "--" if arm.endswith("-flops") else "-"


def style_axes(axes: "Axes", palette: Palette, x: str, y: str) -> None:
    """Axes as every chart has them: two spines, a light horizontal grid, muted ticks."""
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
    axes.set_title(words, loc="left", fontsize=8.5, color=palette.arm(arm))
