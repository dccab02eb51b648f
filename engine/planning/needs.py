"""Where a plan asks for more than the machine has, and what would make it ask for less."""

import dataclasses
import math
from dataclasses import dataclass

from mim3d.dataio.device.device_fit import DeviceRoom
from mim3d.engine.models.activations import recompute_costs
from mim3d.engine.planning.corpus import CorpusFacts
from mim3d.engine.planning.machine import Machine
from mim3d.engine.planning.memory import compute_bytes, device_room
from mim3d.engine.planning.plan import Plan, make_plan
from mim3d.engine.pretrain.config import PretrainConfig

FULL = 0.9
"""Of a device's memory: the rest is the allocator's and cuDNN's."""
EXPOSED = 0.1
"""Of a step: a network that shows by more binds it."""
BETTER = 0.9
"""Of the step's time: what a change must get it down to, to be recommended."""


@dataclass(frozen=True)
class Need:
    """What is asked for, what there is, and what to do."""

    what: str
    asked: float
    has: float
    unit: str
    remedy: str

    @property
    def text(self) -> str:
        """In a line."""
        return (
            f"{self.what}: {self.asked:.3g} {self.unit} are needed, the machine has "
            f"{self.has:.3g}; {self.remedy}"
        )


def needs_of(
    config: PretrainConfig, plan: Plan, machine: Machine, facts: CorpusFacts | None = None
) -> list[Need]:
    """All that a plan asks too much of; empty where it fits."""
    found = [memory_need(config, plan, machine), voxels_need(config, machine, facts)]
    if not plan.outside:
        found += [
            network_need(config, plan, machine),
            core_need(config, plan, machine),
            disk_need(plan, machine, facts),
            host_memory_need(plan, machine, facts),
        ]
    return [need for need in found if need is not None]


def memory_need(config: PretrainConfig, plan: Plan, machine: Machine) -> Need | None:
    """Of the device."""
    if machine.memory_gb is None or plan.memory.device <= FULL * machine.memory_gb:
        return None
    room = FULL * machine.memory_gb
    remedy = less_memory(config, plan, room) + fitting_policy(config, plan, room)
    return Need("memory of a rank", plan.memory.device, room, "GB", remedy)


def voxels_need(config: PretrainConfig, machine: Machine, facts: CorpusFacts | None) -> Need | None:
    """Of the device's memory for decoded voxels that are asked for, as the loader refuses them."""
    loader = config.data.loader
    if facts is None or loader.cache != "device" or loader.device_keeps != "voxels":
        return None
    room = device_room(loader, machine.memory_gb)
    if facts.decoded_gb <= room.nbytes / 1e9:
        return None
    remedy = "--data.device-keeps chunks keeps less"
    enough = DeviceRoom(math.ceil(facts.decoded_gb * 1e9), room.free)
    if enough.nbytes == enough.budget:
        remedy += f", or raise --data.cache-bytes to {enough.budget}"
    return Need("voxels kept on the device", facts.decoded_gb, room.nbytes / 1e9, "GB", remedy)


def fitting_policy(config: PretrainConfig, plan: Plan, room: float) -> str:
    """The policy of the least arithmetic by which activations fit; empty where none does."""
    width = compute_bytes(config) * config.micro_batch(plan.gpus) / 1e9
    for policy, cost in recompute_costs(config.method, config.encoder).items():
        fits = plan.memory.kept + width * cost.kept_values <= room
        if policy != "none" and fits and policy != config.parallel.recompute:
            return f"; --parallel.recompute {policy} is enough"
    return ""


