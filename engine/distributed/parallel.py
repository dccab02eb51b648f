"""A model over ranks: recomputation, compilation, then FSDP2.

Where each rank holds all weights, being the only one or one of `parallel.replicate`, there is
nothing to shard, and FSDP2 would copy every weight and gradient by itself: the model is left whole.
Its arithmetic in a half type is `arithmetic.masters`'s.
"""

import dataclasses
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from mim3d.engine.arithmetic.blocks import (
    make_contiguous,
    own_collectives,
    parameter_count,
    transformer_blocks,
)
from mim3d.engine.arithmetic.recompute import set_recompute
from mim3d.engine.distributed.config import ParallelConfig
from mim3d.engine.errors import ConfigError


def make_mesh(device: torch.device, world: int, replicate: int) -> DeviceMesh:
    """Mesh over all ranks: (shard,), or (replicate, shard) for HSDP."""
    if replicate == 1:
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    if world % replicate:
        raise ConfigError(f"parallel.replicate {replicate} must divide the {world} ranks")
    return init_device_mesh(
        device.type, (replicate, world // replicate), mesh_dim_names=("replicate", "shard")
    )


def shard_model(
    model: nn.Module, mesh: DeviceMesh, config: ParallelConfig, dtype: torch.dtype
) -> nn.Module:
    """Shard `model` in place, block by block and then the root; gradients are summed, in fp32.

    Blocks are the entries of the model's innermost ModuleLists. Returns `model`, an FSDPModule
    unless it was left whole.
    """
    blocks = transformer_blocks(model)
    for block in blocks:
        if config.recompute != "none":
            set_recompute(block, config.recompute)
        if config.compile:
            # Encoder and decoder blocks share their code but not their token counts: left to
            # itself, dynamo would compile whichever comes second for any count.
            block.compile(dynamic=False)
    own = own_collectives(model, config.min_block_parameters)
    if stays_whole(config, mesh.size()):
        if dtype != torch.float32:
            for block in own:
                cast_inputs(block, dtype)  # as FSDP2 does for these
        return model
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    if dtype == torch.float32:
        policy = MixedPrecisionPolicy()
    make_contiguous(model)
    for block in own:
        fully_shard(
            block,
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=config.reshard_after_forward,
        )
    # The root casts no inputs: crops would be rounded to the half type before the loss reads its
    # targets from them. Patch rows take the weights' type as they are gathered.
    root_policy = dataclasses.replace(policy, cast_forward_inputs=False)
    fully_shard(model, mesh=mesh, mp_policy=root_policy)
    link_prefetch([block for block in own if isinstance(block, FSDPModule)])
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the global count already; gloo has no premultiplied sum.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


def stays_whole(config: ParallelConfig, world: int) -> bool:
    """Whether a model is left as it is, where FSDP2 would only copy every weight each step."""
    return config.replicate == world and config.one_rank == "whole"


def keeps_masters(config: ParallelConfig, world: int, dtype: torch.dtype) -> bool:
    """Whether such a model computes in another copy of its weights, or sums over replicas."""
    return stays_whole(config, world) and (world > 1 or dtype != torch.float32)


def replicas(mesh: DeviceMesh) -> dist.ProcessGroup | None:
    """Ranks that hold the same shards; None where there is one."""
    return mesh.get_group("replicate") if mesh.ndim > 1 else None


def cast_inputs(block: nn.Module, dtype: torch.dtype) -> None:
    """Have a block's floating inputs cast before each forward pass."""

    def cast(value: object) -> object:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(dtype)
        return value

    def before(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(map(cast, given))

    block.register_forward_pre_hook(before)


def link_prefetch(blocks: list[FSDPModule]) -> None:
    """Gather the next block while one computes, in both directions."""
    for block, following in pairwise(blocks):
        block.set_modules_to_forward_prefetch([following])
    for before, block in pairwise(blocks):
        block.set_modules_to_backward_prefetch([before])


def shard_group(mesh: DeviceMesh) -> dist.ProcessGroup:
    """Ranks among which parameters are sharded."""
    return mesh.get_group("shard")


REPEATS = 3


def communication_seconds(
    module: nn.Module, mesh: DeviceMesh, config: ParallelConfig, dtype: torch.dtype
) -> float:
    """Seconds of all gathers and reductions of one step, one after the other; 0 on one rank.

    Timed on the largest group of parameters that is gathered at once, and scaled to the model.
    """
    group = shard_group(mesh)
    shards = dist.get_world_size(group)
    total = parameter_count(module)
    blocks = list(map(parameter_count, own_collectives(module, config.min_block_parameters)))
    largest = max(blocks, default=total)
    device = torch.device(mesh.device_type)
    piece = torch.zeros(-(-largest // shards), dtype=dtype, device=device)
    seconds = 0.0
    if shards > 1:
        whole = torch.zeros(len(piece) * shards, dtype=dtype, device=device)
        # Blocks that are freed after forward are gathered again in backward; the root stays.
        again = sum(blocks) / total if config.reshard_after_forward else 0.0
        gathers = (1.0 + again) * config.grad_accum
        gather = collective("all_gather_single", "all_gather_into_tensor")
        seconds += gathers * timed(lambda: gather(whole, piece, group=group), device)
        sums, parts = piece.float(), whole.float()
        scatter = collective("reduce_scatter_single", "reduce_scatter_tensor")
        seconds += timed(lambda: scatter(sums, parts, group=group), device)
    if config.replicate > 1:
        sums, between = piece.float(), mesh.get_group("replicate")
        seconds += timed(lambda: dist.all_reduce(sums, group=between), device)
    return seconds * total / largest


def collective(name: str, older: str) -> Callable[..., Any]:
    """A collective by its present name, or by the one that older torch has."""
    return getattr(dist, name, None) or getattr(dist, older)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Mean seconds of a call, the first one left out."""
    run()
    wait_for(device)
    began = time.perf_counter()
    for _ in range(REPEATS):
        run()
    wait_for(device)
    return (time.perf_counter() - began) / REPEATS


def wait_for(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize()
