"""Speed-ups: the ratio against the target, at every target, and in every setting."""

from collections.abc import Sequence
from dataclasses import replace

from mim3d.engine.analysis.family import Family, first_groups, primary_share, read_family
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.speedup import PairedRatio, bootstrap_interval
from mim3d.engine.analysis.summary import Comparison, GroupSummary, primary_target
from mim3d.engine.analysis.words import (
    arm_name,
    difference,
    interval_in_words,
    on_encoder,
    p_of_ratio,
    paired_in_words,
    ratio_in_words,
)
from mim3d.engine.report.palette import Palette
from mim3d.engine.report.panels import RatioPoint, draw_ratios
from mim3d.engine.report.plots import NARROW, Chart, Drawing, Plotter, below_legend, style_axes
from mim3d.engine.report.section import Block, Charts, Content, Section, Table

HALF = (5.2, 3.1)
BANDS_IN_WORDS = (
    "Bands: 95 % t intervals at each score by itself. Where an arm is censored in some seeds, a "
    "triangle is a bound: ▲ at least, ▼ at most. No mark: bounds point both ways"
)


WIDE = (8.6, 3.9)


def speedup_sections(content: Content) -> list[Section]:
    """The ratio along all targets, for the family that is tested; then every setting's."""
    study = content.study
    blocks: list[Block] = []
    firsts = first_groups(content.groups)
    family = read_family(study, *firsts)
    for group in firsts if content.ablation is None else ():
        if family.on(group.group.encoder):
            chart = family_chart(study, group, family, content.plotter)
            blocks += [Charts((chart,))] if chart else []
            blocks.append(targets_table(group, family, content.metric))
    overview = overview_table(study, content.groups)
    blocks += [overview] if overview else []
    return [Section("How much faster, by target", tuple(blocks))] if blocks else []


def family_chart(
    study: Study, group: GroupSummary, family: Family, plotter: Plotter
) -> Chart | None:
    """The headline's figure: the whole curve of ratio against target, with its band."""
    encoder = group.group.encoder
    lines = ratio_lines_of(family.on(encoder))
    if not lines:
        return None
    marks, fixed = target_lines(group), None
    if group.fixed and not group.fixed.refused:
        fixed = (f"{group.fixed.score:g}, fixed by tuning seeds", group.fixed.score)

    def draw(figure, palette: Palette) -> None:  # noqa: ANN001
        axes = figure.subplots()
        metric = study.about.get("metric", "Dice")
        style_axes(axes, palette, f"target {metric}", "speed-up, geometric mean")
        draw_ratios(axes, palette, lines, marks, all_bands=True, fixed=fixed)
        below_legend(figure, palette, 2)

    alt = (
        f"Speed-up{on_encoder(encoder)} against the target score, of what the headline tests; "
        f"above 1 the masked arm is faster. {BANDS_IN_WORDS}"
    )
    name = f"speedup-by-target-{encoder}" if encoder else "speedup-by-target"
    return plotter.chart(name, alt, WIDE, draw, Drawing(NARROW, draw))


def targets_table(group: GroupSummary, family: Family, metric: str) -> Table:
    """The family's ratios at a fixed score, at every share, along the curve; and the area."""
    fixed = group.fixed
    columns = [f"at {metric} {fixed.score:g},\nfixed beforehand"] if fixed else []
    for target in group.targets:
        tested = "\n(tested)" if target.share == family.share else ""
        columns.append(f"at {100 * target.share:g} %{tested}")
    header = ("comparison", *columns, "lowest to highest", f"area, {metric}")
    rows = []
    encoder = group.group.encoder
    for c in family.on(encoder):
        ratios = [c.fixed] if fixed else []
        ratios += [c.at[target.share] for target in group.targets]
        name = f"{arm_name(c.first)} over {arm_name(c.second)}"
        cells = ["\n".join(ratio_and_interval(ratio)) for ratio in ratios]
        rows.append((name, *cells, extremes(c), paired_in_words(c.area)))
    note = (
        "The ratio depends on where the target is set, so the whole curve is the result: lowest "
        "to highest are its exact ratios over all scores drawn above. Area: mean difference of "
        f"the mean {metric} over the fine-tuning steps, which needs no target. One column is "
        "tested, the others describe; 95 % intervals, each by itself."
    )
    if fixed:
        note += (
            f" {metric} {fixed.score:g} is {100 * fixed.share:g} % of the best score of "
            f"{arm_name(group.reference)} with the tuning seeds, which are not scored."
        )
    title = f"What the target makes of it{on_encoder(encoder)}"
    return Table(title, header, tuple(rows), note)


def extremes(comparison: Comparison) -> str:
    """`0.84× to 1.62×`: the smallest and largest exact ratio along the targets."""
    exact = [found.ratio for _, found in comparison.along if found.bound == "exact" and found.ratio]
    return f"{min(exact):.2f}× to {max(exact):.2f}×" if exact else "–"


def ratio_and_interval(found: PairedRatio) -> list[str]:
    """The ratio, and its interval where there is one."""
    if found.low is None and found.high is None:
        return [ratio_in_words(found)]
    return [ratio_in_words(found), interval_in_words(found).removeprefix("95 % interval ")]


def ratio_lines_of(
    comparisons: Sequence[Comparison],
) -> dict[str, tuple[str, list[RatioPoint]]]:
    """By its name, a comparison's first arm and its ratios along the targets, where it has any."""
    lines = {}
    for comparison in comparisons:
        points = [
            RatioPoint(score, found.ratio, found.low, found.high, found.bound)
            for score, found in comparison.along
            if found.ratio is not None
        ]
        if points:
            name = f"{arm_name(comparison.first)} over {arm_name(comparison.second)}"
            lines[name] = (comparison.first, points)
    return lines


