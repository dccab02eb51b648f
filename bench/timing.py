"""Timing of operations on a GPU or a CPU: cold caches, CUDA graphs, and the copy bandwidth beside.

    copy_bandwidth(device) -> bytes per second, read and written bytes both counted
    time_cold(function, device, rounds) -> median seconds with the L2 cache flushed before each call
    time_graph(function, rounds) -> median seconds of a call inside a replayed CUDA graph

Medians of single calls, after warm-up. On a CPU there is no graph and "cold" means that a buffer
larger than the last-level cache was written before each call.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[], object]
FLUSH_BYTES = {"cuda": 512 * 2**20, "cpu": 64 * 2**20}
COPY_BYTES = {"cuda": 2 * 2**30, "cpu": 128 * 2**20}
GRAPH_CALLS = 10  # calls per captured graph
FLUSHES = 8  # about a millisecond on a GPU: longer than the host needs to enqueue any call


def copy_bandwidth(device: str, rounds: int = 20) -> float:
    """Bytes per second of a device-to-device copy, the ceiling everything is measured against."""
    source = torch.randint(0, 255, (COPY_BYTES[device],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = time_cold(lambda: target.copy_(source), device, rounds)
    return 2 * COPY_BYTES[device] / seconds


def time_cold(function: Function, device: str, rounds: int) -> float:
    """Median seconds of one call that finds nothing of its data in the cache."""
    flush = torch.empty(FLUSH_BYTES[device], dtype=torch.uint8, device=device)
    for _ in range(3):
        function()
    timer = _time_once_cuda if device == "cuda" else _time_once_cpu
    return statistics.median(timer(function, flush) for _ in range(rounds))


def _time_once_cuda(function: Function, flush: Tensor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(FLUSHES):
        flush.zero_()
    # They still run while the host enqueues the call, so no launch is waited for in what follows.
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def _time_once_cpu(function: Function, flush: Tensor) -> float:
    flush.zero_()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def time_graph(function: Function, rounds: int) -> float:
    """Median seconds per call of `GRAPH_CALLS` calls replayed as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPH_CALLS):
            function()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(rounds + 2):
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / GRAPH_CALLS)
    return statistics.median(times[2:])
