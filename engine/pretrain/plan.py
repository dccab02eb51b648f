"""What a run will take, before it runs: time, memory, network and loader, from arithmetic.

Memory of a rank, bytes (P parameters, s ranks a shard group, e bytes of the compute dtype):
    weights, gradients, moments          4 (2 + m) P / s, exact from the sharding itself; m is 2 of
                                         AdamW and LAMB, 1 of SGD
    gathered weights                     e times the root's and the three largest blocks' parameters
    whole gradients                      4 P where micro-batches are accumulated
    activations                          e times the values of mim3d.engine.models.activations
    compressed chunks                    data.cache_bytes where data.cache is device
Network bytes a rank sends a step (ring collectives, accumulation a):
    all-gather       e P (s - 1) / s a micro-batch, and again e B (s - 1) / s of the blocks with
                     collectives of their own (B parameters) where they are freed after forward
    reduce-scatter   4 P (s - 1) / s
    all-reduce       8 P / s (r - 1) / r between r replicas
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from mim3d.dataio.registry import resolved
from mim3d.engine.distributed.parallel import (
    make_mesh,
    parameter_count,
    shard_model,
    transformer_blocks,
)
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.flops import run_flops
from mim3d.engine.models.registry import way_of
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.runs.files import read_json
from mim3d.engine.training.metrics import read_rows
from mim3d.engine.training.optim import MOMENTS

ASSUMED_MFU = 0.40


@dataclass(frozen=True)
class Plan:
    """The figures of a plan; per rank where not said otherwise."""

    gpus: int
    parameters: int
    flops_per_step: float
    """All ranks."""
    step_s: float
    hours: float
    crops_per_s: float
    """All ranks."""
    loader_gb_per_s: float
    """Decoded voxels a rank's loader must deliver, as int16."""
    state_gb: float
    """Weights, gradients and the optimiser's moments, exact."""
    gathered_gb: float
    accumulated_gb: float
    """Whole gradients kept from micro-batch to micro-batch."""
    activation_gb: float
    cache_gb: float
    """Compressed chunks that `data.cache device` keeps in the device's memory."""
    memory_gb: float
    """All of these."""
    network_gb_per_step: float
    network_gb_per_s: float
    utilisation: float
    """Share of `peak` that the time is computed from."""
    basis: str
    """Where that share comes from."""


def make_plan(
    config: PretrainConfig, gpus: int, peak: float, utilisation: float, basis: str
) -> Plan:
    """Plan `config` on `gpus` devices of `peak` FLOP/s each."""
    micro_batch = config.micro_batch(gpus)
    shards = sharding_dry_run(config, gpus)
    gathered = 0 if is_left_whole(config, gpus) else shards.gathered_parameters
    flops = run_flops(config.method, config.vit, config.backbone) * config.global_batch
    step_s = flops / (gpus * peak * utilisation)
    crops_per_s = config.global_batch / step_s
    z, y, x = config.vit.crop_size
    voxels = z * y * x * config.vit.channels * config.method.views
    width = compute_bytes(config)
    memory = {
        "state_gb": state_bytes(config) * shards.local_parameters / 1e9,
        "gathered_gb": width * gathered / 1e9,
        "accumulated_gb": accumulated_bytes(config, shards, gpus) / 1e9,
        "activation_gb": width * activation_values(config) * micro_batch / 1e9,
        "cache_gb": config.data.loader.cache_bytes / 1e9
        if config.data.loader.cache == "device"
        else 0.0,
    }
    network = network_bytes(config, shards, gpus, width)
    return Plan(
        gpus=gpus,
        parameters=shards.parameters,
        flops_per_step=flops,
        step_s=step_s,
        hours=step_s * config.steps / 3600,
        crops_per_s=crops_per_s,
        loader_gb_per_s=2 * voxels * crops_per_s / gpus / 1e9,
        **memory,
        memory_gb=sum(memory.values()),
        network_gb_per_step=network / 1e9,
        network_gb_per_s=network / step_s / 1e9,
        utilisation=utilisation,
        basis=basis,
    )


@dataclass(frozen=True)
class ShardSizes:
    """What a rank holds of a sharded model."""

    parameters: int
    """Of the whole model."""
    local_parameters: int
    """Of the fullest rank, padding included."""
    gathered_parameters: int
    """Whole at once: the root's own and up to three blocks'."""
    block_parameters: int
    """Of the blocks that have collectives of their own; the rest is the root's."""


def sharding_dry_run(config: PretrainConfig, gpus: int) -> ShardSizes:
    """Shard the model over a fake group of `gpus` ranks and count what rank 0 would hold."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise ConfigError("a plan needs a process without a process group: call it before training")
    model = meta_model(config)
    total = parameter_count(model)
    blocks = transformer_blocks(model)
    least = config.parallel.min_block_parameters
    sizes = sorted((n for n in map(parameter_count, blocks) if n >= least), reverse=True)
    gathered = (
        total
        if not config.parallel.reshard_after_forward
        else (total - sum(sizes) + sum(sizes[:3]))
    )
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=gpus)
    try:
        mesh = make_mesh(torch.device("cpu"), gpus, config.parallel.replicate)
        plain = dataclasses.replace(config.parallel, compile=False)
        shard_model(model, mesh, plain, torch.float32)
        local = sum(local_size(parameter) for parameter in model.parameters())
    finally:
        dist.destroy_process_group()
    return ShardSizes(total, local, gathered, sum(sizes))


def meta_model(config: PretrainConfig) -> nn.Module:
    """The model without memory behind it; MONAI's Swin computes while it is built and has some."""
    if config.swin is not None:
        return config.build()
    with torch.device("meta"):
        return config.build()


def local_size(parameter: nn.Parameter) -> int:
    """Elements of rank 0's piece of a parameter."""
    return parameter.to_local().numel() if isinstance(parameter, DTensor) else parameter.numel()


def compute_bytes(config: PretrainConfig) -> int:
    """Bytes of a value in forward and backward: auto is a half type, for a plan is for GPUs."""
    return 4 if config.parallel.precision == "fp32" else 2


def state_bytes(config: PretrainConfig) -> int:
    """Bytes of a parameter with its gradient and moments, all float32."""
    return 4 * (2 + len(MOMENTS[config.optim.kind]))


def activation_values(config: PretrainConfig) -> float:
    """Values kept for backward by one crop."""
    shape = config.encoder
    count = resolved(way_of(config.method, shape).activations)
    return count(config.method, shape, config.parallel.recompute)


def accumulated_bytes(config: PretrainConfig, shards: ShardSizes, gpus: int) -> float:
    """Bytes of gradients that are summed whole, in fp32, before ranks exchange them."""
    accumulates = config.parallel.grad_accum > 1 and not is_left_whole(config, gpus)
    return 4.0 * shards.parameters if accumulates else 0.0


def is_left_whole(config: PretrainConfig, gpus: int) -> bool:
    """Whether FSDP has nothing to do, so that weights and gradients are there once."""
    parallel = config.parallel
    return gpus == 1 and parallel.precision == "fp32" and parallel.one_rank == "whole"


def network_bytes(config: PretrainConfig, shards: ShardSizes, gpus: int, width: int) -> float:
    """Bytes a rank sends in a step."""
    parallel, parameters = config.parallel, shards.parameters
    shard = gpus // parallel.replicate
    others = (shard - 1) / shard
    again = shards.block_parameters if parallel.reshard_after_forward else 0
    gathers = parallel.grad_accum * width * (parameters + again) * others
    between = 8.0 * parameters / shard * (parallel.replicate - 1) / parallel.replicate
    return gathers + 4.0 * parameters * others + between


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
