"""Rows of a run: what is in them (rates, utilisation, memory) and where they go."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import psutil
import torch

from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.flops import peak_bf16
from mim3d.engine.runs.files import finite, read_utf8, write_jsonl

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

Row = dict[str, Any]
METRICS = "metrics.jsonl"
"""File of a run's folder with its rows."""
WANDB_ID = "wandb-id"
"""File of a run's folder with its id at Weights & Biases."""


@dataclass
class Window:
    """Totals between two rows."""

    began: float
    steps: int = 0
    waited: float = 0.0
    """Seconds the step stood still for data."""

    def rates(self, config: "RateBasis", now: float) -> Row:
        """Rates of the whole run (all ranks) over the window."""
        seconds = max(now - self.began, 1e-9)
        crops = self.steps * config.global_batch / seconds
        flops = crops * config.flops_per_crop
        peak = None if config.peak is None else config.peak * config.world
        return {
            "crops_per_s": crops,
            "voxels_per_s": crops * config.voxels_per_crop,
            "step_s": seconds / max(self.steps, 1),
            "data_stall_share": self.waited / seconds,
            "tflops_per_s": flops / 1e12,
            "mfu_bf16": None if peak is None else flops / peak,
        }


@dataclass(frozen=True)
class RateBasis:
    """What rates are computed from."""

    global_batch: int
    voxels_per_crop: int
    flops_per_crop: float
    peak: float | None
    """bf16 peak of one device, FLOP/s; None where unknown, as for a CPU."""
    world: int


def rate_basis(
    global_batch: int, voxels_per_crop: int, flops_per_crop: float, ranks: Ranks
) -> RateBasis:
    """Constants of a run's rates on these ranks."""
    on_gpu = ranks.device.type == "cuda"
    peak = peak_bf16(torch.cuda.get_device_name(ranks.device)) if on_gpu else None
    return RateBasis(global_batch, voxels_per_crop, flops_per_crop, peak, ranks.world)


def memory_row(device: torch.device) -> Row:
    """Resident memory of the process, and the GPU's peak, in GB (1e9 bytes)."""
    row: Row = {"host_memory_gb": psutil.Process().memory_info().rss / 1e9}
    if device.type == "cuda":
        row["gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        row["gpu_reserved_gb"] = torch.cuda.max_memory_reserved(device) / 1e9
    return row


class LoaderDeltas:
    """Growth of the loader's counters between two rows, stage seconds per step."""

    def __init__(self) -> None:
        self._before: dict[str, float] = {}

    def row(self, counters: Mapping[str, Any], steps: int, seconds: float) -> Row:
        """Counters that count seconds become per step, those that count bytes per second."""
        row: Row = {}
        for name, value in counters.items():
            if not isinstance(value, int | float):
                continue
            grown = value - self._before.get(name, 0.0)
            self._before[name] = float(value)
            if name.endswith(("seconds", "_s")):
                stage = name.removesuffix("seconds").removesuffix("_s").strip("_")
                row[f"stage_{stage}_s"] = grown / max(steps, 1)
            elif name.startswith("bytes"):
                row[f"{name}_gb_per_s"] = grown / max(seconds, 1e-9) / 1e9
            else:
                row[name] = value
        return row


class Sink(Protocol):
    """Where rows go."""

    def write(self, row: Row) -> None:
        """Take one row; `step` is among its values."""
        ...

    def go_back(self, step: int) -> None:
        """Drop the rows past a step: they come again."""
        ...

    def close(self) -> None:
        """Flush."""
        ...


class JsonLines:
    """metrics.jsonl; rows past the step a run resumes from are dropped, for they come again."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        self.path = path
        self._stream = self._opened(resumed_step)

    def _opened(self, step: int) -> TextIO:
        if self.path.exists():
            # By way of another file: what a full disk cuts short is not the only copy.
            write_jsonl(self.path, [row for row in read_rows(self.path) if row["step"] <= step])
        return self.path.open("a")

    def go_back(self, step: int) -> None:
        """Drop the rows past a step."""
        self._stream.close()
        self._stream = self._opened(step)

    def write(self, row: Row) -> None:
        """Append and flush; what is not finite becomes null, for JSON has no NaN."""
        self._stream.write(json.dumps(finite(row)) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def read_rows(path: Path) -> list[Row]:
    """Rows of a metrics.jsonl; a last line cut by a crash is left out."""
    rows: list[Row] = []
    if not path.exists():
        return rows
    for line in read_utf8(path).splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class TensorBoard:
    """Scalars as TensorBoard events."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        self.folder = folder
        self._writer = self._opened(resumed_step)

    def _opened(self, step: int) -> "SummaryWriter":
        from torch.utils.tensorboard.writer import SummaryWriter

        return SummaryWriter(str(self.folder), purge_step=step + 1)

    def go_back(self, step: int) -> None:
        """Have what came after a step left out of the curves."""
        self._writer.close()
        self._writer = self._opened(step)

    def write(self, row: Row) -> None:
        """Every number of the row."""
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WeightsAndBiases:
    """Rows to Weights & Biases, which must be installed; a resumed run goes on with its own page.

    WANDB_MODE=offline keeps everything in the run's folder, for machines without a network.
    """

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "log.wandb is on but wandb is not installed: pip install wandb, or --log.no-wandb"
            ) from error
        file = run / WANDB_ID
        known = file.read_text().strip() if file.exists() else None
        try:
            self._run = wandb.init(
                dir=str(run), name=run.name, config=dict(config), id=known, resume="allow"
            )
        except wandb.errors.Error as error:
            raise ConfigError(
                f"log.wandb is on but Weights & Biases refuses: {error}. Log in with `wandb "
                "login`, set WANDB_MODE=offline, or --log.no-wandb"
            ) from error
        file.write_text(self._run.id + "\n")
        self._newest = -1

    def write(self, row: Row) -> None:
        """Every value of the row that there is."""
        known = {name: value for name, value in row.items() if value is not None}
        # It takes no step twice: rows that come again stand after the others, with their step.
        newer = row["step"] > self._newest
        self._newest = max(self._newest, row["step"])
        self._run.log(known, step=row["step"] if newer else None)

    def go_back(self, step: int) -> None:
        """Nothing can be dropped there."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
