"""The rates of `mim3d bench loader` for people and for --json."""

import os
from collections.abc import Sequence

import numpy as np
import torch

from mim3d.bench.loader.crops import CROP
from mim3d.bench.loader.rounds import Rate


def table(rates: dict[str, Rate]) -> str:
    """The rates as text, with ratios to the reader at snap 16."""
    base = rates["mim3d reader, snap 16"]
    width = max(map(len, rates))
    head = f"{'':<{width}}  crops/CPU s  mim3d is  crops/s  cold crops/s"
    rows = [
        f"{name:<{width}}  {rate.per_cpu_s:11.0f}  {base.per_cpu_s / rate.per_cpu_s:7.2f}x"
        f"  {rate.per_wall_s:7.0f}  {rate.cold_per_wall_s or 0:12.0f}"
        for name, rate in rates.items()
    ]
    return "\n".join([head, *rows])


def figures_of(rates: dict[str, Rate], volumes: Sequence[np.ndarray]) -> dict[str, object]:
    """Rates and ratios for --json."""
    base = rates["mim3d reader, snap 16"].per_cpu_s
    return {
        "crop": list(CROP),
        "torch": torch.__version__,
        "cpus": len(os.sched_getaffinity(0)),
        "volumes": [{"shape": list(v.shape), "dtype": v.dtype.name} for v in volumes],
        "loader_over_reader": {
            name: rate.per_cpu_s / base for name, rate in rates.items() if "loader" in name
        },
        "rates": {name: vars(rate) for name, rate in rates.items()},
        "reader_over": {name: base / rate.per_cpu_s for name, rate in rates.items()},
    }