def less_memory(config: PretrainConfig, plan: Plan, room: float) -> str:
    """What makes a rank fit into `room` GB; what is kept there first, for it costs only speed."""
    less = "raise --gpus or --parallel.grad-accum"
    if config.parallel.recompute != "full":
        less += ", or set --parallel.recompute full"
    if not plan.memory.cache:
        return less
    spare = int((room - plan.memory.device + plan.memory.cache) * 1e3)
    if spare <= 0:
        return f"{less}, beside a lower --data.cache-bytes"
    lower = f"lower --data.cache-bytes to {spare}000000 ({spare / 1e3:.3g} GB)"
    if config.data.loader.device_keeps == "voxels":
        lower += " with --data.device-keeps auto"
    return f"{lower}, {less}"


def network_need(config: PretrainConfig, plan: Plan, machine: Machine) -> Need | None:
    """Of the links that shards or replicas are exchanged over."""
    if plan.time.exposed_s <= EXPOSED * plan.step_s:
        return None
    has = plan.traffic.nbytes / plan.traffic.seconds / 1e9
    return Need(
        "network of a rank",
        plan.network_gb_per_s,
        has,
        "GB/s",
        f"{plan.time.exposed_s / plan.step_s:.0%} of the step waits for it; "
        + faster_network(config, plan, machine),
    )


def faster_network(config: PretrainConfig, plan: Plan, machine: Machine) -> str:
    """The change that shortens the step most, of those that leave what is learned as it is."""
    found: list[tuple[float, str]] = []
    node = int(machine.value("gpus_per_node"))
    nodes = plan.gpus // node
    if nodes > 1 and plan.gpus % node == 0 and config.parallel.replicate != nodes:
        found.append((replanned(config, plan, machine, replicate=nodes), f"replicate {nodes}"))
    if config.parallel.reshard_after_forward:
        kept = replanned(config, plan, machine, reshard_after_forward=False)
        found.append((kept, "no-reshard-after-forward"))
    if found:
        best, words = min(found)
        if best < BETTER * plan.step_s:
            return f"--parallel.{words} makes it {best * 1e3:.3g} ms a step"
    return "take fewer --gpus, or a larger --global-batch with a rate chosen for it"


def replanned(config: PretrainConfig, plan: Plan, machine: Machine, **changes: object) -> float:
    """Seconds of a step with `parallel` changed."""
    parallel = dataclasses.replace(config.parallel, **changes)  # pyright: ignore[reportArgumentType]
    changed = dataclasses.replace(config, parallel=parallel)
    return make_plan(changed, plan.gpus, machine, work=plan.work).step_s


def core_need(config: PretrainConfig, plan: Plan, machine: Machine) -> Need | None:
    """Of the processor's cores that read, decode and augment."""
    has = machine.value("cores_per_gpu")
    if plan.supply.cores <= has:
        return None
    return Need(
        "cores of a rank for the loader",
        plan.supply.cores,
        has,
        "cores",
        "--data.cache device decodes on the GPU, or the run is as slow as its loader",
    )


def disk_need(plan: Plan, machine: Machine, facts: CorpusFacts | None) -> Need | None:
    """Of the disk, where a known corpus is larger than what is kept of it."""
    memory = plan.memory
    kept = memory.cache + memory.host_cache
    if facts is None or kept >= facts.stored_gb:
        return None
    nodes = -(-plan.gpus // int(machine.value("gpus_per_node")))
    asked = plan.supply.stored_gb_per_s / nodes * (1 - kept / facts.stored_gb)
    has = machine.value("disk_gb_per_s")
    if asked <= has:
        return None
    remedy = "raise --data.cache-bytes with --data.cache host, or read from faster disks"
    return Need("disk of a node", asked, has, "GB/s", remedy)


def host_memory_need(plan: Plan, machine: Machine, facts: CorpusFacts | None) -> Need | None:
    """Of the host's memory, where the corpus says how much of it will be kept there."""
    if facts is None:
        return None
    ranks = min(plan.gpus, int(machine.value("gpus_per_node")))
    asked, has = plan.memory.host * ranks, machine.value("host_memory_gb")
    if asked <= FULL * has:
        return None
    return Need("host memory of a node", asked, FULL * has, "GB", "lower --data.cache-bytes")
