"""Where the device's time goes in a step: torch.profiler's table for each contestant."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

STEPS = 3
ROWS = 25


def write_profile(
    runs: Mapping[str, Callable[[], object]], folder: Path, device: torch.device
) -> None:
    """Write folder/profile.txt: the operations that take longest, of three steps of each run."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for name, run in runs.items():
        parts.append(f"== {name}, {STEPS} steps\n{slowest(run, device)}")
    (folder / "profile.txt").write_text("\n".join(parts))


def slowest(run: Callable[[], object], device: torch.device) -> str:
    """Table of the operations with most time of their own on the device."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as recorded:
        for _ in range(STEPS):
            run()
        if on_gpu:
            torch.cuda.synchronize(device)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return recorded.key_averages().table(sort_by=key, row_limit=ROWS, max_name_column_width=60)
