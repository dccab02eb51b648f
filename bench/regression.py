"""Did a stage's ratios move? A run beside the stored baseline, in pytest-benchmark's files.

    mim3d bench all --peers --json bench.json           # `make bench` runs both of these
    python -m mim3d.bench.regression bench.json

Each ratio becomes a benchmark whose statistics are those of the ratio over rounds, so that
pytest-benchmark's own loader reads both files and `pytest-benchmark compare` shows all of them.
Told is what moved by more than its noise. A bench never fails: ratios judge, people decide.
"""

import argparse
import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mim3d.engine.environment import machine
from mim3d.engine.errors import ConfigError, Mim3dError

BASELINE = Path(__file__).resolve().parent / "baseline" / "two-cpu-cores.json"
LEAST_NOISE = 0.05
"""Share of a ratio below which nothing counts as moved: runs on an idle machine differ by it."""
UNKNOWN_NOISE = 0.10
"""Taken for a side with one round, which tells nothing of its noise."""
LOWER_IS_BETTER = frozenset({"mim3d_over_floor_cpu", "peak_over_largest_volume"})

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Ratio:
    """A ratio as a stage tells it, and the same in each of its rounds."""

    stage: str
    work: str
    """What it was measured on; ratios of other work are not compared."""
    name: str
    value: float
    rounds: tuple[float, ...]

    @property
    def better(self) -> str:
        """ "lower" or "higher"."""
        return "lower" if self.name in LOWER_IS_BETTER else "higher"


@dataclass(frozen=True)
class Change:
    """A ratio beside its baseline; `percent` is its change, `noise` what it may vary by, in %."""

    name: str
    baseline: float
    now: float
    percent: float
    noise: float
    better: str

    @property
    def moved(self) -> bool:
        """Whether it changed by more than its noise."""
        return abs(self.percent) > self.noise

    @property
    def verdict(self) -> str:
        """ "better" or "WORSE"."""
        return "better" if (self.percent > 0) == (self.better == "higher") else "WORSE"


def convert_ratios(figures: Figures) -> Iterator[Ratio]:
    """The script, the unavoidable work, two workers, memory."""
    # How many counts: a process's start is a large part of the time of a few.
    work = f"{figures['files']} volumes of {figures['voxel_mb'] / figures['files']:.1f} MB"
    if figures.get("chunk", 16) != 16:
        work += f", chunks of {figures['chunk']}^3"
    rounds = figures.get("rounds", {})
    for name, value in figures["ratios"].items():
        if name != "two_workers_speed" or not figures["scaling"]["busy"]:
            yield Ratio("convert", work, name, value, tuple(rounds.get(name, ())))


def loader_ratios(figures: Figures) -> Iterator[Ratio]:
    """The reader over each peer, and mim3d's other ways over the reader."""
    kinds = Counter((v["dtype"], "x".join(map(str, v["shape"]))) for v in figures["volumes"])
    work = ", ".join(f"{n} {dtype} {shape}" for (dtype, shape), n in sorted(kinds.items()))
    reader = "mim3d reader, snap 16"
    rates, rounds = figures["rates"], figures.get("rounds", {})
    for name in rates:
        if name == reader:
            continue
        over = (name, reader) if name.startswith("mim3d ") else (reader, name)
        value = rates[over[0]]["per_cpu_s"] / rates[over[1]]["per_cpu_s"]
        label = " over ".join(part.removeprefix("mim3d ") for part in over)
        yield Ratio("loader", work, label, value, paired(rounds, *over))


def views_ratios(figures: Figures) -> Iterator[Ratio]:
    """Our loops over each peer."""
    for name, ratio in figures["ratios"].items():
        yield Ratio("views", f"{figures['crop']}^3", name, ratio["value"], tuple(ratio["rounds"]))


def spatial_ratios(figures: Figures) -> Iterator[Ratio]:
    """Turned crops over each other way of making them."""
    for name, ratio in figures["ratios"].items():
        yield Ratio("spatial", f"{figures['crop']}^3", name, ratio["value"], tuple(ratio["rounds"]))


