"""Crops per second that the loader hands over on a GPU, once its chunks are where they stay.

A round lasts about a second, for a batch takes milliseconds: the device is waited for at both ends,
and what is read ahead is as much at the end as at the beginning. `chunks_per_crop` tells how much
of a crop was decoded for it alone: crops of one batch that overlap share chunks.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mim3d.bench.noise import in_turn, spread
from mim3d.bench.sharing import Sharing, sharing_of
from mim3d.bench.timing import wait_for
from mim3d.dataio.device.device_reader import STAGES
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.loader.loader import Loader, LoaderConfig

WAYS: dict[str, dict[str, Any]] = {
    "cache=device": {"cache": "device", "device_keeps": "chunks"},
    "cache=device, bf16": {"cache": "device", "device_keeps": "chunks", "dtype": "bfloat16"},
    "cache=device, voxels": {"cache": "device", "device_keeps": "voxels"},
    "cache=host": {"cache": "host"},
    "cache=host, bf16": {"cache": "host", "dtype": "bfloat16"},
    "cache=none": {"cache": "none"},
}
LEAST_BATCHES = 8
WARM_S = 8.0  # at most, until chunks stop coming in


@dataclass(frozen=True)
class GpuBench:
    """What is asked of the loader; `round_s` is about how long a round lasts."""

    micro_batch: int = 64
    threads: int = 8
    prefetch: int = 4
    rounds: int = 3
    round_s: float = 1.0


@dataclass(frozen=True)
class GpuRate:
    """Crops and gigabytes of the tensors handed over per second of wall clock, in one round.

    `stages` are shares of the round by the device's clock, `wait` the host's for what is read
    ahead; `hits` the share of chunks that were resident.
    """

    crops_per_s: float
    gb_per_s: float
    crops_per_cpu_s: float
    chunks_per_crop: float | None
    hits: float | None
    stages: dict[str, float]


def measure_gpu(
    root: Path, crop: tuple[int, int, int], device: str, bench: GpuBench, *, refuse: bool = True
) -> dict[str, Any]:
    """Rates by way, as JSON, and why others are not there.

    Rounds are interleaved. With `refuse` there is no rate where crops of a batch share so many
    chunks that it would flatter; otherwise it is only told (a user's own corpus is what it is).
    """
    rates, missing = {}, {}
    with ExitStack() as stack:
        loaders = {}
        for name, options in WAYS.items():
            config = LoaderConfig(
                crop_size=crop, micro_batch=bench.micro_batch, augment="mim", threads=bench.threads,
                prefetch=bench.prefetch, **options,
            )  # fmt: skip
            try:
                loaders[name] = stack.enter_context(opened(root, config, device))
            except Mim3dError as why:  # nvCOMP is not installed, or voxels do not fit
                missing[name] = str(why)
        for name, rounds in measure_rounds(loaders, bench).items():
            sharing = sharing_of(loaders[name], [next(loaders[name]) for _ in range(2)])
            if sharing.flatters and refuse:
                missing[name] = sharing.text()
            else:
                rates[name] = summary(rounds) | {"touched_per_crop": sharing.touched}
    return {"rates": rates, "not_available": missing, **asdict(bench)}


def measure_rounds(loaders: Mapping[str, Loader], bench: GpuBench) -> dict[str, list[GpuRate]]:
    """Rounds of about a second by way, in turn."""
    lengths, rounds = {}, {name: [] for name in loaders}
    for name, loader in loaders.items():
        once = seconds_of(loader, LEAST_BATCHES) / LEAST_BATCHES
        lengths[name] = max(LEAST_BATCHES, round(bench.round_s / once))
    for number in range(bench.rounds):
        for name in in_turn(list(loaders), number):
            rounds[name].append(one_round(loaders[name], lengths[name]))
    return rounds


def summary(rounds: Sequence[GpuRate]) -> dict[str, Any]:
    """The median round, as JSON, with the rates of all of them."""
    ordered = sorted(rounds, key=lambda rate: rate.crops_per_s)
    return asdict(ordered[len(ordered) // 2]) | {"rounds": [r.crops_per_s for r in rounds]}


@contextmanager
def opened(root: Path, config: LoaderConfig, device: str) -> Iterator[Loader]:
    """A loader that has brought in what its cache holds."""
    with Loader(root, config, device=device) as loader:
        began = time.perf_counter()
        batches, missed = 0, -1.0
        while batches < LEAST_BATCHES or (
            loader.metrics().get("cache_misses", 0.0) > missed
            and time.perf_counter() - began < WARM_S
        ):
            missed = loader.metrics().get("cache_misses", 0.0)
            for _ in range(LEAST_BATCHES // 2):
                next(loader)
                batches += 1
        yield loader


def one_round(loader: Loader, n: int) -> GpuRate:
    """Rates over n batches."""
    before, cpu = loader.metrics(), time.process_time()
    seconds = seconds_of(loader, n)
    cpu = time.process_time() - cpu
    after, crops = loader.metrics(), n * loader.config.micro_batch

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    chunks = grown("cache_hits") + grown("cache_misses")
    stages = {stage: grown(f"device_{stage}_s") / seconds for stage in STAGES}
    z, y, x = loader.config.crop_size
    nbytes = z * y * x * getattr(torch, loader.config.dtype).itemsize
    return GpuRate(
        crops_per_s=crops / seconds,
        gb_per_s=crops * nbytes / seconds / 1e9,
        crops_per_cpu_s=crops / max(cpu, 1e-9),
        chunks_per_crop=chunks / crops if chunks else None,
        hits=grown("cache_hits") / chunks if chunks else None,
        stages={**stages, "wait": grown("wait_s") / seconds},
    )


def seconds_of(loader: Loader, n: int) -> float:
    """Seconds that n batches take, the device waited for at both ends."""
    wait_for(loader.device.type)
    began = time.perf_counter()
    for _ in range(n):
        next(loader)
    wait_for(loader.device.type)
    return time.perf_counter() - began


def gpu_table(figures: Mapping[str, Any]) -> str:
    """The figures for people."""
    lines = [f"on the GPU, {figures['micro_batch']} crops a batch, {figures['threads']} threads:"]
    for name, rate in figures["rates"].items():
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in rate["stages"].items())
        lines.append(
            f"{name:<20} {spread(rate['rounds']).text(digits=0):<26} crops/s  "
            f"{rate['gb_per_s']:6.2f} GB/s  {shares}"
        )
        if rate["chunks_per_crop"] is not None:
            sharing = Sharing(rate["chunks_per_crop"], rate["touched_per_crop"])
            lines.append(f"{'':<20} {sharing.text()}")
    lines += [f"{name}: {why}" for name, why in figures["not_available"].items()]
    return "\n".join(lines)
