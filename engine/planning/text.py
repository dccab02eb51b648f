"""A plan for people, 80 columns wide."""

import math
import textwrap
from collections.abc import Sequence

from mim3d.engine.planning.corpus import CorpusFacts
from mim3d.engine.planning.machine import Machine
from mim3d.engine.planning.memory import device_room
from mim3d.engine.planning.plan import Plan
from mim3d.engine.planning.step_time import StepTime, is_one_graph
from mim3d.engine.planning.supply import moved_share, turns_on_host
from mim3d.engine.pretrain.config import PretrainConfig

WIDTH, NAME = 80, 13
NETWORK = ("gpus_per_node", "network_gb_per_s", "network_share", "link_gb_per_s")
HOST = ("host_us_per_op", "host_us_per_step", "host_us_per_crop")


def plan_text(
    config: PretrainConfig,
    plan: Plan,
    machine: Machine,
    facts: CorpusFacts | None = None,
    measured: bool = False,
) -> str:
    """The plan's rows, then what it assumes."""
    rows = [*size_rows(config, plan, machine, facts), *time_rows(config, plan, machine)]
    rows += need_rows(config, plan, machine)
    lines = [wrapped(name, value) for name, value in rows]
    used = constants_used(config, plan, machine, facts, measured)
    assumed = [name for name in used if machine.constants[name].origin in {"assumed", "given"}]
    if assumed:
        lines.append("assumed, changed by --assume NAME=VALUE:")
        lines += [assumption(name, machine) for name in assumed]
    return "\n".join(lines)


def size_rows(
    config: PretrainConfig, plan: Plan, machine: Machine, facts: CorpusFacts | None
) -> list[tuple[str, str]]:
    """What is trained on what."""
    peak = machine.constants.get("peak_tflops")
    each = f", {peak.value:.4g} TFLOP/s each in bf16" if peak else ""
    rows = [("corpus", facts.row())] if facts else []
    return [
        *rows,
        ("parameters", f"{plan.parameters / 1e6:.1f} M"),
        (
            "crops a step",
            f"{config.global_batch} ({config.micro_batch(plan.gpus)} a micro-batch); "
            f"{count(plan.crops)} in the run of {config.steps} steps",
        ),
        (
            "arithmetic",
            f"{digits(plan.flops_per_crop / 1e12)} TFLOP a crop, "
            f"{digits(plan.flops_per_step / 1e12)} a step",
        ),
        ("devices", f"{plan.gpus} x {machine.name}{each}"),
        ("basis", plan.basis),
    ]


def time_rows(config: PretrainConfig, plan: Plan, machine: Machine) -> list[tuple[str, str]]:
    """How long it takes, and what binds."""
    if plan.outside:
        return [("time", f"not told: {plan.outside}")]
    time = plan.time
    mfu = f", {plan.utilisation:.1%} of the peak (MFU)" if plan.utilisation is not None else ""
    rows = [
        ("time", f"{ms(plan.step_s)} ms a step, {digits(plan.hours)} h for {config.steps} steps"),
        ("throughput", f"{digits(plan.crops_per_s)} crops/s{mfu}"),
        ("device", f"{ms(time.device_s)} ms: {parts_of(time)}"),
    ]
    if time.host_s:
        beside = "beside it" if time.apart else "more"
        rows.append(("host", f"{ms(time.host_s)} ms {beside}, to start the work"))
    if plan.traffic.nbytes and time.network_s:
        rows.append(
            (
                "network",
                f"{digits(plan.traffic.nbytes / 1e9)} GB a rank and step take "
                f"{ms(time.network_s)} ms, of which {ms(time.exposed_s)} show; to hide all it must "
                f"carry {digits(plan.network_gb_per_s)} GB/s, and carries "
                f"{digits(plan.traffic.nbytes / plan.traffic.seconds / 1e9)}",
            )
        )
    rows.append(("bound by", time.bound))
    return rows


