"""How fast a run or a bench was that took the same step on the same kind of device."""

from pathlib import Path
from typing import Any

from mim3d.engine.errors import ConfigError
from mim3d.engine.runs.files import read_json
from mim3d.engine.training.metrics import read_rows


def read_calibration(path: Path, peak: float) -> tuple[float, str]:
    """Utilisation that a run or a bench measured: its folder, metrics.jsonl, or --json file."""
    file = path / "metrics.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"{file} is missing: give a run's folder or a file that --json wrote")
    rows: list[dict[str, Any]]
    rows = read_rows(file) if file.suffix == ".jsonl" else [read_json(file)]
    settled = [row["tflops_per_s"] for row in rows[len(rows) // 2 :] if "tflops_per_s" in row]
    if not settled:
        raise ConfigError(f"{file} has no tflops_per_s: it is neither a run's nor a step bench's")
    world = rows[-1].get("world", 1)
    measured = sorted(settled)[len(settled) // 2] * 1e12 / world
    return measured / peak, f"measured in {file}: {measured / 1e12:.4g} TFLOP/s a device"
