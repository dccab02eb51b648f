"""A study put away small, for `results/`: rows packed, no folders of runs, no pictures, no report.

    python -m mim3d.bench.keep study/ bench/results/2026-12-01-hippocampus/

`python -m mim3d.bench.reports` draws its report again, and `mim3d compare` goes on from it: copy
the folder and name the copy as --out.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mim3d.engine.analysis.results import Study
from mim3d.engine.errors import ConfigError
from mim3d.engine.runs.files import read_json, read_jsonl
from mim3d.engine.study.config import CASES, PLAN, PRETRAINING, RESULTS, STUDY
from mim3d.engine.study.kept import grouped, kept_rows

PICTURES = {"picture", "pictures"}
"""Columns of paths in the study's folder."""


def keep(study: Path, kept: Path, cases: bool = False) -> list[Path]:
    """Write a study's results into `kept`; the files. ConfigError where some would be lost there.

    `cases`: the scores of single cases too.
    """
    rows = Study.load(study).rows
    refuse_loss(study, kept, rows)
    kept.mkdir(parents=True, exist_ok=True)
    plain = {name: read_json(study / name) for name in (PLAN, PRETRAINING, STUDY)}
    plain[PRETRAINING] = list(map(without_pictures, plain[PRETRAINING]))
    packed = {RESULTS: rows} | ({CASES: read_jsonl(study / CASES)} if cases else {})
    files = []
    for name, value in plain.items():
        files.append(kept / name)
        files[-1].write_text(compact(value) + "\n", encoding="utf-8")
    for name, table in packed.items():
        lines = "".join(compact(without_pictures(row)) + "\n" for row in table)
        files.append(kept / f"{name}.gz")
        files[-1].write_bytes(gzip.compress(lines.encode(), 9, mtime=0))
    return files


def refuse_loss(study: Path, kept: Path, rows: list[dict[str, Any]]) -> None:
    """ConfigError where `kept` has another study, or runs that this one has not."""
    if not (kept / STUDY).exists():
        return
    then, now = (read_json(folder / STUDY).get("name") for folder in (kept, study))
    lost = set(grouped(kept_rows(kept / RESULTS))) - set(grouped(rows))
    if then != now or lost:
        why = (
            f"{len(lost)} runs that {study} has not" if then == now else f"study {then}, not {now}"
        )
        raise ConfigError(f"{kept} has {why}: name another folder")


def without_pictures(row: dict[str, Any]) -> dict[str, Any]:
    """A row without paths of pictures that are not kept."""
    return {name: value for name, value in row.items() if name not in PICTURES}


def compact(value: object) -> str:
    """JSON in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def main(words: Sequence[str] | None = None) -> int:
    """`python -m mim3d.bench.keep STUDY KEPT`."""
    parser = argparse.ArgumentParser(prog="python -m mim3d.bench.keep", description=__doc__)
    parser.add_argument("study", type=Path, help="a study's folder, finished or under way")
    parser.add_argument("kept", type=Path, help="where its results go, such as bench/results/NAME")
    parser.add_argument("--cases", action="store_true", help="scores of single cases too")
    options = parser.parse_args(words)
    try:
        files = keep(options.study, options.kept, options.cases)
    except (ValueError, OSError) as error:
        print(f"keep: {error}", file=sys.stderr)
        return 2
    for file in files:
        print(f"{file}: {file.stat().st_size / 1024:.0f} KB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
