"""What it cost: ratios by three ledgers, and how fast each stage ran on this machine."""

import math
from collections.abc import Sequence
from statistics import fmean

from mim3d.engine.analysis.family import primary_share
from mim3d.engine.analysis.ledger import LEDGERS, UNITS
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.speedup import PairedRatio
from mim3d.engine.analysis.summary import GroupSummary, primary_target
from mim3d.engine.analysis.words import arm_name, interval_in_words, number, ratio_in_words
from mim3d.engine.report.pretext import pretraining_name
from mim3d.engine.report.section import Content, Section, Table


def cost_sections(content: Content) -> list[Section]:
    """The ledgers of every group in which arms are compared, and the rates of all stages."""
    compared = [group for group in content.shown_groups if group.comparisons]
    ledgers = [ledger_table(content.study, group, len(compared) > 1) for group in compared]
    throughput = throughput_table(content.study, content.groups)
    return [Section("Cost", (*ledgers, throughput))]


def ledger_table(study: Study, group: GroupSummary, several: bool = False) -> Table:
    """The primary target's ratio by three ledgers in three units; `several` groups are named."""
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
        "ratio, as in the table of speed-ups, or a pretraining whose cost is not known. Evaluation "
        "and compile time are left out of the seconds, which were measured while other cells "
        "shared the machine."
    )
    caption = "Speed-up by three ledgers"
    if several:
        caption += f", {group.group.title}"
    return Table(caption, header, rows, note)


def ratio_in_line(found: PairedRatio) -> str:
    """`1.04× (0.78 to 1.39)`, the ratio alone without an interval."""
    if found.low is None and found.high is None:
        return ratio_in_words(found)
    return f"{ratio_in_words(found)} ({interval_in_words(found).removeprefix('95 % interval ')})"


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
