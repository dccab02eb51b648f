"""What `mim3d bench kernels` is asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mim3d.dataio.finite import refuse_not_finite, refuse_outside


@dataclass(frozen=True)
class KernelsBench:
    """Time masks, patch rows, losses, decoder tokens and crop assembly beside eager recipes.

    pytest-benchmark times every variant in one process on the same data, with CUDA events for its
    clock; the figures are medians with a cold cache and, on a GPU, also inside a CUDA graph. Beside
    them stand a call's kernels alone and the host's time of a call with warm caches. Shares are of
    the copy bandwidth measured in the same run. `pytest-benchmark compare` reads the files.
    """

    size: Literal["auto", "full", "small", "tiny"] = "auto"
    """full: 96^3 B64 and 192^3 B8 (a GPU with 40 GB); small: 96^3 B2; tiny: a smoke test.
    auto: full on a GPU, small on a CPU."""
    compiled: bool | None = None
    """Also time torch.compile of the clean forms and the recipes. Default: on a GPU."""
    rounds: int | None = None
    """Timed calls per variant. Default: 30 on a GPU, 3 on a CPU."""
    seconds: float = 1e9
    """Begin no variant after this many seconds; what was left out is counted as lost."""
    only: str = ""
    """Only operations whose name contains this, for example "loss"."""
    out: Path | None = None
    """Folder for kernels.md (the table), roofline.png and kernels-benchmark.json
    (pytest-benchmark's format)."""
    storage: Path | None = None
    """pytest-benchmark's storage to save this run in; then `pytest-benchmark --storage DIR compare`
    tells what changed between runs."""
    peers: bool = False
    """Accepted for `mim3d bench all --peers`; the recipes always run."""

    def __post_init__(self) -> None:
        """Counts that can be."""
        refuse_not_finite(self)
        refuse_outside(self, "rounds", 1)
        refuse_outside(self, "seconds", 0)
