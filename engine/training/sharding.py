"""An objective over the ranks, with the optimiser of its shards."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import register_fsdp_forward_method

from mim3d.engine.arithmetic.attention import attention_of
from mim3d.engine.arithmetic.precision import choose_precision
from mim3d.engine.distributed.config import ParallelConfig
from mim3d.engine.distributed.parallel import (
    communication_seconds,
    make_mesh,
    shard_group,
    shard_model,
)
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.models.objective import Objective, Reconstructs
from mim3d.engine.training.config import OptimConfig
from mim3d.engine.training.optim import ShardedOptimiser


@dataclass(frozen=True)
class ShardedObjective:
    """What a rank trains: an objective whose parameters are its shards, and their optimiser."""

    module: Objective
    optimiser: ShardedOptimiser
    mesh: DeviceMesh
    dtype: torch.dtype
    parallel: ParallelConfig
    attention: str = ""
    """Kernels that compute it; empty where there is none."""

    def communication_s(self) -> float:
        """Seconds of a step's collectives alone; every rank takes part."""
        return communication_seconds(self.module, self.mesh, self.parallel, self.dtype)


def shard_objective(
    module: Objective,
    optim: OptimConfig,
    parallel: ParallelConfig,
    ranks: Ranks,
    lr_scale: Callable[[str], float] = lambda name: 1.0,
    held: Callable[[str], bool] = lambda name: False,
) -> ShardedObjective:
    """Shard a module in place; `lr_scale` and `held` are the optimiser's."""
    mesh = make_mesh(ranks.device, ranks.world, parallel.replicate)
    dtype = choose_precision(parallel.precision, ranks.device)
    attention = attention_of(module, parallel.attention, dtype, ranks.device)
    shard_model(module, mesh, parallel, dtype)
    register_fsdp_forward_method(module, "encoder_tokens")
    if isinstance(module, Reconstructs):
        register_fsdp_forward_method(module, "reconstruct")
    optimiser = ShardedOptimiser(
        module.named_parameters(),
        optim,
        shard_group(mesh),
        scaled=dtype == torch.float16,
        lr_scale=lr_scale,
        held=held,
    )
    return ShardedObjective(module, optimiser, mesh, dtype, parallel, attention)
