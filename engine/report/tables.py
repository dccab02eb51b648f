"""The report's tables, as plain rows of text for the template."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from mim3d.engine.analysis.ablation import DAGGER, Ablation
from mim3d.engine.analysis.ledger import LEDGERS, UNITS
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.speedup import PairedRatio, bootstrap_interval
from mim3d.engine.analysis.summary import ArmSummary, GroupSummary, primary_target
from mim3d.engine.analysis.verdict import primary_share
from mim3d.engine.analysis.words import (
    arm_name,
    difference,
    interval_in_words,
    median_reach,
    number,
    p_of_ratio,
    ratio_in_words,
    spread,
)
from mim3d.engine.study.config import SCRATCH, Row


@dataclass(frozen=True)
class Table:
    """Header and rows; the first column is a heading, `note` stands below."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def ablation_table(ablation: Ablation, metric: str) -> Table:
    """Every setting with its final score, its steps, and whether its pretext task was learned."""
    rows = []
    for arm in ablation.arms:
        for setting in ablation.of(arm):
            learned = "–" if arm == SCRATCH else "yes" if setting.learned else f"no {DAGGER}"
            rows.append(
                (
                    f"{arm_name(arm)}, {setting.name}",
                    spread(setting.final),
                    spread(setting.summary.area),
                    median_reach(setting.reaches),
                    str(len(setting.curves)),
                    learned,
                )
            )
    header = ("setting", f"final {metric}", "area under curve", "steps to target", "seeds")
    note = (
        "Mean ± standard deviation over seeds; steps are the median over seeds with how many "
        f"reached the target: {ablation.target}. Settings were not compared by tests fixed "
        "beforehand: a lead within the seeds' spread is no finding."
    )
    if any(not setting.learned for setting in ablation.settings):
        note += f" {DAGGER} did not learn its pretext task: shown, but not ranked."
    return Table("What each setting gave", (*header, "learned"), tuple(rows), note)


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
        "seeds reached it; unreached counts as more than the budget, ≤ marks a median run that was "
        "there by the first evaluation. Final scores are of "
        "the test subjects where there are any, mean ± standard deviation over seeds."
    )
    refused = list(dict.fromkeys(t.refused for t in group.targets if t.refused))
    if refused:
        note += f" No steps where a share {'; '.join(refused)}."
    if group.untrained:
        note += " † did not learn its pretext task, so it is shown but compared with nobody."
    return Table("What each arm needed", header, rows, note)


def _arm_row(arm: ArmSummary, group: GroupSummary) -> tuple[str, ...]:
    return (
        arm_name(arm.arm) + (" †" if arm.arm in group.untrained else ""),
        *(median_reach(arm.reaches[target.share]) for target in group.targets),
        spread(arm.area),
        spread(arm.final),
    )


def speedup_table(group: GroupSummary) -> Table:
    """Paired ratios at every target."""
    header = ("comparison", *(f"at {100 * t.share:g} %" for t in group.targets), "area", "final")
    rows = []
    for comparison in group.comparisons:
        cells = []
        for target in group.targets:
            found = comparison.at[target.share]
            reached = f"{found.complete}/{comparison.planned} seeds" if found.pairs else ""
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
    note = (
        "Steps of the second arm over steps of the first, paired by seed, geometric mean; above 1 "
        "the first is faster. Below: the 95 % interval and p of a paired t test on the logarithms, "
        "where at least 5 seeds support them, on which the words above rest; in how many of the "
        "seeds both arms reached the target; and the 95 % bootstrap interval (BCa), which decides "
        "nothing: of 5 pairs it covers the truth in 84 % of cases, of 10 in 90 %. Of a bound the "
        "bounds are tested, more strictly the more seeds are censored. Area and final: mean "
        "paired difference, with its paired t test."
    )
    return Table("Speed-up", header, tuple(rows), note)


def ratio_lines(found: PairedRatio) -> list[str]:
    """The ratio, its interval and its p where there are any."""
    if found.p_value is None:
        return [ratio_in_words(found)]
    interval = interval_in_words(found).removeprefix("95 % interval ")
    unbroken = p_of_ratio(found).replace(" ", "\u00a0")
    return [ratio_in_words(found), f"{interval}, {unbroken}"]


def ratio_in_line(found: PairedRatio) -> str:
    """`1.04× (0.78 to 1.39)`, the ratio alone without an interval."""
    if found.low is None and found.high is None:
        return ratio_in_words(found)
    return f"{ratio_in_words(found)} ({interval_in_words(found).removeprefix('95 % interval ')})"


