"""How long a step takes: the device, the host that feeds it, and the network behind them.

    device    sum of the laws over all operations, fused where blocks are compiled, and over the
              optimiser, FSDP's casts and the decoding of crops that stay compressed on the device
    host      its time an operation (or a compiled block), a block of FSDP, a crop and a step
    network   what collectives take beyond the blocks that they can hide behind

A GPU and its host work at once, so the longer of the two counts. On a CPU they are one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mim3d.engine.models.activations import recompute_costs
from mim3d.engine.planning.corpus import CorpusFacts, item_bytes
from mim3d.engine.planning.fusion import fused
from mim3d.engine.planning.machine import Machine
from mim3d.engine.planning.memory import compute_bytes, is_left_whole, keeps_voxels
from mim3d.engine.planning.network import Traffic, exposed_seconds
from mim3d.engine.planning.operations import Operation, Work
from mim3d.engine.planning.sharding import ShardSizes
from mim3d.engine.pretrain.config import PretrainConfig

KINDS = {
    "product": "products",
    "convolution": "convolutions",
    "attention": "attention",
    "pass": "passes",
}
FAR = 8.0
"""How many times the largest operation of a law's fit another may be and still be told of."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step of one rank."""

    device: dict[str, float]
    """By what is done."""
    host_s: float
    network_s: float
    """Of all collectives, one after the other."""
    exposed_s: float
    """Of these, what nothing hides."""
    apart: bool
    """Whether device and host are two, as with a GPU."""
    unknown: tuple[str, ...] = ()
    """Operations that no law of their own tells of, the longest first."""
    unknown_s: float = 0.0
    far_s: float = 0.0
    """Of operations far larger than what the laws were fitted to."""

    @property
    def device_s(self) -> float:
        """Of the device."""
        return sum(self.device.values())

    @property
    def compute_s(self) -> float:
        """Without the network."""
        return max(self.device_s, self.host_s) if self.apart else self.device_s + self.host_s

    @property
    def step_s(self) -> float:
        """Of the step."""
        return self.compute_s + self.exposed_s

    @property
    def bound(self) -> str:
        """What takes longest, in a word."""
        if self.exposed_s > self.compute_s:
            return "network"
        if self.apart and self.host_s > self.device_s:
            return "host"
        return max(self.device, key=lambda name: self.device[name])

    def share(self, seconds: float) -> float:
        """Of the device's time."""
        return seconds / self.device_s if self.device_s else 0.0


def step_time(
    config: PretrainConfig,
    gpus: int,
    machine: Machine,
    work: Work,
    shards: ShardSizes,
    traffic: Traffic,
    facts: CorpusFacts | None = None,
) -> StepTime:
    """Of one step of `config`, whose micro-batches are `work`."""
    parts, whole = config.parallel.grad_accum, is_left_whole(config, gpus)
    done = executed(work, config)
    again = recomputed_s(config, gpus, work, machine)
    device = dict.fromkeys(KINDS.values(), 0.0)
    for one in done:
        device[KINDS[one.kind]] += parts * machine.laws.seconds(one)
    if config.parallel.precision == "fp8":
        device["products"] /= machine.value("fp8_gain")
    if again:
        device["recomputed"] = parts * again
    device["optimiser"] = machine.laws.families["optimiser"].of(
        {"calls": work.tensors, "parameters": shards.local_parameters}
    )
    if machine.kind == "cuda":
        device["casts"] = cast_bytes(config, shards, whole) * byte_s(machine)
    loader = config.data.loader
    if loader.cache == "device" and not keeps_voxels(loader, facts, machine.memory_gb):
        device["decoding"] = (
            parts * decoded_bytes(config, gpus, facts) / gb(machine, "decode_gb_per_s")
        )
    host_s = host_seconds(config, gpus, machine, work, whole)
    # Where the device waits for its host, collectives have as much longer to hide behind.
    slowed = max(1.0, host_s / sum(device.values()))
    forward_s = slowed * seconds_of([one for one in done if not one.backward], machine)
    backward_s = slowed * (seconds_of([one for one in done if one.backward], machine) + again)
    blocks = block_shares(work, machine)
    exposed_s = exposed_seconds(
        traffic, [forward_s * each for each in blocks], [backward_s * each for each in blocks]
    )
    unknown = unknown_seconds(done, machine)
    return StepTime(
        device={name: seconds for name, seconds in device.items() if seconds},
        host_s=host_s,
        network_s=traffic.seconds,
        exposed_s=exposed_s,
        apart=machine.kind == "cuda",
        unknown=tuple(sorted(unknown, key=lambda name: -unknown[name])),
        unknown_s=parts * sum(unknown.values()),
        far_s=parts * far_seconds(done, machine),
    )


def executed(work: Work, config: PretrainConfig) -> Sequence[Operation]:
    """Operations as they run: passes are fused where blocks are compiled."""
    if config.parallel.compile:
        return fused(work.operations)
    return [one for one in work.operations if one.kind != "view"]


def recomputed_s(config: PretrainConfig, gpus: int, work: Work, machine: Machine) -> float:
    """Seconds of what a micro-batch's backward computes again: all blocks' forward pass, or what
    lies between their products, which is written and read once more."""
    if config.parallel.recompute == "none":
        return 0.0
    if config.parallel.recompute == "selective":
        cost = recompute_costs(config.method, config.encoder).get("selective")
        values = 0.0 if cost is None else cost.rebuilt_values * config.micro_batch(gpus)
        return 2.0 * compute_bytes(config) * values * byte_s(machine)
    return sum(seconds_of(work.operations[b.first : b.end], machine) for b in work.blocks)


