"""Bytes that a rank sends in a step, by ring collectives.

P parameters, s ranks a shard group, e bytes of the compute dtype, accumulation a:
    all-gather       e P (s - 1) / s a micro-batch, and again e B (s - 1) / s of the blocks with
                     collectives of their own (B parameters) where they are freed after forward
    reduce-scatter   4 P (s - 1) / s
    all-reduce       8 P / s (r - 1) / r between r replicas
"""

from mim3d.engine.planning.sharding import ShardSizes
from mim3d.engine.pretrain.config import PretrainConfig


def network_bytes(config: PretrainConfig, shards: ShardSizes, gpus: int, width: int) -> float:
    """Bytes a rank sends in a step."""
    parallel, parameters = config.parallel, shards.parameters
    shard = gpus // parallel.replicate
    others = (shard - 1) / shard
    again = shards.block_parameters if parallel.reshard_after_forward else 0
    gathers = parallel.grad_accum * width * (parameters + again) * others
    between = 8.0 * parameters / shard * (parallel.replicate - 1) / parallel.replicate
    return gathers + 4.0 * parameters * others + between
