"""What it cost: ratios by three ledgers, each encoder, and how fast each stage ran here."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median

from mim3d.engine.analysis.family import primary_share
from mim3d.engine.analysis.ledger import LEDGERS, UNITS
from mim3d.engine.analysis.results import Study, decoder_name, encoder_title
from mim3d.engine.analysis.speedup import PairedRatio
from mim3d.engine.analysis.summary import GroupSummary, primary_target
from mim3d.engine.analysis.words import arm_name, interval_in_words, number, ratio_in_words
from mim3d.engine.report.pretext import pretraining_name
from mim3d.engine.report.section import Content, Section, Table
from mim3d.engine.study.config import ENCODER_SETTINGS, Row

STILL = 3.0
"""Times the median of a group's seconds a step from which a run is named as a slow one."""


def cost_sections(content: Content) -> list[Section]:
    """The ledgers of every group in which arms are compared, and the rates of all stages."""
    compared = [group for group in content.shown_groups if group.comparisons]
    ledgers = [ledger_table(content.study, group, len(compared) > 1) for group in compared]
    throughput = throughput_table(content.study, content.groups)
    return [Section("Cost", (*ledgers, *encoder_tables(content), throughput))]


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
        f"may have shared the machine.{stood_still(study, group)}"
    )
    caption = "Speed-up by three ledgers"
    if several:
        caption += f", {group.group.title}"
    return Table(caption, header, rows, note)


def stood_still(study: Study, group: GroupSummary) -> str:
    """Runs whose steps took far longer than those of the others, which train the same network."""
    seconds = {
        (arm.arm, seed): cost.seconds
        for arm in group.arms
        for seed, cost in study.spending(group.group, arm.arm).step.items()
    }
    usual = median(seconds.values()) if seconds else 0.0
    slow = {run: spent / usual for run, spent in seconds.items() if spent > STILL * usual > 0}
    if not slow:
        return ""
    runs = ", ".join(
        f"{arm_name(arm)}, seed {seed} ({times:.1f})" for (arm, seed), times in slow.items()
    )
    return (
        f" Steps that took over {STILL:g} times the median (in brackets how many times): {runs}. "
        "All runs here train the same network, so that tells of the machine, and with it do the "
        "ratios of seconds of these arms."
    )


def ratio_in_line(found: PairedRatio) -> str:
    """`1.04× (0.78 to 1.39)`, the ratio alone without an interval."""
    if found.low is None and found.high is None:
        return ratio_in_words(found)
    return f"{ratio_in_words(found)} ({interval_in_words(found).removeprefix('95 % interval ')})"


def crop_voxels(study: Study, encoder: str, variant: str) -> int:
    """Voxels of an encoder's crops in a variant."""
    varied = study.about.get("variants", {}).get(variant, {}).get("crop")
    if varied and "crop" in study.about.get("ablation_axes", ()):
        return varied**3
    own = (n["crop_size"] for n in study.about.get("networks", ()) if n["encoder"] == encoder)
    return math.prod(next(own, study.about.get("crop_size", (1, 1, 1))))


def throughput_table(study: Study, groups: Sequence[GroupSummary]) -> Table:
    """Crops per second of every stage of this study on this machine."""
    header = ("stage", "crops/s", "Mvoxel/s", "GFLOP/s", "waiting for data")
    rows = []
    for p in study.pretraining:
        rate = p.get("crops_per_s")
        if not rate:
            continue
        voxels = crop_voxels(study, p.get("encoder", ""), p.get("variant", ""))
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
            voxels = crop_voxels(study, group.group.encoder, group.group.variant)
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


def encoder_tables(content: Content) -> list[Table]:
    """Encoders with their decoders, then every method on each; none where sizes were not kept."""
    study = content.study
    if not study.about.get("networks"):
        return []
    pretrained = pretraining_costs(study)
    return [network_table(study, content.groups), *([pretrained] if pretrained.rows else [])]


