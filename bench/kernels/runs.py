"""Runs kernel cases under pytest-benchmark, so that its JSON, storage and `compare` work for them.

    session = Session(plan, device, ...); session.run(arguments) -> seconds by run

One `Run` is a variant timed one way (cold caches, or inside a CUDA graph); `timings.py` is its
test. pytest-benchmark keeps rounds, statistics and files; the clocks are ours (bench/timing.py).
"""

import gc
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mim3d.bench.kernels.cases import OURS, Case, Operation, Shape
from mim3d.bench.kernels.device_time import CallTime, call_time
from mim3d.bench.timing import WARMUP, Flush, captured, cold_timer, graph_instant, once
from mim3d.engine.errors import ConfigError
from mim3d.engine.variables import variables_kept

TIMINGS = Path(__file__).with_name("timings.py")
LEAST_ROUNDS = 5
SECONDS_A_RUN = 0.5  # a slow variant gets fewer rounds, never fewer than LEAST_ROUNDS


@dataclass(frozen=True)
class Run:
    """One variant of an operation on a shape, timed "cold" or in a "graph"."""

    session: "Session" = field(repr=False, compare=False)
    operation: Operation
    shape: Shape
    variant: str
    mode: str

    @property
    def name(self) -> str:
        """Id of the test, for example "loss int16-96^3 B64 p16-mim3d-cold"."""
        return f"{self.operation.name}-{self.shape.name}-{self.variant}-{self.mode}"

    def measure(self, benchmark: Any) -> None:
        """Time it with pytest-benchmark's fixture and hand the median to the session."""
        import pytest

        session, device = self.session, self.session.device
        if session.late():
            pytest.skip(f"not begun within {session.seconds:.0f} s")
        case = session.case(self.operation, self.shape)
        call = case.variants[self.variant]
        call()  # compiles, where something is to be compiled
        rounds = session.rounds_for(once(call, device))
        if self.mode == "graph":
            graph = captured(call)
            benchmark.pedantic(graph.replay, rounds=rounds, warmup_rounds=2)
        else:
            benchmark.pedantic(call, setup=session.flush, rounds=rounds, warmup_rounds=WARMUP)
        seconds = benchmark.stats.stats.median
        needed = case.needed_bytes
        session.seconds_of[self] = seconds
        if self.mode == "cold":
            session.calls_of[self] = call_time(call, device, session.flush)
        session.quartiles_of[self] = (benchmark.stats.stats.q1, benchmark.stats.stats.q3)
        session.needed_of[self.operation.name, self.shape.name] = needed
        benchmark.extra_info |= {
            "operation": self.operation.name,
            "shape": self.shape.name,
            "variant": self.variant,
            "mode": self.mode,
            "needed_bytes": needed,
            "share_of_copy": needed / seconds / session.copy_bytes_per_s,
        }


