"""What a run will take, before it runs: time, memory, network and loader, from arithmetic."""

from dataclasses import dataclass

from mim3d.engine.models.flops import run_flops
from mim3d.engine.planning.memory import (
    accumulated_bytes,
    activation_values,
    compute_bytes,
    is_left_whole,
    state_bytes,
)
from mim3d.engine.planning.network import network_bytes
from mim3d.engine.planning.sharding import sharding_dry_run
from mim3d.engine.pretrain.config import PretrainConfig

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
