"""`mim3d bench convert`: the converter beside a plain script, its peers and the unavoidable work.

Every job runs in a process of its own, rounds interleaved; figures are the best round of each, and
what counts are the ratios within one run. CPU seconds are those of all threads and children.
Start-up counts in them; told apart as well, as it is fixed and a corpus has thousands of volumes.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mim3d.bench.convert.jobs import Measured
from mim3d.bench.convert.options import ConvertBench
from mim3d.bench.convert.peers import PEERS
from mim3d.bench.convert.summary import OWN, SCALING, met, scaling, show, summarise
from mim3d.bench.convert.table_open import measure_table
from mim3d.bench.convert.volumes import found_files, make_files, repeated, tiny_file
from mim3d.bench.other_work import OtherWork
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome


def main(words: list[str]) -> Outcome:
    """Measure, print the table, return the figures."""
    args = parse(ConvertBench, words, "mim3d bench convert", ConvertBench.__doc__)
    with tempfile.TemporaryDirectory(prefix="mim3d-bench-") as scratch:
        files = found_files(args.source) if args.source else make_files(Path(scratch), args.volumes)
        runs = run_rounds([*OWN, *(PEERS if args.peers else ())], files, args, Path(scratch))
        figures = summarise(runs, files)
        figures["chunk"] = args.chunk
        alone = run_rounds(["mim3d"], [tiny_file(Path(scratch))], args, Path(scratch))
        figures["start_up_cpu_s"] = min(m.cpu_s for m in alone["mim3d"])
        if args.copies:
            many = repeated(files, args.copies, Path(scratch))
            with OtherWork() as other:
                runs = run_rounds(SCALING, many, args, Path(scratch))
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
    names: Sequence[str], files: list[str], args: ConvertBench, scratch: Path
) -> dict[str, list[Measured]]:
    """Every job once per round, so that a slow moment of the machine hits all alike."""
    runs: dict[str, list[Measured]] = {name: [] for name in names}
    for number in range(args.rounds):
        for name in names:
            print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr, flush=True)
            runs[name].append(run_job(name, files, scratch, args.chunk))
    return runs


def run_job(name: str, files: list[str], scratch: Path, side: int = 16) -> Measured:
    """One job in a fresh process and folder."""
    listing, result = scratch / "files.json", scratch / "result.json"
    listing.write_text(json.dumps(files))
    folder = tempfile.mkdtemp(dir=scratch, prefix=f"{name}-")
    command = [sys.executable, "-m", "mim3d.bench.convert.jobs", name, folder]
    done = subprocess.run(
        [*command, str(listing), str(result), str(side)],
        capture_output=True,
        text=True,
        check=False,
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
