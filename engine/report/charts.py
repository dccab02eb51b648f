"""Which charts a study's report shows."""

from collections.abc import Sequence
from pathlib import Path

from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.summary import GroupSummary, primary_target
from mim3d.engine.analysis.verdict import primary_share
from mim3d.engine.analysis.words import arm_name
from mim3d.engine.report.plots import (
    Chart,
    Palette,
    RatioPoint,
    arm_colour,
    arm_dash,
    draw_curves,
    draw_means,
    draw_ratios,
    draw_reaches,
    draw_targets,
    house,
    legend,
    make_chart,
    panel_title,
)
from mim3d.engine.study.config import Row

WIDE, HALF = (8.6, 3.7), (5.2, 3.1)
MOST_BANDS = 2
"""Arms whose bands one panel can hold: more make mud, so each gets a panel of its own."""


def curves_chart(study: Study, group: GroupSummary, index: int, folder: Path) -> Chart | None:
    """Score against fine-tuning steps with the spread over seeds; None where nothing was scored."""
    metric = study.about.get("metric", "Dice")
    found = {arm: study.curves(group.group, arm) for arm in study.arms(group.group)}
    shown = {arm: curves for arm, curves in found.items() if curves}
    if not shown:
        return None
    targets = target_lines(group)

    panels = [[arm] for arm in shown] if len(shown) > MOST_BANDS else [list(shown)]

    def draw(figure, palette: Palette) -> None:  # noqa: ANN001
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, own in zip(row, panels, strict=True):
            first = axes is row[0]
            house(axes, palette, "fine-tuning steps", f"validation {metric}" if first else "")
            draw_targets(axes, palette, targets if first else [("", score) for _, score in targets])
            draw_means(axes, palette, {a: c for a, c in shown.items() if a not in own})
            draw_curves(axes, palette, {arm: shown[arm] for arm in own}, arm_name)
            axes.margins(x=0)
            axes.set_ylim(bottom=0)
            if len(panels) > 1:
                panel_title(axes, palette, own[0], arm_name(own[0]))
                axes.set_xlabel("steps", color=palette["muted"], fontsize=8.5)
            else:
                legend(axes, palette)

    alt = (
        f"{metric} against fine-tuning steps, {group.group.title}: mean over seeds, their range as "
        "a band, each seed as a thin line, as scored (crossings are read off smoothed curves)"
    )
    if len(panels) > 1:
        alt += "; in each panel the means of the other arms without their seeds"
    return make_chart(f"curves-{index}", alt, WIDE, draw, folder)


def target_lines(group: GroupSummary) -> list[tuple[str, float]]:
    """Names and scores of the targets that are any."""
    return [(f"{100 * t.share:g} %", t.score) for t in group.targets if not t.refused]


def reaches_chart(study: Study, group: GroupSummary, index: int, folder: Path) -> Chart | None:
    """Steps each seed needed to the primary target; None where that is refused."""
    target = primary_target(group.targets, primary_share(study))
    reaches = {arm.arm: arm.reaches[target.share] for arm in group.arms}
    if not any(reaches.values()):
        return None

    def draw(figure, palette: Palette) -> None:  # noqa: ANN001
        axes = figure.subplots()
        house(axes, palette, f"steps to {100 * target.share:g} % ({target.score:.3f})", "")
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=palette["grid"], linewidth=0.7)
        axes.tick_params(axis="y", labelsize=9, labelcolor=palette["ink"])
        draw_reaches(axes, palette, reaches, arm_name)

    alt = f"Steps to {100 * target.share:g} % of the reference, a mark per seed"
    return make_chart(f"steps-{index}", alt, HALF, draw, folder)


def ratios_chart(study: Study, group: GroupSummary, index: int, folder: Path) -> Chart | None:
    """Ratio of steps against the target score; None where no ratio exists at all."""
    lines = {}
    for comparison in group.comparisons:
        points = [
            RatioPoint(score, found.ratio, found.low, found.high, found.bound)
            for score, found in comparison.along
            if found.ratio is not None
        ]
        if points:
            name = f"{arm_name(comparison.first)} over {arm_name(comparison.second)}"
            lines[name] = (comparison.first, points)
    if not lines:
        return None
    targets = target_lines(group)
    metric = study.about.get("metric", "Dice")

    def draw(figure, palette: Palette) -> None:  # noqa: ANN001
        axes = figure.subplots()
        house(axes, palette, f"target {metric}", "speed-up, geometric mean")
        draw_ratios(axes, palette, lines, targets)
        figure.legend(
            loc="outside lower center",
            ncol=2,
            frameon=False,
            fontsize=8,
            labelcolor=palette["ink"],
        )

    alt = (
        "Speed-up against the target score; above 1 the first arm is faster. Bands: 95 % t "
        "intervals, of solid lines alone where there are any. Where an arm is censored in some "
        "seeds, a triangle is a bound: ▲ at least, ▼ at most. No mark: bounds point both ways"
    )
    return make_chart(f"ratios-{index}", alt, HALF, draw, folder)


def pretext_chart(pretraining: Sequence[Row], folder: Path) -> Chart | None:
    """Pretext losses as shares of what knowing nothing gives, against crops seen."""
    shown = [p for p in pretraining if p.get("curve") and p.get("floor")]
    if not shown:
        return None

    def draw(figure, palette: Palette) -> None:  # noqa: ANN001
        axes = figure.subplots()
        house(axes, palette, "crops seen", "pretext loss / trivial predictor")
        axes.axhline(1.0, color=palette["ink"], linewidth=0.9)
        told: set[str] = set()
        for entry in shown:
            arm = entry["arm"]
            crops = [step * entry["batch"] for step, _ in entry["curve"]]
            shares = [loss / entry["floor"] for _, loss in entry["curve"]]
            label = None if arm in told else arm_name(arm)
            told.add(arm)
            colour, dash = arm_colour(arm, palette), arm_dash(arm)
            axes.plot(crops, shares, dash, color=colour, linewidth=1.6, label=label)
        axes.margins(x=0)
        axes.legend(loc="upper right", frameon=False, fontsize=8.5, labelcolor=palette["ink"])

    return make_chart(
        "pretext",
        "Pretext loss over that of a trivial predictor, by crops seen",
        HALF,
        draw,
        folder,
    )
