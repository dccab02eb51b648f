"""A study's report, drawn again from what `results/` keeps of it.

    python -m mim3d.bench.reports bench/results/2026-11-25-hippocampus-study out/

Results are kept without their report (one HTML file with all its pictures inside) and with their
rows compressed. The folder is unpacked into OUT, and `mim3d compare --report` does the rest.
"""

import argparse
import gzip
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mim3d.engine.analysis.figures import figures_of
from mim3d.engine.errors import ConfigError
from mim3d.engine.report.report import build_report
from mim3d.engine.study.config import STUDY


def unpack(kept: Path, out: Path) -> None:
    """Copy a kept study into `out`, its rows as the report reads them."""
    if not (kept / STUDY).exists():
        raise ConfigError(
            f"{kept} keeps no study ({STUDY}): name one of "
            f"{', '.join(str(file.parent) for file in sorted(kept.parent.glob(f'*/{STUDY}')))}"
        )
    shutil.copytree(kept, out, dirs_exist_ok=True)
    for packed in out.rglob("*.jsonl.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()


def redraw(kept: Path, out: Path) -> Path:
    """Unpack a kept study and build its report; the report's file."""
    unpack(kept, out)
    return build_report(out)


def figures(kept: Path, out: Path) -> dict[str, Any]:
    """The study's main numbers, computed from its rows alone."""
    unpack(kept, out)
    return figures_of(out / "report.html") | {"report": None}


def main(words: Sequence[str] | None = None) -> int:
    """`python -m mim3d.bench.reports KEPT OUT`."""
    parser = argparse.ArgumentParser(prog="python -m mim3d.bench.reports", description=__doc__)
    parser.add_argument("kept", type=Path, help="a folder of bench/results that has study.json")
    parser.add_argument("out", type=Path, help="where the report goes")
    options = parser.parse_args(words)
    try:
        report = redraw(options.kept, options.out)
    except (ValueError, OSError) as error:
        print(f"reports: {error}", file=sys.stderr)
        return 2
    print(f"report: {report}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
