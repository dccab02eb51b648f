"""An objective over the ranks, with the optimiser of its shards."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from mim3d.engine.arithmetic.attention import attention_of
from mim3d.engine.arithmetic.float8 import use_float8
from mim3d.engine.arithmetic.masters import Masters
from mim3d.engine.arithmetic.precision import choose_precision
from mim3d.engine.arithmetic.recompute import draws_again
from mim3d.engine.distributed.config import ParallelConfig
from mim3d.engine.distributed.parallel import (
    communication_seconds,
    keeps_masters,
    make_mesh,
    replicas,
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
    float8_layers: int = 0
    """Linear layers whose products are in float8."""

    def communication_s(self) -> float:
        """Seconds of a step's collectives alone; every rank takes part."""
        return communication_seconds(self.module, self.mesh, self.parallel, self.dtype)

    def capture_obstacle(self) -> str:
        """Why a step of this cannot be repeated as one CUDA graph; empty where it can."""
        parallel, optimiser = self.parallel, self.optimiser
        draws = draws_again(self.module)
        obstacles = {
            "parallel.cuda_graph is off": not parallel.cuda_graph,
            f"{self.mesh.size()} ranks": self.mesh.size() > 1,
            "weights are sharded (parallel.one_rank)": isinstance(self.module, FSDPModule),
            "blocks are compiled (parallel.compile)": parallel.compile,
            f"{parallel.grad_accum} micro-batches a step": parallel.grad_accum > 1,
            "fp16 has a loss scaler": optimiser.scaled,
            "apex's update waits for the host": optimiser.config.impl == "apex",
            "recomputed blocks draw who skips them": parallel.recompute != "none" and draws,
        }
        return next((why for why, holds in obstacles.items() if holds), "")


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
    float8_layers = use_float8(module, ranks.device) if parallel.precision == "fp8" else 0
    shard_model(module, mesh, parallel, dtype)
    register_fsdp_forward_method(module, "encoder_tokens")
    if isinstance(module, Reconstructs):
        register_fsdp_forward_method(module, "reconstruct")
    masters = None
    if keeps_masters(parallel, ranks.world, dtype):
        masters = Masters(module, dtype, replicas(mesh))
    optimiser = ShardedOptimiser(
        module.named_parameters() if masters is None else masters.masters.items(),
        optim,
        shard_group(mesh),
        scaled=dtype == torch.float16,
        lr_scale=lr_scale,
        held=held,
        masters=masters,
    )
    return ShardedObjective(module, optimiser, mesh, dtype, parallel, attention, float8_layers)