def resampled(found: PairedRatio) -> str:
    """The bootstrap interval of the protocol, for the ends that are supported."""
    low, high = bootstrap_interval(found)
    if low is None and high is None:
        return ""
    interval = interval_in_words(replace(found, low=low, high=high))
    return f"bootstrap {interval.removeprefix('95 % interval ')}"


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
    header = ("setting", *(f"{arm_name(one)} over\n{arm_name(other)}" for one, other in pairs))
    note = (
        f"Steps to {100 * share:g} % of the reference's best score, as ratios, with 95 % intervals "
        "and p of a paired t test on logarithms where at least 5 seeds support them. The first "
        "setting is the headline's; no p here is corrected for the number of comparisons."
    )
    return Table("Every setting at the primary target", header, tuple(rows), note)


def ledger_table(study: Study, group: GroupSummary) -> Table:
    """The primary target's ratio by three ledgers in three units."""
    share = primary_target(group.targets, primary_share(study)).share
    tasks = study.about.get("settings", {}).get("tasks", 10)
    names = {
        "fine-tuning": "fine-tuning alone",
        "with pretraining": "with its pretraining",
        "amortised": f"pretraining shared by {tasks} tasks",
    }
    header = ("comparison", "what is counted", "steps", "FLOPs", "seconds")
    rows = tuple(
        (
            f"{arm_name(c.first)} over {arm_name(c.second)}" if ledger == LEDGERS[0] else "",
            names[ledger],
            *(ratio_in_line(c.ledgers[ledger, unit]) for unit in UNITS),
        )
        for c in group.comparisons
        for ledger in LEDGERS
    )
    note = (
        f"Ratios at {100 * share:g} %, with the 95 % interval of the same t test. A dash: no "
        "ratio, as in the table above, or a pretraining whose cost is not known. Evaluation and "
        "compile time are left out of the seconds, which were measured while other cells shared "
        "the machine."
    )
    return Table("The same by three ledgers", header, rows, note)


def pretraining_table(study: Study) -> Table | None:
    """What each pretraining saw, cost and came to."""
    if not study.pretraining:
        return None
    header = (
        "arm",
        "crops",
        "steps × batch",
        "loss",
        "knowing nothing",
        "ratio",
        "GFLOP/crop",
        "PFLOP",
        "seconds",
        "learned",
    )
    rows = []
    for p in study.pretraining:
        name = pretraining_name(p)
        if p.get("seed") is not None:
            name += f", seed {p['seed']}"
        loss, floor = p.get("loss"), p.get("floor")
        rows.append(
            (
                name,
                f"{p['crops']:,}" if p["crops"] else "not known",
                f"{p['steps']:,} × {p['batch']}" if p["crops"] else "–",
                number(loss, 3),
                number(floor, 3),
                number(None if not loss or not floor else loss / floor, 2),
                number(p["flops"] / p["crops"] / 1e9 if p["crops"] else None, 2),
                number(p["flops"] / 1e15 if p["crops"] else None, 3),
                number(p["seconds"] if p["crops"] else None, 0),
                "not known" if not p["crops"] else "yes" if p["trained"] else "no",
            )
        )
    note = (
        "Knowing nothing: each hidden patch's mean for masked methods, ln(2b − 1) for NT-Xent. An "
        "arm has learned where its loss over the last fifth is below 0.95 of that."
    )
    return Table("What each pretraining saw and learned", header, tuple(rows), note)


def pretraining_name(pretraining: Row) -> str:
    """Arm and variant in words."""
    variant = str(pretraining.get("variant") or "").replace("_", " ")
    return " ".join(filter(None, [arm_name(pretraining["arm"]), variant]))


def throughput_table(study: Study, groups: Sequence[GroupSummary]) -> Table:
    """Crops per second of every stage of this study on this machine."""
    header = ("stage", "crops/s", "Mvoxel/s", "GFLOP/s", "waiting for data")
    voxels = math.prod(study.about.get("crop_size", (1, 1, 1)))
    rows = []
    for p in study.pretraining:
        rate = p.get("crops_per_s")
        if not rate:
            continue
        name = f"pretraining {pretraining_name(p)}"
        stall = p.get("data_stall_share")
        rows.append(
            (
                name,
                number(rate, 1),
                number(rate * voxels / 1e6, 2),
                number(rate * p["flops"] / p["crops"] / 1e9, 1),
                "–" if stall is None else f"{100 * stall:.0f} %",
            )
        )
    for group in groups:
        runs = [r for arm in group.arms for r in study.select(group.group, arm.arm, "validation")]
        timed = [r for r in runs if r["seconds"] and r["crops"]]
        if timed:
            rate = fmean(r["crops"] / r["seconds"] for r in timed)
            flops = fmean(r["flops"] / r["seconds"] for r in timed)
            rows.append(
                (
                    f"fine-tuning, {group.group.title}",
                    number(rate, 1),
                    number(rate * voxels / 1e6, 2),
                    number(flops / 1e9, 1),
                    "–",
                )
            )
    return Table("Throughput", header, tuple(dict.fromkeys(rows)))
