"""Clocks for pytest-benchmark on a GPU or a CPU: cold caches, CUDA graphs, and the copy bandwidth.

    cuda_instant(), graph_instant(), time.perf_counter()   what pytest-benchmark calls as its timer
    Flush(device)                                           its setup before each cold round
    captured(function)                                      a CUDA graph of GRAPH_CALLS calls
    copy_bandwidth(device) -> bytes per second, read and written bytes both counted

pytest-benchmark subtracts what its timer returned after a round from what it returned before. A
timer that synchronised would count launches and the wait; ours records a CUDA event and waits only
in the subtraction. On a CPU "cold" means that a buffer larger than the last-level cache was written
and read before each call.
"""

import statistics
import time
from collections.abc import Callable

import torch

Function = Callable[[], object]
FLUSH_BYTES = {"cuda": 512 * 2**20, "cpu": 64 * 2**20}
COPY_BYTES = {"cuda": 2 * 2**30, "cpu": 128 * 2**20}
GRAPH_CALLS = 10  # calls per captured graph
FLUSHES = 8  # about a millisecond on a GPU: longer than the host needs to enqueue any call
WARMUP = 3  # calls before the first that counts


class Instant:
    """A moment on the device; `later - earlier` is in seconds per call."""

    def __init__(self, calls: int = 1) -> None:
        self.calls = calls
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, earlier: "Instant") -> float:
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) / 1e3 / self.calls


def cuda_instant() -> Instant:
    """Timer of one call on the current CUDA stream."""
    return Instant()


def graph_instant() -> Instant:
    """Timer of one call, for replays of `captured` graphs."""
    return Instant(GRAPH_CALLS)


def cold_timer(device: str) -> Callable[[], object]:
    """The timer for single calls on a device."""
    return cuda_instant if device == "cuda" else time.perf_counter


class Flush:
    """Overwrites a buffer larger than any cache, then reads it.

    Read last, so that the caches hold nothing which the timed call would have to write back: an
    H100's 50 MB of changed lines are a fifth of what the loss moves at 64 crops of 96^3. On a GPU
    it still runs while the host enqueues the call to be timed, so no launch is waited for between
    the two events.
    """

    def __init__(self, device: str) -> None:
        self.times = FLUSHES if device == "cuda" else 1
        self.buffer = torch.empty(FLUSH_BYTES[device], dtype=torch.uint8, device=device)

    def __call__(self) -> None:
        """Enqueue the writes and the reading."""
        for _ in range(self.times):
            self.buffer.zero_()
        self.buffer.view(torch.int64).amax()


def captured(function: Function) -> torch.cuda.CUDAGraph:
    """A CUDA graph of GRAPH_CALLS calls, warmed up on a stream of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPH_CALLS):
            function()
    return graph


def once(function: Function, device: str) -> float:
    """Seconds of one call by the host's clock, to size a measurement by."""
    wait_for(device)
    began = time.perf_counter()
    function()
    wait_for(device)
    return time.perf_counter() - began


def wait_for(device: str) -> None:
    """Let the device finish."""
    if device == "cuda":
        torch.cuda.synchronize()


def settle() -> float:
    """Wait until this process is idle, for loaders read ahead; the time when that began."""
    idle_s, patience_s = 0.05, 10.0
    first = began = time.perf_counter()
    while began - first < patience_s:  # a driver's thread may never rest
        before = time.process_time()
        time.sleep(idle_s)
        if time.process_time() - before < 0.02 * idle_s:
            break
        began = time.perf_counter()
    return began


def copy_bandwidth(device: str, rounds: int = 20) -> float:
    """Bytes per second of a device-to-device copy, the ceiling everything is measured against."""
    source = torch.randint(0, 255, (COPY_BYTES[device],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = median_cold(lambda: target.copy_(source), device, rounds)
    return 2 * COPY_BYTES[device] / seconds


def median_cold(function: Function, device: str, rounds: int) -> float:
    """Median seconds of one call that finds nothing of its data in the cache."""
    flush, timer = Flush(device), cold_timer(device)
    for _ in range(WARMUP):
        function()
    times = []
    for _ in range(rounds):
        flush()
        began = timer()
        function()
        times.append(timer() - began)  # pyright: ignore[reportOperatorIssue]
    return statistics.median(times)
