"""One group of cells: learning curves, what each arm needed and ended with, segmentations."""

from mim3d.engine.analysis.family import primary_share
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.summary import ArmSummary, GroupSummary, primary_target
from mim3d.engine.analysis.words import arm_name, median_reach, plus_minus
from mim3d.engine.report.palette import Palette
from mim3d.engine.report.panels import draw_curves, draw_means, draw_reaches, draw_targets
from mim3d.engine.report.pictures import segmentations
from mim3d.engine.report.plots import (
    NARROW,
    Chart,
    Drawing,
    Plotter,
    is_narrow,
    legend,
    panel_title,
    style_axes,
)
from mim3d.engine.report.scores import final_table, seeds_differ
from mim3d.engine.report.section import Block, Charts, Content, Section, Table
from mim3d.engine.report.speedup import ratios_chart, speedup_table, target_lines

WIDE, HALF = (8.6, 3.7), (5.2, 3.1)
MOST_BANDS = 2
"""Arms whose bands one panel can hold: more make mud, so each gets a panel of its own."""


def finetuning_sections(content: Content) -> list[Section]:
    """A section for each group of cells that is compared within itself."""
    return [
        group_section(content, group, index) for index, group in enumerate(content.shown_groups)
    ]


def group_section(content: Content, group: GroupSummary, index: int) -> Section:
    """Everything about one group but its cost."""
    study, plotter = content.study, content.plotter
    curves = curves_chart(study, group, index, plotter)
    small = (
        reaches_chart(study, group, index, plotter),
        ratios_chart(study, group, index, plotter),
    )
    blocks: list[Block] = [Charts((curves,))] if curves else []
    if found := tuple(chart for chart in small if chart is not None):
        blocks.append(Charts(found, paired=True))
    blocks.append(reaches_table(group))
    if group.comparisons:
        blocks.append(speedup_table(group, content.ablation is not None))
    scores = final_table(study, group)
    blocks += [scores] if scores else []
    blocks += segmentations(study, group, index, plotter.folder)
    return Section(f"Fine-tuning: {group.group.title}", tuple(blocks))


def curves_chart(study: Study, group: GroupSummary, index: int, plotter: Plotter) -> Chart | None:
    """Score against fine-tuning steps with the spread over seeds; None where nothing was scored."""
    metric = study.about.get("metric", "Dice")
    found = {arm: study.curves(group.group, arm) for arm in study.arms(group.group)}
    shown = {arm: curves for arm, curves in found.items() if curves}
    if not shown:
        return None
    targets = target_lines(group)

    panels = [[arm] for arm in shown] if len(shown) > MOST_BANDS else [list(shown)]

    def draw(figure, palette: Palette) -> None:  # noqa: ANN001
        shape = (len(panels), 1) if is_narrow(figure) else (1, len(panels))
        row = figure.subplots(*shape, sharey=True, squeeze=False).flat
        for axes, own in zip(row, panels, strict=True):
            first = own is panels[0] or is_narrow(figure)
            style_axes(axes, palette, "fine-tuning steps", f"validation {metric}" if first else "")
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
    stacked = Drawing((NARROW[0], 2.1 * len(panels) + 0.4), draw)
    return plotter.chart(f"curves-{index}", alt, WIDE, draw, stacked)


def reaches_chart(study: Study, group: GroupSummary, index: int, plotter: Plotter) -> Chart | None:
    """Steps each seed needed to the primary target; None where that is refused."""
    target = primary_target(group.targets, primary_share(study))
    reaches = {arm.arm: arm.reaches[target.share] for arm in group.arms}
    if not any(reaches.values()):
        return None

    def draw(figure, palette: Palette) -> None:  # noqa: ANN001
        axes = figure.subplots()
        style_axes(axes, palette, f"steps to {100 * target.share:g} % ({target.score:.3f})", "")
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=palette["grid"], linewidth=0.7)
        axes.tick_params(axis="y", labelsize=9, labelcolor=palette["ink"])
        draw_reaches(axes, palette, reaches, arm_name)

    alt = f"Steps to {100 * target.share:g} % of the reference, a mark per seed"
    return plotter.chart(f"steps-{index}", alt, HALF, draw, Drawing(NARROW, draw))


def reaches_table(group: GroupSummary) -> Table:
    """Median steps to each target with the fraction of seeds that reached it, and final scores."""
    header = (
        "arm",
        *(f"steps to {100 * t.share:g} % ({t.score:.3f})" for t in group.targets),
        "area under curve",
        "final score",
    )
    rows = tuple(_arm_row(arm, group) for arm in group.arms)
    note = (
        "Median over seeds of the first crossing of the smoothed validation curve, and how many "
        "seeds reached it; unreached counts as more than the budget (of two middle runs, one of "
        "them unreached, > stands before their mean), ≤ marks a median run that was there by the "
        "first evaluation. Final scores are of "
        "the test subjects where there are any, mean ± standard deviation over seeds."
    )
    refused = list(dict.fromkeys(t.refused for t in group.targets if t.refused))
    if refused:
        note += f" No steps where a share {'; '.join(refused)}."
    if group.untrained:
        note += " † did not learn its pretext task, so it is shown but compared with nobody."
    return Table("What each arm needed", header, rows, note + seeds_differ(group))


def _arm_row(arm: ArmSummary, group: GroupSummary) -> tuple[str, ...]:
    return (
        arm_name(arm.arm) + (" †" if arm.arm in group.untrained else ""),
        *(median_reach(arm.reaches[target.share]) for target in group.targets),
        plus_minus(arm.area),
        plus_minus(arm.final),
    )
