"""What a rank holds of a sharded model, by sharding it over a group that sends nothing."""

import dataclasses
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from mim3d.engine.arithmetic.blocks import parameter_count, transformer_blocks
from mim3d.engine.distributed.parallel import make_mesh, shard_model
from mim3d.engine.errors import ConfigError
from mim3d.engine.pretrain.config import PretrainConfig


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
    if gpus == 1:
        return ShardSizes(total, total, gathered, sum(sizes))
    if dist.is_initialized():
        raise ConfigError("a plan needs a process without a process group: call it before training")
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
