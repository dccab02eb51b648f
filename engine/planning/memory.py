"""Bytes that a rank needs, by what they are for.

P parameters, s ranks a shard group, e bytes of the compute dtype:
    weights, gradients, moments          4 (2 + m) P / s, exact from the sharding itself; m is 2 of
                                         AdamW and LAMB, 1 of SGD
    gathered weights                     e times the root's and the three largest blocks' parameters
    whole gradients                      4 P where micro-batches are accumulated
    activations                          e times the values of mim3d.engine.models.activations
    compressed chunks                    data.cache_bytes where data.cache is device
"""

from mim3d.dataio.registry import resolved
from mim3d.engine.models.registry import way_of
from mim3d.engine.planning.sharding import ShardSizes
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.training.optim import MOMENTS


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