def overview_table(study: Study, groups: Sequence[GroupSummary]) -> Table | None:
    """The primary target's ratio of every comparison in every setting, where there are several."""
    pairs = list(dict.fromkeys((c.first, c.second) for g in groups for c in g.comparisons))
    if len(groups) < 2 or not pairs:
        return None
    share = primary_target(groups[0].targets, primary_share(study)).share
    rows = []
    for group in groups:
        cells = [group.group.title]
        for first, second in pairs:
            comparison = group.comparison(first, second)
            if comparison is None:
                cells.append("–")
                continue
            found = comparison.at[share]
            few = 0 < found.pairs < comparison.planned
            seeds = [f"{found.pairs} of {comparison.planned} seeds"] if few else []
            cells.append("\n".join([*ratio_lines(found), *seeds]))
        rows.append(tuple(cells))
    each = " of each encoder" if any(group.group.encoder for group in groups) else ""
    first = f"The first setting{each} is the headline's"
    if study.about.get("ablation"):
        first = "All of it describes: what the ablation tests has its own table"
    header = ("setting", *(f"{arm_name(one)} over\n{arm_name(other)}" for one, other in pairs))
    note = (
        f"Steps to {100 * share:g} % of the reference's best score, as ratios, with 95 % intervals "
        "and p of a paired t test on logarithms where at least 5 seeds support them. "
        f"{first}; no p here is corrected for the number of comparisons."
    )
    return Table("Every setting at the primary target", header, tuple(rows), note)


def ratios_chart(study: Study, group: GroupSummary, index: int, plotter: Plotter) -> Chart | None:
    """Ratio of steps against the target score; None where no ratio exists at all."""
    lines = ratio_lines_of(group.comparisons)
    if not lines:
        return None
    targets = target_lines(group)
    metric = study.about.get("metric", "Dice")

    def draw(figure, palette: Palette) -> None:  # noqa: ANN001
        axes = figure.subplots()
        style_axes(axes, palette, f"target {metric}", "speed-up, geometric mean")
        draw_ratios(axes, palette, lines, targets)
        below_legend(figure, palette, 2)

    alt = (
        "Speed-up against the target score; above 1 the first arm is faster, of solid lines alone "
        f"with bands where there are any. {BANDS_IN_WORDS}"
    )
    narrow = Drawing((NARROW[0], NARROW[1] + 0.13 * len(lines)), draw)
    return plotter.chart(f"ratios-{index}", alt, HALF, draw, narrow)


def target_lines(group: GroupSummary) -> list[tuple[str, float]]:
    """Names and scores of the targets that are any."""
    return [(f"{100 * t.share:g} %", t.score) for t in group.targets if not t.refused]


def speedup_table(group: GroupSummary, ablation: bool = False) -> Table:
    """Paired ratios at every target; of an ablation, whose words rest on areas, described."""
    header = ("comparison", *(f"at {100 * t.share:g} %" for t in group.targets), "area", "final")
    rows = []
    for comparison in group.comparisons:
        cells = []
        for target in group.targets:
            found = comparison.at[target.share]
            reached = both_reached(found, comparison.planned)
            last = "; ".join(filter(None, [reached, resampled(found)]))
            ratio, *tested = ratio_lines(found)
            cells.append("\n".join(filter(None, [ratio, ", ".join(tested), last])))
        rows.append(
            (
                f"{arm_name(comparison.first)} over {arm_name(comparison.second)}",
                *cells,
                difference(comparison.area.mean, comparison.area.p_value),
                difference(comparison.final.mean, comparison.final.p_value),
            )
        )
    rests = "which describes here" if ablation else "on which the words above rest"
    note = (
        "Steps of the second arm over steps of the first, paired by seed, geometric mean; above 1 "
        "the first is faster. Below: the 95 % interval and p of a paired t test on the logarithms, "
        f"where at least 5 seeds support them, {rests}; of the seeds that both arms have, in how "
        "many both reached the target; and the 95 % bootstrap interval (BCa), which decides "
        "nothing: of 5 pairs it covers the truth in 84 % of cases, of 10 in 90 %. Of a bound the "
        "bounds are tested, more strictly the more seeds are censored. Area and final: mean "
        "paired difference over those seeds, with its paired t test. No p here is corrected for "
        "the number of comparisons."
    )
    return Table("Speed-up", header, tuple(rows), note)


def both_reached(found: PairedRatio, planned: int) -> str:
    """`4/5 seeds`, or `4/5 seeds of 10 planned` where some were not run or failed."""
    if not found.pairs:
        return ""
    rest = f" of {planned} planned" if found.pairs < planned else ""
    return f"{found.complete}/{found.pairs} seeds{rest}"


def ratio_lines(found: PairedRatio) -> list[str]:
    """The ratio, its interval and its p where there are any."""
    if found.p_value is None:
        return [ratio_in_words(found)]
    interval = interval_in_words(found).removeprefix("95 % interval ")
    unbroken = p_of_ratio(found).replace(" ", "\u00a0")
    return [ratio_in_words(found), f"{interval}, {unbroken}"]


def resampled(found: PairedRatio) -> str:
    """The bootstrap interval of the protocol, for the ends that are supported."""
    low, high = bootstrap_interval(found)
    if low is None and high is None:
        return ""
    interval = interval_in_words(replace(found, low=low, high=high))
    return f"bootstrap {interval.removeprefix('95 % interval ')}"