def optim_ratios(figures: Figures) -> Iterator[Ratio]:
    """Every other optimiser's time over ours."""
    ours, seconds, rounds = "mim3d, clipped", figures["seconds"], figures.get("rounds", {})
    work = f"{figures['parameters_per_rank']} parameters, {figures['device']}"
    for name in (name for name in seconds if name != ours):
        value = seconds[name] / seconds[ours]
        yield Ratio("optim", work, f"{name} over ours", value, paired(rounds, name, ours))


def step_ratios(figures: Figures) -> Iterator[Ratio]:
    """The eager recipe's time over ours, and the rate with the loader over that in memory."""
    rounds = figures.get("rounds", {})
    work = f"{figures['method']}, {figures['global_batch']} crops, {figures['device']}"
    pairs = {"over_eager": ("eager recipe", "in memory")}
    pairs["loader_over_memory"] = ("in memory", "loader")
    for name in (name for name in pairs if name in figures):
        yield Ratio("step", work, name, figures[name], paired(rounds, *pairs[name]))


def kernels_ratios(figures: Figures) -> Iterator[Ratio]:
    """Every other variant's time over ours, cold; quartiles stand in for rounds."""
    work = f"{figures['device']}, {figures['implementation']}"
    for row in figures["rows"]:
        if row["variant"] != "mim3d":
            name = f"{row['operation']}, {row['shape']}: {row['variant']} over ours"
            rounds = (row["low"], row["ratio"], row["high"]) if "low" in row else ()
            yield Ratio("kernels", work, name, row["ratio"], rounds)


STAGES: dict[str, Callable[[Figures], Iterator[Ratio]]] = {
    "convert": convert_ratios,
    "loader": loader_ratios,
    "views": views_ratios,
    "spatial": spatial_ratios,
    "kernels": kernels_ratios,
    "optim": optim_ratios,
    "step": step_ratios,
}


def paired(rounds: Mapping[str, Sequence[float]], over: str, under: str) -> tuple[float, ...]:
    """The ratio within each round; none where the figures tell no rounds."""
    if over not in rounds or under not in rounds:
        return ()
    return tuple(a / b for a, b in zip(rounds[over], rounds[under], strict=True))


def ratios_of(figures: Figures) -> list[Ratio]:
    """All ratios of what `mim3d bench` wrote by --json."""
    return [r for stage in STAGES if stage in figures for r in STAGES[stage](figures[stage])]


def document(ratios: Sequence[Ratio], facts: Mapping[str, str]) -> dict[str, Any]:
    """The ratios as pytest-benchmark's JSON; `facts` are its machine_info."""
    return {
        "machine_info": dict(facts),
        "commit_info": {},
        "benchmarks": [entry(ratio) for ratio in ratios],
        "datetime": datetime.now(UTC).isoformat(),
        "version": needed("pytest_benchmark").__version__,
    }


def entry(ratio: Ratio) -> dict[str, Any]:
    """One ratio as a benchmark. Its "seconds" are the ratio itself, which has no unit."""
    stats = needed("pytest_benchmark.stats").Stats()
    for value in ratio.rounds or (ratio.value,):
        stats.update(value)
    low, high = stats.min, stats.max
    return {
        "group": ratio.stage,
        "name": ratio.name,
        "fullname": f"{ratio.stage} [{ratio.work}] {ratio.name}",
        "params": None,
        "param": None,
        "extra_info": {
            "ratio": ratio.value,
            "spread": (high - low) / ratio.value if len(ratio.rounds) > 1 else None,
            "better": ratio.better,
        },
        "options": {"unit": "ratio"},
        "stats": stats.as_dict() | {"iterations": 1},
    }


def changes(file: Path, baseline: Path) -> tuple[list[Change], list[str]]:
    """Every ratio that both files have, as the baseline orders them, and names it does not have."""
    now, before = (loaded(one) for one in (file, baseline))
    check = needed("pytest_benchmark.utils").PercentageRegressionCheck("ratio", 0)
    found = []
    for name, old in before.items():
        if (new := now.get(name)) is not None:
            noise = 100 * max(LEAST_NOISE, math.hypot(spread(old), spread(new)))
            percent = check.compute(new, old)
            found.append(
                Change(name, old["ratio"], new["ratio"], percent, noise, str(old["better"]))
            )
    return found, [name for name in now if name not in before]


