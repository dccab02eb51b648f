"""`mim3d bench convert`: the converter beside a plain script, its peers and the unavoidable work.

Every job runs in a process of its own, rounds interleaved; figures are the best round of each, and
what counts are the ratios within one run. CPU seconds are those of all threads and children.
Start-up counts in them; told apart as well, as it is fixed and a corpus has thousands of volumes.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.openers import Opener
from rich.console import Console
from rich.table import Table

from mim3d.bench.convert_jobs import Measured
from mim3d.bench.convert_peers import PEERS
from mim3d.bench.corpora import anatomy_like
from mim3d.bench.other_work import OtherWork
from mim3d.bench.table_open import measure_table
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.environment import machine

OWN = ("mim3d", "script", "floor")
SCALING = ("mim3d", "mim3d-2")
TARGETS = {
    "script_over_mim3d_cpu": ("at least", 2.0),
    "mim3d_over_floor_cpu": ("at most", 1.33),
    "two_workers_speed": ("at least", 1.8),
    "peak_over_largest_volume": ("at most", 3.0),
}


@dataclass(frozen=True)
class ConvertBench:
    """Arguments of the stage."""

    peers: bool = False
    """Also run what others would use: zarrs, tensorstore, blosc2, nifti-zarr."""
    volumes: int = 16
    """Generated int16 volumes of 256 x 256 x 192, gzip level 6."""
    source: Path | None = None
    """A folder of .nii.gz files to use instead of generated ones."""
    rounds: int = 3
    """Repetitions; the best of each job counts."""
    copies: int = 16
    """How often the files are repeated to compare one worker with two, so that a process's start
    (0.2 s) is small beside the work; 0 leaves that out."""
    entries: int = 100_000
    """Entries of the synthetic chunk table; 0 leaves that part out."""


def main(words: list[str]) -> Outcome:
    """Measure, print the table, return the figures."""
    args = parse(ConvertBench, words, "mim3d bench convert", __doc__)
    with tempfile.TemporaryDirectory(prefix="mim3d-bench-") as scratch:
        files = found_files(args.source) if args.source else make_files(Path(scratch), args.volumes)
        runs = run_rounds([*OWN, *(PEERS if args.peers else ())], files, args.rounds, Path(scratch))
        figures = summarise(runs, files)
        alone = run_rounds(["mim3d"], [tiny_file(Path(scratch))], args.rounds, Path(scratch))
        figures["start_up_cpu_s"] = min(m.cpu_s for m in alone["mim3d"])
        if args.copies:
            many = repeated(files, args.copies, Path(scratch))
            with OtherWork() as other:
                runs = run_rounds(SCALING, many, args.rounds, Path(scratch))
            figures["scaling"] = scaling(runs, other)
            one, two = (figures["scaling"][name]["wall_s"] for name in SCALING)
            figures["ratios"]["two_workers_speed"] = one / two
            walls = ([m.wall_s for m in runs[name]] for name in SCALING)
            figures["rounds"]["two_workers_speed"] = [
                one / two for one, two in zip(*walls, strict=True)
            ]
        if args.entries:
            figures["chunk_table"] = measure_table(args.entries, Path(scratch))
    figures["targets_met"] = {name: met(name, value) for name, value in figures["ratios"].items()}
    show(figures)
    return Outcome(figures)


def run_rounds(
    names: Sequence[str], files: list[str], rounds: int, scratch: Path
) -> dict[str, list[Measured]]:
    """Every job once per round, so that a slow moment of the machine hits all alike."""
    runs: dict[str, list[Measured]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            runs[name].append(run_job(name, files, scratch))
    return runs


def repeated(files: list[str], copies: int, scratch: Path) -> list[str]:
    """Copies of the files under many names; links would be recognised as the same files."""
    folder = scratch / "many"
    folder.mkdir()
    names = []
    for number in range(copies):
        for file in files:
            names.append(str(folder / f"{number}-{len(names)}-{Path(file).name}"))
            shutil.copyfile(file, names[-1])
    os.sync()  # or writing them would go on beside the first job
    return names


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


def found_files(folder: Path) -> list[str]:
    """The .nii.gz files of a folder; ValueError where there are none."""
    files = sorted(str(p) for p in folder.rglob("*.nii.gz"))
    if not files:
        raise ValueError(f"--source {folder}: holds no .nii.gz file")
    return files


def make_files(scratch: Path, count: int) -> list[str]:
    """Write generated volumes as dcm2niix would: int16, gzip level 6."""
    Opener.default_compresslevel = 6
    files = []
    for number in range(count):
        voxels = anatomy_like((192, 256, 256), number)
        files.append(str(scratch / f"volume{number}.nii.gz"))
        image = Nifti1Image(np.ascontiguousarray(voxels.T), np.diag([-1, 1, 1, 1]))
        image.to_filename(files[-1])
    return files


def tiny_file(scratch: Path) -> str:
    """A volume whose conversion is all start-up."""
    file = scratch / "tiny.nii.gz"
    voxels = anatomy_like((16, 16, 16), 0)
    Nifti1Image(np.ascontiguousarray(voxels.T), np.diag([-1, 1, 1, 1])).to_filename(file)
    return str(file)


def run_job(name: str, files: list[str], scratch: Path) -> Measured:
    """One job in a fresh process and folder."""
    listing, result = scratch / "files.json", scratch / "result.json"
    listing.write_text(json.dumps(files))
    folder = tempfile.mkdtemp(dir=scratch, prefix=f"{name}-")
    command = [sys.executable, "-m", "mim3d.bench.convert_jobs", name, folder]
    done = subprocess.run(
        [*command, str(listing), str(result)], capture_output=True, text=True, check=False
    )
    empty_files(Path(folder))
    if done.returncode != 0:
        raise ValueError(f"bench convert {name} failed: {done.stderr.strip()[-600:]}")
    return Measured(**json.loads(result.read_text()))


def empty_files(folder: Path) -> None:
    """Give the disk space back but keep the inodes until the bench ends.

    ext4 steps over inodes freed in the last minutes one by one (recently_deleted in
    fs/ext4/ialloc.c): deleting one job's files would slow the next one's, by 5 % here.
    """
    for file in folder.rglob("*"):
        if file.is_file():
            os.truncate(file, 0)


def voxel_sizes(files: list[str]) -> list[int]:
    """Bytes of voxels of each file."""
    headers = [Nifti1Image.from_filename(file).header for file in files]
    shapes = [h.get_data_shape() for h in headers]
    return [
        int(np.prod(shape)) * h.get_data_dtype().itemsize
        for shape, h in zip(shapes, headers, strict=True)
    ]


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
    for column in ("ratio", "measured", "target", ""):
        ratios.add_column(column)
    for name, value in figures["ratios"].items():
        direction, target = TARGETS[name]
        outcome = "met" if figures["targets_met"][name] else "MISSED"
        if name == "two_workers_speed" and figures["scaling"]["busy"]:
            share = figures["scaling"]["others_cpu_share"]
            outcome = f"not measurable: others used {100 * share:.0f} % of the CPUs"
        ratios.add_row(name, f"{value:.2f}", f"{direction} {target}", outcome)
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
