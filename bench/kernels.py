"""`mim3d bench kernels`: each fused operation against eager recipes and torch.compile."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from mim3d.bench.kernel_cases import OURS, Case, Shape, cases
from mim3d.bench.roofline import draw_roofline
from mim3d.bench.timing import Function, copy_bandwidth, time_cold, time_graph
from mim3d.engine.outcome import Outcome
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
class KernelsBench:
    """Time masks, patch rows, losses, decoder tokens and crop assembly beside eager recipes.

    Every variant runs in one process on the same data; times are medians with a cold cache and, on
    a GPU, also inside a CUDA graph. Shares are of the copy bandwidth measured in the same run.
    """

    size: Literal["auto", "full", "small", "tiny"] = "auto"
    """full: 96^3 B64 and 192^3 B8 (a GPU with 40 GB); small: 96^3 B2; tiny: a smoke test.
    auto: full on a GPU, small on a CPU."""
    compiled: bool | None = None
    """Also time torch.compile of the clean forms and the recipes. Default: on a GPU."""
    rounds: int | None = None
    """Timed calls per variant. Default: 30 on a GPU, 3 on a CPU."""
    out: Path | None = None
    """Folder for kernels.md (the table) and roofline.png."""
    peers: bool = False
    """Accepted for `mim3d bench all --peers`; the recipes always run."""


@dataclass(frozen=True)
class Row:
    """One timed variant; `share` is needed bytes / seconds / copy bandwidth."""

    operation: str
    shape: str
    variant: str
    needed_bytes: int
    seconds: float
    graph_seconds: float | None
    share: float
    ratio: float


def main(words: list[str]) -> Outcome:
    """Run the bench, print its table, draw its roofline."""
    options = tyro.cli(
        KernelsBench, args=words, prog="mim3d bench kernels", description=KernelsBench.__doc__
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = options.size if options.size != "auto" else {"cuda": "full", "cpu": "small"}[device]
    compiled = device == "cuda" if options.compiled is None else options.compiled
    rounds = options.rounds or {"cuda": 30, "cpu": 3}[device]
    if device == "cpu":
        torch.set_num_threads(1)
    bandwidth = copy_bandwidth(device, rounds)
    launch = launch_seconds(device, rounds)
    rows: list[Row] = []
    for shape in SIZES[size]:
        # At patch 8 the matrix products are everything: not worth the compiler's minutes.
        for case in cases(shape, device, compiled and shape.patch > 8):
            rows += measure(case, device, rounds, bandwidth)
            print(f"  {case.operation}, {case.shape}: done", flush=True)
    report = "\n".join([*heading(device, bandwidth, launch), "", *table(rows)])
    print(report)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "kernels.md").write_text(report + "\n")
        title = f"mim3d kernels on {device_name(device)}" + (
            "" if device == "cuda" else ": references only, not the kernels' figures"
        )
        records = [asdict(row) for row in rows]
        draw_roofline(records, bandwidth, launch, title, options.out / "roofline.png")
    return Outcome(figures_of(rows, device, bandwidth, launch))


def measure(case: Case, device: str, rounds: int, bandwidth: float) -> list[Row]:
    """Time every variant of a case; `ratio` is its time over ours."""
    cold = {name: time_cold(call, device, rounds) for name, call in case.variants.items()}
    graph: dict[str, float | None] = dict.fromkeys(case.variants)
    if device == "cuda":
        graph = {name: graph_or_none(name, call, rounds) for name, call in case.variants.items()}
    return [
        Row(
            case.operation, case.shape, name, case.needed_bytes, seconds, graph[name],
            case.needed_bytes / seconds / bandwidth, seconds / cold[OURS],
        )
        for name, seconds in cold.items()
    ]  # fmt: skip


def graph_or_none(name: str, call: Function, rounds: int) -> float | None:
    """Time inside a CUDA graph; None, and the reason told, where a recipe cannot be captured."""
    try:
        return time_graph(call, rounds)
    except RuntimeError as error:
        if name == OURS:
            raise
        print(f"  {name}: no CUDA graph: {str(error).splitlines()[0]}", flush=True)
        return None


def launch_seconds(device: str, rounds: int) -> float:
    """Time of the smallest operation, the floor under any variant."""
    one = torch.zeros(1, device=device)
    return time_cold(lambda: one.add_(1), device, rounds)


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
        "| operation | shape | variant | MB needed | ms cold | ms graph | of copy rate | x ours |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        graph = "-" if row.graph_seconds is None else f"{row.graph_seconds * 1e3:.4f}"
        lines.append(
            f"| {row.operation} | {row.shape} | {row.variant} | {row.needed_bytes / 1e6:.2f} "
            f"| {row.seconds * 1e3:.4f} | {graph} | {row.share:.1%} | {row.ratio:.2f} |"
        )
    return lines


def figures_of(rows: Sequence[Row], device: str, bandwidth: float, launch: float) -> dict[str, Any]:
    """Everything for `--json`."""
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "implementation": decide(device).implementation,
        "kernels_figures": device == "cuda",
        "copy_bytes_per_s": bandwidth,
        "launch_s": launch,
        "rows": [asdict(row) for row in rows],
    }