def network_table(study: Study, groups: Sequence[GroupSummary]) -> Table:
    """Parameters, FLOPs of a step and seconds of an encoder under a decoder."""
    rows, sized = [], of_first_shape(study, groups)
    for network in study.about["networks"]:
        same = (network["encoder"], network["head"])
        own = [g for g in sized if (g.group.encoder, g.group.head) == same]
        runs = [row for group in own for row in last_rows(study, group)]
        if not runs:
            continue
        title = f"{encoder_title(network['kind'])}, {decoder_name(network['head'])}"
        rows.append(
            (
                title,
                "×".join(map(str, network["crop_size"])),
                number(network["encoder_parameters"] / 1e6, 2),
                millions(network["decoder_parameters"]),
                number(mean_of(runs, lambda r: r["flops"] / r["step"] / 1e9), 1),
                number(median(r["seconds"] / r["step"] for r in runs), 3),
                number(mean_of([r for r in runs if "cpu_seconds" in r], cpu), 0),
            )
        )
    header = (
        "encoder",
        "crop",
        "encoder,\nM parameters",
        "decoder,\nM parameters",
        "GFLOP a step",
        "seconds\na step",
        "CPU seconds\na run",
    )
    note = (
        "Of fine-tuning, over the runs of all arms: mean FLOPs and median wall seconds of a "
        "training step, mean CPU seconds of a whole run with its evaluations. Seconds were "
        "measured while other cells may have shared the machine."
    )
    if len(sized) < len(groups):
        note += " Of the encoder's first setting alone, of those that the ablation varies."
    return Table("What each encoder costs", header, tuple(rows), note)


def of_first_shape(study: Study, groups: Sequence[GroupSummary]) -> list[GroupSummary]:
    """Groups whose encoder is as in the first variant, of which the study told the networks."""
    variants = study.about.get("variants", {})
    shapes = {
        name: [settings.get(key) for key in ENCODER_SETTINGS] for name, settings in variants.items()
    }
    first = next(iter(shapes.values()), None)
    return [group for group in groups if shapes.get(group.group.variant, first) == first]


def pretraining_costs(study: Study) -> Table:
    """FLOPs and seconds of each method's pretraining on each encoder."""
    by_name: dict[str, list[Row]] = {}
    for p in study.pretraining:
        if p["crops"]:
            by_name.setdefault(pretraining_name(p), []).append(p)
    rows = tuple(
        (
            name,
            str(own[0]["batch"]),
            number(mean_of(own, lambda p: p["flops"] / p["steps"] / 1e9), 1),
            number(mean_of(own, lambda p: p["seconds"] / p["steps"]), 3),
            number(mean_of(own, lambda p: p["seconds"]), 0),
            number(mean_of([p for p in own if "cpu_seconds" in p], cpu), 0),
        )
        for name, own in by_name.items()
    )
    header = ("pretraining", "batch", "GFLOP a step", "seconds\na step", "seconds", "CPU seconds")
    note = (
        "Mean over the pretrainings of a method on an encoder; wall seconds are of training alone."
    )
    return Table("What each pretraining costs", header, rows, note)


def last_rows(study: Study, group: GroupSummary) -> list[Row]:
    """The last validation row of every run of a group."""
    rows = [r for arm in group.arms for r in study.select(group.group, arm.arm, "validation")]
    trained = sorted((r for r in rows if r["step"] > 0), key=lambda r: r["step"])
    return list({(r["arm"], r["seed"]): r for r in trained}.values())


def mean_of(rows: Sequence[Row], value: Callable[[Row], float]) -> float | None:
    """The mean of a value, None of no row."""
    return fmean(map(value, rows)) if rows else None


def cpu(row: Row) -> float:
    """CPU seconds of a run."""
    return row["cpu_seconds"]


def millions(parameters: int | None) -> str:
    """Parameters in millions, a dash where they are not known."""
    return number(None if parameters is None else parameters / 1e6, 2)
