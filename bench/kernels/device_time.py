"""Time of a call's kernels alone, beside the time of the call.

Between two events on the stream lie a call's kernels and the gaps where the device waits for the
next launch; the host's clock adds what comes before and after. The profiler tells each kernel's own
time, so that a slow kernel and slow launches are told apart.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from mim3d.bench.timing import Flush, Function, once

CALLS = 5


@dataclass(frozen=True)
class CallTime:
    """Seconds of a call by the host's clock with warm caches, of its kernels alone after a flush,
    and how many kernels there are; None where there is no device, or the launches vary."""

    call_s: float
    kernels_s: float | None = None
    kernels: int | None = None


def call_time(function: Function, device: str, flush: Flush) -> CallTime:
    """Measure a call that has run before."""
    call_s = statistics.median(once(function, device) for _ in range(CALLS))
    if device != "cuda":
        return CallTime(call_s)
    alone = durations([flush])
    both = durations([step for _ in range(CALLS) for step in (flush, function)])
    found = last_of_each(both, CALLS, len(alone))
    if found is None:
        return CallTime(call_s)
    return CallTime(call_s, sum(map(sum, found)) / CALLS, len(found[0]))


def durations(steps: Sequence[Function]) -> list[float]:
    """Seconds of each kernel, copy and fill that the steps start, in the order of the stream."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for step in steps:
            step()
        torch.cuda.synchronize()
    events = [e for e in recorded.events() or () if e.device_type == DeviceType.CUDA]
    events.sort(key=lambda event: event.time_range.start)
    return [event.time_range.elapsed_us() / 1e6 for event in events]


def last_of_each(
    seconds: Sequence[float], calls: int, n_before: int
) -> list[Sequence[float]] | None:
    """The kernels of each of `calls` calls that `n_before` others precede; None if they vary."""
    each, rest = divmod(len(seconds), calls)
    if rest or each <= n_before:
        return None
    return [seconds[i * each + n_before : (i + 1) * each] for i in range(calls)]