class Session:
    """A pytest of its own over a plan of runs; also its plugin.

    `seconds` is how long runs may be begun, for a machine that is lent by the minute.
    """

    def __init__(
        self, device: str, copy_bytes_per_s: float, most_rounds: int, seconds: float
    ) -> None:
        self.device, self.copy_bytes_per_s = device, copy_bytes_per_s
        self.most_rounds, self.seconds = most_rounds, seconds
        self.began = time.monotonic()
        self.flush = Flush(device)
        self.runs: list[Run] = []
        self.seconds_of: dict[Run, float] = {}
        self.quartiles_of: dict[Run, tuple[float, float]] = {}
        self.calls_of: dict[Run, CallTime] = {}
        self.needed_of: dict[tuple[str, str], int] = {}
        self.failed: dict[str, str] = {}
        self.skipped: list[str] = []
        self._built: tuple[str, str, Case] | None = None

    def plan(
        self, operations: Sequence[Operation], shapes: Sequence[Shape], compiled: bool
    ) -> None:
        """Queue variants: of each shape ours and the eager recipes first, the compiled ones last.

        At patch 8 the matrix products are everything: not worth the compiler's minutes.
        """
        for late in (False, True) if compiled else (False,):
            for shape in shapes:
                if late and shape.patch <= 8:
                    continue
                for operation in operations:
                    early = operation.variants(False)
                    names = [name for name in operation.variants(late) if (name in early) != late]
                    self.runs += self._runs(operation, shape, names)

    def _runs(self, operation: Operation, shape: Shape, names: Sequence[str]) -> Iterator[Run]:
        for name in names:
            yield Run(self, operation, shape, name, "cold")
        for name in names if self.device == "cuda" else ():
            if name not in operation.waits:
                yield Run(self, operation, shape, name, "graph")

    def run(self, arguments: Sequence[str], folder: Path) -> None:
        """Time everything planned; `arguments` go to pytest (--benchmark-json and the like)."""
        try:
            import pytest
            import pytest_benchmark  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"{error.name} is missing: mim3d bench kernels times with pytest-benchmark; "
                "pip install 'mim3d[test]'"
            ) from None
        settings = folder / "pytest.ini"
        settings.write_text("[pytest]\naddopts =\n")
        words = [
            str(TIMINGS), "-c", str(settings), "--rootdir", str(folder), "-s",
            "--import-mode=importlib", "-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider",
            "-p", "no:terminal", "-W", "ignore", "--benchmark-disable-gc", *arguments,
        ]  # fmt: skip
        with only_named_plugins():
            code = int(pytest.main(words, plugins=[self]))
        if code not in (0, 1):
            raise RuntimeError(f"pytest ended with {code} before anything was timed")
        ours = [name for name in self.failed if f"-{OURS}-" in name]
        if ours:
            raise RuntimeError(f"{ours[0]} failed:\n{self.failed[ours[0]]}")

    def case(self, operation: Operation, shape: Shape) -> Case:
        """The case's tensors; those of the case before are freed first."""
        if self._built is None or self._built[:2] != (operation.name, shape.name):
            self._built = None
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()
            self._built = (operation.name, shape.name, operation.build(shape, self.device))
        return self._built[2]

    def late(self) -> bool:
        """Whether no more runs are to be begun."""
        return time.monotonic() - self.began > self.seconds

    def rounds_for(self, seconds: float) -> int:
        """Rounds of a call that takes this long."""
        fitting = int(SECONDS_A_RUN / max(seconds, 1e-6))
        return min(self.most_rounds, max(LEAST_ROUNDS, fitting))

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """pytest's hook: one test per run, with its clock and its group."""
        import pytest

        cold = cold_timer(self.device)
        metafunc.parametrize(
            "run",
            [
                pytest.param(
                    run,
                    id=run.name,
                    marks=pytest.mark.benchmark(
                        group=f"{run.operation.name}, {run.shape.name}, {run.mode}",
                        timer=graph_instant if run.mode == "graph" else cold,
                    ),
                )
                for run in self.runs
            ],
        )

    def pytest_runtest_logreport(self, report: Any) -> None:
        """pytest's hook: tell what is done, keep what failed."""
        name = report.nodeid.partition("[")[2].removesuffix("]")
        if report.skipped:
            self.skipped.append(name)
        elif report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failed[name] = crash.message if crash else report.longreprtext
            print(f"  {name}: FAILED: {self.failed[name].splitlines()[0]}", flush=True)
        elif report.when == "call":
            print(f"  {name}: done", flush=True)

    def pytest_benchmark_update_machine_info(self, config: Any, machine_info: Any) -> None:
        """pytest-benchmark's hook: the device instead of the host's name."""
        machine_info.pop("node", None)
        machine_info["torch"] = torch.__version__
        machine_info["device"] = (
            torch.cuda.get_device_name() if self.device == "cuda" else machine_info["processor"]
        )
        machine_info["copy_bytes_per_s"] = self.copy_bytes_per_s


@contextmanager
def only_named_plugins() -> Iterator[None]:
    """Keep a user's pytest settings and installed plugins out of the timings."""
    # A worker of pytest-xdist may be the caller: pytest-benchmark would time nothing there.
    names = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_XDIST_WORKER")
    without = "PYTEST_DISABLE_PLUGIN_AUTOLOAD"
    with variables_kept(*names, without):
        for name in names:
            os.environ.pop(name, None)
        os.environ[without] = "1"
        yield
