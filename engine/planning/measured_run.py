"""How fast a run or a bench was that took the same step on the same kind of device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim3d.engine.errors import ConfigError
from mim3d.engine.planning.step_time import StepTime
from mim3d.engine.runs.files import read_json
from mim3d.engine.training.metrics import read_rows


@dataclass(frozen=True)
class MeasuredRate:
    """FLOP/s of a device, network and all, and where that comes from."""

    flops_per_s: float
    basis: str

    def step_time(self, flops: float, gpus: int) -> StepTime:
        """Of a step of so many FLOPs over so many devices: it says nothing of its parts."""
        seconds = flops / gpus / self.flops_per_s
        return StepTime({"arithmetic": seconds}, 0.0, 0.0, 0.0, apart=True)


def measured_rate(path: Path) -> MeasuredRate:
    """That of a run's folder, its metrics.jsonl, or the --json file of a step bench."""
    file = path / "metrics.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"{file} is missing: give what `mim3d bench step --calibrate` wrote, a run's folder, "
            "or a file that --json wrote"
        )
    rows: list[dict[str, Any]]
    rows = read_rows(file) if file.suffix == ".jsonl" else [read_json(file)]
    settled = [row["tflops_per_s"] for row in rows[len(rows) // 2 :] if "tflops_per_s" in row]
    if not settled:
        raise ConfigError(
            f"{file} has no tflops_per_s: it is neither a run's nor a step bench's, and no "
            "calibration, which `mim3d bench step --calibrate FILE` writes"
        )
    world = rows[-1].get("world", 1)
    rate = sorted(settled)[len(settled) // 2] * 1e12 / world
    return MeasuredRate(rate, f"measured in {file}: {rate / 1e12:.4g} TFLOP/s a device")
