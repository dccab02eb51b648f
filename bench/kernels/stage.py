"""`mim3d bench kernels`: each fused operation against eager recipes and torch.compile."""

import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from mim3d.bench.kernels.cases import OURS, Shape, operations
from mim3d.bench.kernels.options import KernelsBench
from mim3d.bench.kernels.roofline import draw_roofline
from mim3d.bench.kernels.runs import Run, Session
from mim3d.bench.timing import copy_bandwidth, median_cold
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.errors import ConfigError
from mim3d.kernels.backend import decide

SIZES = {
    "full": (Shape(64, 96, 16), Shape(8, 192, 16), Shape(64, 96, 8)),
    "small": (Shape(2, 96, 16),),
    "tiny": (Shape(1, 32, 16),),
}
ON_CPU = (
    "On a CPU the PyTorch references run in place of the kernels: these figures compare "
    "formulations, they are NOT the kernels' figures."
)


@dataclass(frozen=True)
class Row:
    """One timed variant; `share` is needed bytes / seconds / copy bandwidth.

    `ratio` is its time over ours; `low` and `high` the same between quartiles that lie apart.
    `call_s` is the host's time of a call, `kernels_s` that of its kernels alone.
    """

    operation: str
    shape: str
    variant: str
    needed_bytes: int
    seconds: float
    graph_seconds: float | None
    share: float
    ratio: float
    low: float
    high: float
    call_s: float
    kernels_s: float | None
    kernels: int | None

    @property
    def verdict(self) -> str:
        """The ratio with its range; unresolved where quartiles overlap."""
        if self.variant == OURS:
            return "1"
        unresolved = ", unresolved" if self.low <= 1.0 <= self.high else ""
        return f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f}){unresolved}"


def main(words: list[str]) -> Outcome:
    """Run the bench, print its table, draw its roofline."""
    options = parse(KernelsBench, words, "mim3d bench kernels", KernelsBench.__doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = options.size if options.size != "auto" else {"cuda": "full", "cpu": "small"}[device]
    compiled = device == "cuda" if options.compiled is None else options.compiled
    rounds = options.rounds or {"cuda": 30, "cpu": 3}[device]
    if device == "cpu":
        torch.set_num_threads(1)
    chosen = [operation for operation in operations() if options.only in operation.name]
    if not chosen:
        names = ", ".join(operation.name for operation in operations())
        raise ConfigError(f"--only {options.only!r} names no operation; there are {names}")
    bandwidth = copy_bandwidth(device, rounds)
    launch = launch_seconds(device, rounds)
    session = Session(device, bandwidth, rounds, options.seconds)
    session.plan(chosen, SIZES[size], compiled)
    with tempfile.TemporaryDirectory(prefix="mim3d-bench-") as folder:
        session.run(files_of(options), Path(folder))
    rows = rows_of(session)
    report = "\n".join([*heading(device, bandwidth, launch), "", *table(rows), *notes(session)])
    print(report)
    if options.out is not None:
        (options.out / "kernels.md").write_text(report + "\n")
        title = f"mim3d kernels on {device_name(device)}" + (
            "" if device == "cuda" else ": references only, not the kernels' figures"
        )
        records = [asdict(row) for row in rows]
        if records:
            draw_roofline(records, bandwidth, launch, title, options.out / "roofline.png")
    lost = len(session.failed) + len(session.skipped)
    return Outcome(figures_of(rows, device, bandwidth, launch, session), lost)


def files_of(options: KernelsBench) -> list[str]:
    """What pytest-benchmark is to write."""
    words = []
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        words.append(f"--benchmark-json={options.out.resolve() / 'kernels-benchmark.json'}")
    if options.storage is not None:
        words += [f"--benchmark-storage={options.storage.resolve()}", "--benchmark-autosave"]
    return words


def rows_of(session: Session) -> list[Row]:
    """A row per variant that was timed."""
    cold = {run: s for run, s in session.seconds_of.items() if run.mode == "cold"}
    graph = {name_of(run): s for run, s in session.seconds_of.items() if run.mode == "graph"}
    ours = {name_of(run)[:2]: run for run in cold if run.variant == OURS}
    rows = []
    for run, seconds in cold.items():
        operation, shape, variant = name_of(run)
        needed = session.needed_of[operation, shape]
        share = needed / seconds / session.copy_bytes_per_s
        ratio = seconds / cold[ours[operation, shape]]
        q1, q3 = session.quartiles_of[run]
        ours_q1, ours_q3 = session.quartiles_of[ours[operation, shape]]
        rows.append(
            Row(
                operation, shape, variant, needed, seconds, graph.get(name_of(run)), share,
                ratio, q1 / ours_q3, q3 / ours_q1, *astuple(session.calls_of[run]),
            )
        )  # fmt: skip
    order = {(row.operation, row.shape): i for i, row in reversed(list(enumerate(rows)))}
    return sorted(rows, key=lambda row: order[row.operation, row.shape])


def name_of(run: Run) -> tuple[str, str, str]:
    """(operation, shape, variant)."""
    return run.operation.name, run.shape.name, run.variant


def notes(session: Session) -> list[str]:
    """What is missing from the table, and why."""
    lines = [f"failed: {name}: {why.splitlines()[0]}" for name, why in session.failed.items()]
    if session.skipped:
        lines.append(
            f"not begun within {session.seconds:.0f} s: {len(session.skipped)} timings, "
            f"from {session.skipped[0]} on"
        )
    return ["", *lines] if lines else []


def launch_seconds(device: str, rounds: int) -> float:
    """Time of the smallest operation, the floor under any variant."""
    one = torch.zeros(1, device=device)
    return median_cold(lambda: one.add_(1), device, rounds)


def device_name(device: str) -> str:
    """The GPU's name, or the processor's."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU {platform.processor() or platform.machine()}, 1 thread"


def heading(device: str, bandwidth: float, launch: float) -> list[str]:
    """What ran where, and the ceilings."""
    choice = decide(device)
    lines = [
        f"{device_name(device)}, torch {torch.__version__}; mim3d runs as {choice.implementation} "
        f"({choice.reason}); copy bandwidth {bandwidth / 1e9:.1f} GB/s, "
        f"smallest launch {launch * 1e6:.1f} us"
    ]
    return lines if device == "cuda" else [ON_CPU, "", *lines]


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown table, one line per variant."""
    lines = [
        "| operation | shape | variant | MB needed | ms cold | ms graph | ms kernels | kernels "
        "| ms call | of copy rate | x ours |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        graph, alone = map(milliseconds, (row.graph_seconds, row.kernels_s))
        lines.append(
            f"| {row.operation} | {row.shape} | {row.variant} | {row.needed_bytes / 1e6:.2f} "
            f"| {row.seconds * 1e3:.4f} | {graph} | {alone} | {row.kernels or '-'} "
            f"| {row.call_s * 1e3:.4f} | {row.share:.1%} | {row.verdict} |"
        )
    return lines


def milliseconds(seconds: float | None) -> str:
    """For a cell; a dash where it was not measured."""
    return "-" if seconds is None else f"{seconds * 1e3:.4f}"


def figures_of(
    rows: Sequence[Row], device: str, bandwidth: float, launch: float, session: Session
) -> dict[str, Any]:
    """Everything for `--json`."""
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "implementation": decide(device).implementation,
        "kernels_figures": device == "cuda",
        "copy_bytes_per_s": bandwidth,
        "launch_s": launch,
        "rows": [asdict(row) for row in rows],
        "failed": session.failed,
        "not_begun": session.skipped,
    }
