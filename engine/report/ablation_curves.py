"""Curves of every setting of an ablation as small multiples: fine-tuning and pretext losses."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mim3d.engine.analysis.ablation import DAGGER, Ablation, Setting
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.words import arm_name
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
from mim3d.engine.study.config import Row
from mim3d.engine.study.curves import Curve, band

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, PANEL_HEIGHT, MOST_COLUMNS, FEW_COLUMNS = 8.6, 1.4, 5, 2
Panels = Mapping[str, Sequence[tuple[str, Sequence[Curve]]]]
"""By title, the curves of each arm in that panel."""


def curves_charts(study: Study, ablation: Ablation, plotter: Plotter) -> list[Chart]:
    """Fine-tuning curves of every setting: one figure where all arms have the same settings."""
    metric = str(study.about.get("metric", "Dice"))
    charts = []
    shared = same_settings(ablation)
    for arms in together(ablation):
        panels: dict[str, list[tuple[str, Sequence[Curve]]]] = {}
        for setting in (s for arm in arms for s in in_rows(ablation, arm)):
            raw = study.curves(setting.group.group, setting.arm)
            own = setting.name if setting.values else f"{arm_name(setting.arm)}, {setting.name}"
            title = own + f" {DAGGER}" * (not shared and not setting.learned)
            panels.setdefault(title, []).append((setting.arm, list(raw.values())))
        name = f"ablation-curves-{'all' if shared else arms[0]}"
        who = "every arm" if shared else " and ".join(map(arm_name, arms))
        alt = f"Validation {metric} against fine-tuning steps, {who}, every setting"
        columns = columns_of(ablation, arms[0], len(panels))
        labels = ("fine-tuning steps", f"validation {metric}")
        charts.append(multiples(name, alt, panels, columns, labels, plotter))
    return charts


def pretext_charts(study: Study, ablation: Ablation, plotter: Plotter) -> list[Chart]:
    """Pretext losses over a trivial predictor's, a panel for each pretraining of an arm."""
    charts = []
    for arm in ablation.arms:
        if len({setting.group.group.variant for setting in ablation.of(arm)}) < 2:
            continue
        panels: dict[str, list[tuple[str, Sequence[Curve]]]] = {}
        for setting in in_rows(ablation, arm):
            runs = pretrainings_of(study, setting)
            if runs:
                title = setting.name + f" {DAGGER}" * (not setting.learned)
                panels[title] = [(arm, [share_curve(run) for run in runs])]
        if not panels:
            continue
        alt = f"Pretext loss of {arm_name(arm)} over a trivial predictor's, every setting"
        columns = columns_of(ablation, arm, len(panels))
        labels = ("crops seen", "loss / trivial predictor")
        charts.append(
            multiples(f"ablation-pretext-{arm}", alt, panels, columns, labels, plotter, 1.0)
        )
    return charts


def pretrainings_of(study: Study, setting: Setting) -> list[Row]:
    """The pretrainings that a setting's cells started from and that kept a loss curve."""
    wanted = setting.arm, setting.group.group.variant
    return [
        p
        for p in study.pretraining
        if (p["arm"], p.get("variant", "")) == wanted and p.get("curve") and p.get("floor")
    ]


def share_curve(pretraining: Row) -> Curve:
    """Loss over the trivial predictor's against crops seen."""
    points = {step * pretraining["batch"]: loss for step, loss in pretraining["curve"]}
    baseline = pretraining["floor"]
    return Curve(tuple(sorted(points)), tuple(points[c] / baseline for c in sorted(points)))


def same_settings(ablation: Ablation) -> bool:
    """Whether there are several arms and all of them have the same settings."""
    first, *others = ([s.values for s in ablation.of(arm)] for arm in ablation.arms)
    return bool(others) and all(values == first for values in others)