def seconds_of(operations: Sequence[Operation], machine: Machine) -> float:
    """Of operations one after the other."""
    return sum(machine.laws.seconds(one) for one in operations if one.kind != "view")


def block_shares(work: Work, machine: Machine) -> list[float]:
    """Each block's share of the forward pass; backward is taken to have the same."""
    seconds = [
        seconds_of(work.operations[block.first : block.end], machine) for block in work.blocks
    ]
    total = seconds_of([one for one in work.operations if not one.backward], machine)
    return [each / total for each in seconds]


def host_seconds(
    config: PretrainConfig, gpus: int, machine: Machine, work: Work, whole: bool
) -> float:
    """Of the thread that starts the device's work, in a step."""
    parts, blocks = config.parallel.grad_accum, len(work.blocks)
    if is_one_graph(config, gpus, machine, work):
        crops = config.micro_batch(gpus) * us(machine, "host_us_per_crop")
        return crops + us(machine, "host_us_per_graph")
    launches = float(work.launches)
    each = 0.0
    if config.parallel.compile and machine.kind == "cuda":
        launches *= 1 - in_blocks(work)
        each = blocks * us(machine, "host_us_per_block")
    each += launches * us(machine, "host_us_per_op")
    if machine.kind == "cuda" and not whole:
        each += blocks * us(machine, "host_us_per_shard")
    if machine.kind == "cuda":  # of a CPU a batch is there when it is asked for
        each += config.micro_batch(gpus) * us(machine, "host_us_per_crop")
    return parts * each + us(machine, "host_us_per_step")


def is_one_graph(config: PretrainConfig, gpus: int, machine: Machine, work: Work) -> bool:
    """Whether the step is repeated as one CUDA graph, as a run's `capture_obstacle` decides."""
    parallel = config.parallel
    fits = parallel.cuda_graph and not parallel.compile and parallel.grad_accum == 1
    redraws = parallel.recompute != "none" and work.draws
    plain = parallel.precision != "fp16" and not redraws and config.optim.impl != "apex"
    one = gpus == 1 and is_left_whole(config, gpus)
    return machine.kind == "cuda" and fits and plain and one


def in_blocks(work: Work) -> float:
    """Share of the forward pass's operations that are the blocks'."""
    forward = sum(1 for one in work.operations if not one.backward and one.kind != "view")
    inside = sum(
        1
        for block in work.blocks
        for one in work.operations[block.first : block.end]
        if one.kind != "view"
    )
    return inside / max(forward, 1)


def cast_bytes(config: PretrainConfig, shards: ShardSizes, whole: bool) -> float:
    """Bytes moved to have weights in the half type and gradients in float32 again.

    Of whole weights each once (12 a parameter), with FSDP more:
    Weights are read (4) and written as halves (2), once more where blocks are freed after forward,
    and gathered ones copied; gradients are read (2) and written (4), and summed.
    """
    if whole:
        return 0.0 if compute_bytes(config) == 4 else 12.0 * shards.parameters
    if compute_bytes(config) == 4:
        return 8.0 * shards.parameters
    times = 2 if config.parallel.reshard_after_forward else 1
    return (6.0 * times + 10.0) * shards.parameters


def decoded_bytes(config: PretrainConfig, gpus: int, facts: CorpusFacts | None) -> float:
    """Bytes of voxels, as stored, that a micro-batch's chunks hold."""
    voxels = math.prod(config.vit.crop_size) * config.vit.channels
    return item_bytes(facts) * voxels * config.micro_batch(gpus)


def unknown_seconds(done: Sequence[Operation], machine: Machine) -> dict[str, float]:
    """Seconds of operations that a calibration met none of, by name; sheets know no names."""
    found: dict[str, float] = {}
    if not machine.calibrated:
        return found
    for one in done:
        name = one.name
        if machine.kind == "cpu" and is_single(one):
            name = "convolutions of one crop, which torch takes another way"
        elif machine.laws.knows(one) or name == "fused":
            continue
        found[name] = found.get(name, 0.0) + machine.laws.seconds(one)
    return found


def is_single(operation: Operation) -> bool:
    """Whether it is a convolution of one crop: on a thread of a CPU several times slower."""
    return operation.kind == "convolution" and operation.size[-1] == 1


def far_seconds(done: Sequence[Operation], machine: Machine) -> float:
    """Seconds of operations that lie far outside of what the laws were fitted to."""
    laws = machine.laws
    return sum(
        laws.seconds(one)
        for one in done
        if size_of(one) > FAR * laws.families[laws.family(one)].largest
    )


def size_of(operation: Operation) -> float:
    """Arithmetic of an operation, or bytes of a pass."""
    return operation.nbytes if operation.kind == "pass" else operation.flops


def byte_s(machine: Machine) -> float:
    """Seconds of a byte of a pass over much memory."""
    seconds = machine.laws.families["pass"].seconds
    return seconds.get("bytes", 0.0) + seconds.get("spilled", 0.0)


def gb(machine: Machine, name: str) -> float:
    """A constant in GB/s, in bytes a second."""
    return machine.value(name) * 1e9


def us(machine: Machine, name: str) -> float:
    """A constant in microseconds, in seconds."""
    return machine.value(name) * 1e-6
