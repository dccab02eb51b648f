"""What the rounds of `mim3d bench convert` say: best rounds, ratios, targets, two short tables."""

import os
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mim3d.bench.convert.jobs import Measured
from mim3d.bench.convert.volumes import voxel_sizes
from mim3d.bench.noise import spread
from mim3d.bench.other_work import OtherWork
from mim3d.engine.environment import machine

OWN = ("mim3d", "script", "floor")
SCALING = ("mim3d", "mim3d-2")
TARGETS = {
    "script_over_mim3d_cpu": ("at least", 2.0),
    "mim3d_over_floor_cpu": ("at most", 1.33),
    "two_workers_speed": ("at least", 1.8),
    "peak_over_largest_volume": ("at most", 3.0),
}


def summarise(runs: dict[str, list[Measured]], files: list[str]) -> dict:
    """Best round of each job, and the ratios that the targets are about."""
    sizes = voxel_sizes(files)
    best = {name: min(found, key=lambda m: m.cpu_s) for name, found in runs.items()}
    floor = min(m.detail["floor"] for m in runs["floor"])
    wall = {name: min(m.wall_s for m in found) for name, found in runs.items()}
    parts = {k: min(m.detail[k] for m in runs["floor"]) for k in runs["floor"][0].detail}
    ratios = {
        "script_over_mim3d_cpu": best["script"].cpu_s / best["mim3d"].cpu_s,
        "mim3d_over_floor_cpu": best["mim3d"].cpu_s / floor,
        "peak_over_largest_volume": best["mim3d"].peak_bytes / max(sizes),
    }
    return {
        "machine": machine() | {"load_average": f"{os.getloadavg()[0]:.1f}"},
        "files": len(files),
        "voxel_mb": sum(sizes) / 1e6,
        "file_mb": sum(Path(f).stat().st_size for f in files) / 1e6,
        "floor_s": parts,
        "jobs": {n: {**asdict(m), "wall_s": wall[n]} for n, m in best.items() if n != "floor"},
        "ratios": ratios,
        "rounds": ratios_by_round(runs, max(sizes)),
    }


def ratios_by_round(runs: dict[str, list[Measured]], largest: int) -> dict[str, list[float]]:
    """The same ratios within each round: what they vary by is their noise."""
    rounds: dict[str, list[float]] = {
        "script_over_mim3d_cpu": [],
        "mim3d_over_floor_cpu": [],
        "peak_over_largest_volume": [],
    }
    for ours, script, floor in zip(*(runs[name] for name in OWN), strict=True):
        rounds["script_over_mim3d_cpu"].append(script.cpu_s / ours.cpu_s)
        rounds["mim3d_over_floor_cpu"].append(ours.cpu_s / floor.detail["floor"])
        rounds["peak_over_largest_volume"].append(ours.peak_bytes / largest)
    return rounds


def scaling(runs: dict[str, list[Measured]], other: OtherWork) -> dict:
    """One worker and two, and how much more CPU time two take for the same files.

    Wall times say nothing where `other` work kept the CPUs busy meanwhile; that is recorded.
    """
    one, two = (min(runs[name], key=lambda m: m.wall_s) for name in SCALING)
    overhead = two.cpu_s / one.cpu_s - 1
    return {
        SCALING[0]: asdict(one),
        SCALING[1]: asdict(two),
        "cpu_overhead": overhead,
        "others_cpu_share": other.share,
        "busy": other.busy,
    }


def met(name: str, value: float) -> bool:
    """Whether a ratio meets its target."""
    direction, target = TARGETS[name]
    return value >= target if direction == "at least" else value <= target


def show(figures: dict) -> None:
    """Jobs and ratios as two short tables."""
    console = Console(width=110, highlight=False)
    megabytes = figures["voxel_mb"]
    table = Table(
        title=f"{figures['files']} files, {megabytes:.0f} MB of voxels", title_justify="left"
    )
    for column in ("job", "CPU s", "wall s", "MB per CPU-second", "peak MB", "MB written"):
        table.add_column(column, justify="left" if column == "job" else "right")
    for name, job in figures["jobs"].items():
        rate = megabytes / max(job["cpu_s"], 1e-9)
        table.add_row(
            name, f"{job['cpu_s']:.2f}", f"{job['wall_s']:.2f}", f"{rate:.0f}",
            f"{job['peak_bytes'] / 1e6:.0f}", f"{job['bytes_out'] / 1e6:.0f}",
        )  # fmt: skip
    floor = figures["floor_s"]["floor"]
    table.add_row("unavoidable work", f"{floor:.2f}", "", f"{megabytes / floor:.0f}", "", "")
    console.print(table)
    start_up = figures["start_up_cpu_s"]
    console.print(f"of mim3d's CPU s, {start_up:.3f} are start-up (a run on one volume of 16^3)")
    ratios = Table(title="ratios in this run", title_justify="left")
    for column in ("ratio", "measured", "range of rounds", "target", ""):
        ratios.add_column(column)
    for name, value in figures["ratios"].items():
        direction, target = TARGETS[name]
        outcome = "met" if figures["targets_met"][name] else "MISSED"
        if name == "two_workers_speed" and figures["scaling"]["busy"]:
            share = figures["scaling"]["others_cpu_share"]
            outcome = f"not measurable: others used {100 * share:.0f} % of the CPUs"
        rounds = spread(figures["rounds"][name])
        noise = f"{rounds.low:.2f} to {rounds.high:.2f}"
        ratios.add_row(name, f"{value:.2f}", noise, f"{direction} {target}", outcome)
    console.print(ratios)
    if "scaling" in figures:
        one, two = (figures["scaling"][name] for name in SCALING)
        console.print(
            f"scaling: {one['wall_s']:.1f} s with 1 worker, {two['wall_s']:.1f} s with 2 "
            f"({100 * figures['scaling']['cpu_overhead']:+.0f} % CPU) on {os.cpu_count()} CPUs, "
            f"of which others used {100 * (figures['scaling']['others_cpu_share'] or 0):.0f} %"
        )
    if "chunk_table" in figures:
        opened = figures["chunk_table"]
        console.print(
            f"chunk table of {opened['entries']:,} volumes ({opened['table_mb']:.0f} MB): opened "
            f"in {opened['open_s']:.2f} s, {opened['private_mb']:.1f} MB private memory"
        )
