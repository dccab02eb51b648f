"""The one test of `mim3d bench kernels`: pytest-benchmark times every variant through it.

Not collected by the suite: `runs` hands this file to a pytest of its own.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mim3d.bench.kernels.runs import Run


def test_variant(benchmark: Any, run: "Run") -> None:
    """Time one variant; `benchmark` is pytest-benchmark's fixture with our timer."""
    run.measure(benchmark)
