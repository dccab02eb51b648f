"""What a rank sends in a step by ring collectives, how long it takes, and what hides it.

P parameters, s ranks a shard group, e bytes of the compute dtype, accumulation a:
    all-gather       e P (s - 1) / s a micro-batch, and again e B (s - 1) / s of the blocks with
                     collectives of their own (B parameters) where they are freed after forward
    reduce-scatter   4 P (s - 1) / s
    all-reduce       8 P / s (r - 1) / r between r replicas

FSDP gathers the next block while one computes, and sends a block's gradients while the one before
it is in its backward pass. What a block's collectives take beyond that is exposed, and so are the
first gather and the last gradients, which have nothing to hide behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mim3d.engine.planning.machine import Machine
from mim3d.engine.planning.memory import compute_bytes
from mim3d.engine.planning.operations import Work
from mim3d.engine.planning.sharding import ShardSizes
from mim3d.engine.pretrain.config import PretrainConfig


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in a step, and how fast each kind goes."""

    gathers: float
    scatters: float
    between: float
    """All-reduces between replicas."""
    shard_rate: float
    """Bytes a second between ranks of a shard group."""
    replica_rate: float
    parts: int
    """Micro-batches of a step."""
    again: bool
    """Whether blocks are gathered once more for the backward pass."""
    shares: tuple[float, ...]
    """Of all parameters, each block's with collectives of its own; 0 of others."""

    @property
    def nbytes(self) -> float:
        """All of them."""
        return self.gathers + self.scatters + self.between

    @property
    def seconds(self) -> float:
        """One after the other."""
        return (self.gathers + self.scatters) / self.shard_rate + self.between / self.replica_rate

    @property
    def root(self) -> float:
        """Share of parameters that are gathered with the root."""
        return 1.0 - sum(self.shares)

    @property
    def gather_s(self) -> float:
        """Seconds to gather all parameters once."""
        times = self.parts * (1.0 + (sum(self.shares) if self.again else 0.0))
        return self.gathers / times / self.shard_rate

    @property
    def reduce_s(self) -> float:
        """Seconds to sum all gradients once, over shards and replicas."""
        return self.scatters / self.shard_rate + self.between / self.replica_rate


def bytes_by_kind(
    config: PretrainConfig, shards: ShardSizes, gpus: int, width: int
) -> tuple[float, float, float]:
    """Bytes that a rank sends in a step in gathers, in reduce-scatters, and in all-reduces between
    replicas."""
    parallel, parameters = config.parallel, shards.parameters
    shard = gpus // parallel.replicate
    others = (shard - 1) / shard
    again = shards.block_parameters if parallel.reshard_after_forward else 0
    gathers = parallel.grad_accum * width * (parameters + again) * others
    between = 8.0 * parameters / shard * (parallel.replicate - 1) / parallel.replicate
    return gathers, 4.0 * parameters * others, between


def traffic_of(
    config: PretrainConfig, shards: ShardSizes, gpus: int, machine: Machine, work: Work
) -> Traffic:
    """A run's traffic on a machine: within a node by its links, else by the network."""
    parallel = config.parallel
    share = machine.value("network_share") * 1e9
    if gpus == 1:
        return Traffic(0.0, 0.0, 0.0, 1.0, 1.0, parallel.grad_accum, False, ())
    link, network = (
        machine.value("link_gb_per_s") * share,
        machine.value("network_gb_per_s") * share,
    )
    node = int(machine.value("gpus_per_node"))
    least = parallel.min_block_parameters
    return Traffic(
        *bytes_by_kind(config, shards, gpus, compute_bytes(config)),
        shard_rate=link if gpus // parallel.replicate <= node else network,
        replica_rate=link if gpus <= node else network,
        parts=parallel.grad_accum,
        again=parallel.reshard_after_forward,
        shares=tuple(
            block.parameters / shards.parameters if block.parameters >= least else 0.0
            for block in work.blocks
        ),
    )


def exposed_seconds(traffic: Traffic, forward: Sequence[float], backward: Sequence[float]) -> float:
    """Seconds of a step's collectives that its blocks do not hide.

    `forward` and `backward` are seconds of each block's compute in one micro-batch.
    """
    if not traffic.nbytes:
        return 0.0
    gathers = [traffic.gather_s * share for share in traffic.shares]
    sums = [traffic.reduce_s * share for share in traffic.shares]
    ends = traffic.gather_s * traffic.root + (gathers[0] if gathers else 0.0)
    ahead = sum(max(0.0, g - f) for g, f in zip(gathers[1:], forward, strict=False))
    regathers = gathers if traffic.again else [0.0] * len(gathers)
    back = sum(max(0.0, g - b) for g, b in zip(regathers, backward, strict=True))
    last = sum(max(0.0, g + r - b) for g, r, b in zip(regathers, sums, backward, strict=True))
    each = ends + ahead
    return (
        traffic.parts * each + (traffic.parts - 1) * back + last + traffic.reduce_s * traffic.root
    )