def need_rows(config: PretrainConfig, plan: Plan, machine: Machine) -> list[tuple[str, str]]:
    """Memory and data."""
    memory, supply = plan.memory, plan.supply
    parts = {
        "state": memory.state,
        "gathered": memory.gathered,
        "accumulated gradients": memory.accumulated,
        "activations": memory.activations,
        "crops": memory.crops,
        "volumes kept on the device": memory.cache,
    }
    words = ", ".join(f"{name} {digits(gb)}" for name, gb in parts.items() if gb)
    if memory.cache:
        room = device_room(config.data.loader, machine.memory_gb)
        words += f" (--data.cache-bytes), which take at most {room.text()}"
    rows = [("memory", f"{digits(memory.device)} GB a rank: {words}")]
    if memory.host:
        host = {"chunks": memory.host_cache, "checkpoint's copy": memory.host_checkpoint}
        kept = ", ".join(f"{name} {digits(gb)}" for name, gb in host.items() if gb)
        rows.append(("host memory", f"{digits(memory.host)} GB a rank: {kept}"))
    if not plan.outside:
        rows.append(
            (
                "loader",
                f"{digits(supply.gb_per_s)} GB/s of voxels for each rank: {supply.cores:.2g} cores "
                "with augmentation",
            )
        )
        rows.append(
            (
                "disk",
                f"{digits(supply.stored_gb_per_s)} GB/s while nothing is kept "
                f"({digits(supply.stored_tb)} TB over the run); checkpoints of "
                f"{digits(supply.checkpoint_gb)} GB, up to {supply.checkpoints}",
            )
        )
    return rows


def constants_used(
    config: PretrainConfig,
    plan: Plan,
    machine: Machine,
    facts: CorpusFacts | None,
    measured: bool,
) -> list[str]:
    """Names of the constants that this plan's figures rest on."""
    names: list[str] = []
    if not measured and not machine.calibrated:
        names += ["product_share", "memory_share", "launch_us"]
        kinds = plan.time.device
        names += ["convolution_share"] if kinds.get("convolutions") else []
        names += ["attention_share"] if kinds.get("attention") else []
        names += ["memory_gb_per_s", "memory_gb"]
    if not measured and machine.kind == "cuda":
        graph = is_one_graph(config, plan.gpus, machine, plan.work)
        names += ("host_us_per_graph", "host_us_per_crop") if graph else HOST
        names += ["host_us_per_block"] if config.parallel.compile else []
        names += ["fp8_gain"] if config.parallel.precision == "fp8" else []
        names += ["host_us_per_shard"] if plan.memory.gathered else []
        names += ["decode_gb_per_s"] if plan.time.device.get("decoding") else []
    names += NETWORK if plan.gpus > 1 and not measured else []
    cached = config.data.loader.cache == "device"
    names += ["fetch_us_per_crop" if cached else "read_gvoxels_per_core", "cores_per_gpu"]
    names += ["resample_gvoxels_per_core"] if moved_share(config) else []
    names += ["turn_gvoxels_per_core"] if turns_on_host(config, machine) else []
    names += [] if facts else ["stored_bytes_per_voxel"]
    names += ["disk_gb_per_s"] if facts else []
    return [name for name in dict.fromkeys(names) if name in machine.constants]


def assumption(name: str, machine: Machine) -> str:
    """A constant with its value and source."""
    constant = machine.constants[name]
    value = f"{constant.value:.4g} {constant.unit}"
    if math.isinf(constant.value):
        value = "not known"
    return f"  {name:<22} {value:<18} {constant.source}"


def parts_of(time: StepTime) -> str:
    """The device's time by what is done, the longest first."""
    order = sorted(time.device, key=lambda name: -time.device[name])
    return ", ".join(f"{name} {ms(time.device[name])}" for name in order)


def wrapped(name: str, value: str) -> str:
    """A row whose further lines stand under its value."""
    lines: Sequence[str] = textwrap.wrap(
        value, WIDTH - NAME - 1, break_long_words=False, break_on_hyphens=False
    )
    indent = "\n" + " " * (NAME + 1)
    return f"{name:<{NAME}} {indent.join(lines)}"


def ms(seconds: float) -> str:
    """Milliseconds, three digits."""
    return digits(seconds * 1e3)


def digits(number: float) -> str:
    """Three digits, and all before the point: 0.0656, 4.60, 70.8, 10415."""
    return f"{number:.0f}" if number >= 100 else f"{number:#.3g}"


def count(number: float) -> str:
    """For example 2.00 M."""
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number:.0f}"
