"""The rates of `mim3d bench loader` for people and for --json."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mim3d.bench.loader.crops import CROP
from mim3d.bench.loader.rounds import Rates
from mim3d.bench.noise import Compared, as_json, compared, spread

READER = "mim3d reader, snap 16"


def ratios_of(rates: Mapping[str, Rates]) -> dict[str, Compared]:
    """The reader over each other contestant, by crops per processor second."""
    base = rates[READER].cpu
    return {name: compared(base, rate.cpu) for name, rate in rates.items() if name != READER}


def table(rates: Mapping[str, Rates]) -> str:
    """Median and range of each rate over its rounds, and how much the reader is ahead."""
    width, ratios = max(map(len, rates)), ratios_of(rates)
    head = f"{'':<{width}}  {'crops/CPU s':<20}  {'crops/s':<20}  {'cold':>5}  the reader's is x"
    lines = [head]
    for name, rate in rates.items():
        cpu, wall = spread(rate.cpu).text(digits=0), spread(rate.wall).text(digits=0)
        ahead = ratios[name].text() if name in ratios else "1"
        lines.append(f"{name:<{width}}  {cpu:<20}  {wall:<20}  {rate.cold or 0:5.0f}  {ahead}")
    return "\n".join(lines)


def figures_of(rates: Mapping[str, Rates], volumes: Sequence[np.ndarray]) -> dict[str, object]:
    """Rates and ratios for --json."""
    ratios = ratios_of(rates)
    return {
        "crop": list(CROP),
        "torch": torch.__version__,
        "cpus": len(os.sched_getaffinity(0)),
        "volumes": [{"shape": list(v.shape), "dtype": v.dtype.name} for v in volumes],
        "loader_over_reader": {
            name: 1 / ratio.value for name, ratio in ratios.items() if "loader" in name
        },
        "rates": {name: rate.summary() for name, rate in rates.items()},
        "rounds": {name: rate.cpu for name, rate in rates.items()},
        "wall_rounds": {name: rate.wall for name, rate in rates.items()},
        "reader_over": {READER: 1.0} | {name: ratio.value for name, ratio in ratios.items()},
        "ratios": as_json(ratios),
    }