def loaded(file: Path) -> dict[str, dict[str, Any]]:
    """pytest-benchmark's file by full name: extra_info and statistics. Refused if it is none."""
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; --save {file} writes one from a run")
    logger = needed("pytest_benchmark.logger").Logger(level=0)
    storage = needed("pytest_benchmark.storage.file").FileStorage(file.parent, logger)
    found = {}
    try:
        with warnings.catch_warnings(action="ignore"):  # that it cannot be read is told below
            for bench in storage.load_benchmarks(str(file)):
                found[bench["fullname"]] = {**bench, **bench["extra_info"]}
                if not {"ratio", "spread", "better"} <= bench["extra_info"].keys():
                    raise KeyError("ratio")
    except (KeyError, TypeError, AttributeError):
        found = {}
    if not found:
        raise ConfigError(f"{file}: holds no ratios of a bench; --save {file} writes such a file")
    return found


def spread(benchmark: Mapping[str, Any]) -> float:
    """Range over rounds as a share of the ratio."""
    noise = benchmark["spread"]
    return UNKNOWN_NOISE if noise is None else float(noise)


def table(found: Sequence[Change], new: Sequence[str], baseline: Path) -> str:
    """What moved, for people."""
    facts = json.loads(baseline.read_text()).get("machine_info", {})
    where = ", ".join(str(facts[key]) for key in ("date", "machine") if key in facts)
    lines = [f"baseline: {baseline.name} ({where or 'of an unnamed machine'})"]
    moved = [change for change in found if change.moved]
    if moved:
        width = max(len(change.name) for change in moved)
        lines.append(
            f"{'moved by more than its noise':<{width}}  baseline      now  change   noise"
        )
        lines += [
            f"{c.name:<{width}}  {c.baseline:8.3f} {c.now:8.3f} {c.percent:+6.1f}%  {c.noise:5.1f}%"
            f"  {c.verdict}"
            for c in moved
        ]
    lines.append(f"{len(moved)} of {len(found)} ratios moved by more than their noise")
    if new:
        lines.append(
            f"{len(new)} ratios of this run have no baseline, from {new[0]!r} on; --save FILE "
            "makes the run one, --baseline FILE compares with it"
        )
    return "\n".join(lines)


def needed(name: str) -> Any:
    """A module of pytest-benchmark, or the way to get it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is missing: ratios are compared with pytest-benchmark; "
            "pip install 'mim3d[test]'"
        ) from None


def read_ratios(file: Path) -> list[Ratio]:
    """Ratios of what --json wrote; refused where no stage of a bench is in it."""
    try:
        found = ratios_of(json.loads(file.read_text()))
    except OSError:
        raise ConfigError(
            f"{file}: no such file; mim3d bench all --json {file} writes it"
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError):
        found = []
    if not found:
        raise ConfigError(f"{file}: no stage of a bench; mim3d bench all --json {file} writes them")
    return found


def run(words: Sequence[str] | None) -> None:
    """Write the run's ratios beside its figures and tell what moved."""
    parser = argparse.ArgumentParser("python -m mim3d.bench.regression", description=__doc__)
    parser.add_argument("figures", type=Path, help="what `mim3d bench STAGE --json FILE` wrote")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="file to compare with")
    parser.add_argument("--save", type=Path, help="write the run as a baseline of its own instead")
    args = parser.parse_args(words)
    facts = machine()
    date = datetime.now(UTC).date().isoformat()
    facts |= {"date": date, "machine": f"{facts['cores']} cores of {facts['processor']}"}
    file = args.save or args.figures.with_name(f"{args.figures.stem}-ratios.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    content = document(read_ratios(args.figures), facts)
    file.write_text(json.dumps(content, indent=1) + "\n")
    if args.save is None:
        print(table(*changes(file, args.baseline), args.baseline))
    print(f"ratios in {file}")


def main(words: Sequence[str] | None = None) -> int:
    """Tell what moved; 2 only where there was nothing to compare."""
    try:
        run(words)
    except Mim3dError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