def together(ablation: Ablation) -> list[list[str]]:
    """Arms that share a figure: all where they have the same settings, else each alone.

    An arm that nothing varies for gets a panel in every other's figure, to be compared with.
    """
    if same_settings(ablation):
        return [ablation.arms]
    fixed = [arm for arm in ablation.arms if not ablation.varied_of(arm)]
    varied = [arm for arm in ablation.arms if arm not in fixed]
    return [[arm, *fixed] for arm in varied] or [fixed]


def in_rows(ablation: Ablation, arm: str) -> list[Setting]:
    """Settings row by row: the last one varied goes down, as in the heat maps."""
    return sorted(ablation.of(arm), key=lambda s: tuple(s.values.values())[::-1])


def columns_of(ablation: Ablation, arm: str, panels: int) -> int:
    """Panels in a row: the values of the first of two settings of a whole grid, else even rows."""
    varied = ablation.varied_of(arm)
    if len(varied) == 2:
        across, down = (len({s.values[name] for s in ablation.of(arm)}) for name in varied)
        if across <= MOST_COLUMNS and across * down <= panels:
            return across
    return -(-panels // -(-panels // MOST_COLUMNS))


def multiples(
    name: str,
    alt: str,
    panels: Panels,
    columns: int,
    labels: tuple[str, str],
    plotter: Plotter,
    mark: float | None = None,
) -> Chart:
    """A small panel for each setting on common axes; a lone arm's other settings stand behind."""
    arms = list(dict.fromkeys(arm for panel in panels.values() for arm, _ in panel))
    mixed = any(len(panel) > 1 for panel in panels.values())
    others = [c for panel in panels.values() for _, curves in panel if (c := list(curves))]

    def draw(figure: Any, palette: Palette) -> None:
        from matplotlib.ticker import MaxNLocator

        across = FEW_COLUMNS if is_narrow(figure) else columns
        rows = -(-len(panels) // across)
        grid = figure.subplots(rows, across, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (title, panel) in zip(grid.flat, panels.items(), strict=False):
            style_axes(axes, palette, "", "")
            axes.set_title(
                title.replace(", ", "\n"), fontsize=7.5, color=palette["ink"], loc="left", pad=3
            )
            if mark is not None:
                axes.axhline(mark, color=palette["ink"], lw=0.8)
            for curves in () if mixed else others:
                found = band(curves)
                axes.plot(found.steps, found.mean, color=palette["muted"], lw=0.6, alpha=0.3)
            for arm, curves in panel:
                draw_runs(axes, curves, palette.arm(arm))
            axes.margins(x=0.02)
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            if mark is None:
                axes.set_ylim(bottom=0)
        label_figure(figure, grid[0, 0], palette, labels, arms if mixed else ())

    def size(width: float, across: int) -> tuple[float, float]:
        return width, PANEL_HEIGHT * -(-len(panels) // across) + 0.4 + 0.25 * mixed

    narrow = Drawing(size(NARROW[0], FEW_COLUMNS), draw)
    return plotter.chart(name, alt, size(WIDTH, columns), draw, narrow)


def label_figure(
    figure: Any, first: "Axes", palette: Palette, labels: tuple[str, str], arms: Sequence[str]
) -> None:
    """Axis titles for the whole figure, and a legend of the arms that share panels."""
    figure.supxlabel(labels[0], fontsize=8.5, color=palette["muted"])
    figure.supylabel(labels[1], fontsize=8.5, color=palette["muted"])
    if not arms:
        return
    for arm in arms:
        first.plot([], [], color=palette.arm(arm), lw=1.8, label=arm_name(arm))
    arms_legend(figure, len(arms), palette)


def draw_runs(axes: "Axes", curves: Sequence[Curve], colour: str) -> None:
    """Every seed as a thin line, their mean as a thick one."""
    for curve in curves if len(curves) > 1 else ():
        axes.plot(curve.steps, curve.values, color=colour, lw=0.6, alpha=0.5)
    if curves:
        found = band(curves)
        axes.plot(found.steps, found.mean, color=colour, lw=1.8)
