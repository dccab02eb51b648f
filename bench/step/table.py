"""The figures of `mim3d bench step` for people and for --json."""

from collections.abc import Mapping
from typing import Any

import torch

from mim3d.bench.noise import Compared, as_json, compared, spread
from mim3d.bench.other_work import OtherWork
from mim3d.bench.sharing import Sharing
from mim3d.bench.step.peers import PEERS
from mim3d.bench.step.rounds import Timed
from mim3d.engine.arithmetic.precision import choose_precision
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.models.config import method_name
from mim3d.engine.models.flops import peak_bf16, run_flops
from mim3d.engine.pretrain.config import PretrainConfig

OTHERS = (*PEERS, "plain, compiled")
LABELS = {
    "memory over model": "rate in memory over the bare model's",
    "loader over memory": "rate with the loader over that in memory",
}


def figures_of(
    times: Mapping[str, Timed], config: PretrainConfig, ranks: Ranks
) -> dict[str, object]:
    """What --json writes; rates and MFU are the loader's where there is one."""
    memory = times["in memory"]
    real = times.get("loader", memory)
    flops = run_flops(config.method, config.vit, config.backbone) * config.global_batch
    on_gpu = ranks.device.type == "cuda"
    peak = peak_bf16(torch.cuda.get_device_name(ranks.device)) if on_gpu else None
    rest = memory.step_s - times["model"].step_s - memory.optimiser_s
    ratios = ratios_of(times)
    figures: dict[str, object] = {
        "device": torch.cuda.get_device_name(ranks.device) if on_gpu else "cpu",
        "torch": torch.__version__,
        "world": ranks.world,
        "method": method_name(config.method),
        "global_batch": config.global_batch,
        "precision": str(choose_precision(config.parallel.precision, ranks.device)),
        "compiled": config.parallel.compile,
        "fed_by": "loader" if "loader" in times else "memory",
        "crops_per_s": config.global_batch / real.step_s,
        "tflops_per_s": flops / real.step_s / 1e12,
        "mfu_bf16": None if peak is None else flops / real.step_s / peak / ranks.world,
        "mfu_bf16_in_memory": None if peak is None else flops / memory.step_s / peak / ranks.world,
        "optimiser_share": memory.optimiser_s / memory.step_s,
        "outside_share": max(0.0, rest / memory.step_s),
        "seconds": {name: timed.step_s for name, timed in times.items()},
        "cpu_seconds": {name: spread(timed.cpu).median for name, timed in times.items()},
        "rounds": {name: list(timed.wall) for name, timed in times.items()},
        "cpu_rounds": {name: list(timed.cpu) for name, timed in times.items()},
        "ratios": as_json(ratios),
    }
    if "loader" in times:
        figures["loader_over_memory"] = ratios["loader over memory"].value
        figures["data_stall_share"] = real.waited_s / real.step_s
    if "eager recipe" in times:
        figures["over_eager"] = ratios["over eager recipe"].value
    if on_gpu:
        figures["peak_memory_gib"] = torch.cuda.max_memory_allocated(ranks.device) / 2**30
    return figures


def ratios_of(times: Mapping[str, Timed]) -> dict[str, Compared]:
    """The rate of the engine's step over the bare model's, with the loader over that in memory,
    ours over others'; each by wall clock and by processor time."""
    memory, found = times["in memory"], {}
    model = times["model"]
    found["memory over model"] = compared(model.wall, memory.wall, limit=1.0)
    found["memory over model, CPU"] = compared(model.cpu, memory.cpu, limit=1.0)
    if "loader" in times:
        real = times["loader"]
        found["loader over memory"] = compared(memory.wall, real.wall, limit=1.0)
        found["loader over memory, CPU"] = compared(memory.cpu, real.cpu, limit=1.0)
    for name in (name for name in OTHERS if name in times):
        found[f"over {name}"] = compared(times[name].wall, memory.wall)
        found[f"over {name}, CPU"] = compared(times[name].cpu, memory.cpu)
    return found


def without_loader(times: Mapping[str, Timed]) -> dict[str, Timed]:
    """The contestants whose figures do not depend on the corpus."""
    return {name: timed for name, timed in times.items() if name != "loader"}


def table(
    times: Mapping[str, Timed],
    figures: Mapping[str, Any],
    sharing: Sharing | None,
    other: OtherWork,
) -> str:
    """The figures for people."""
    b, n = figures["global_batch"], len(times["in memory"].wall)
    width = max(map(len, times))
    lines = [
        f"{figures['method']}, {b} crops a step, on {figures['device']}; median (range) of {n} "
        f"rounds; others used {other.text()} of the CPUs",
        f"{'':<{width}}  {'wall ms a step':<28} {'CPU ms a step':<28} crops/s",
    ]
    for name, timed in times.items():
        wall, cpu = spread(timed.wall), spread(timed.cpu)
        lines.append(
            f"{name:<{width}}  {wall.text(1e3):<28} {cpu.text(1e3):<28} {b / wall.median:.1f}"
        )
    if other.busy:
        lines.append("the CPUs were busy with other work: trust CPU times, not the wall clock")
    lines.append(
        f"in memory: optimiser {figures['optimiser_share']:.1%} of the step, all else outside the"
        f" model {figures['outside_share']:.1%}"
    )
    lines += ratio_lines(times)
    if "loader" in times:
        lines.append(f"the host waits for data {figures['data_stall_share']:.1%} of the step")
    if sharing is not None:
        lines.append(f"loader: {sharing.text()}")
    if figures["mfu_bf16"] is not None:
        lines.append(
            f"MFU (bf16 peak) {figures['mfu_bf16']:.1%} from {figures['fed_by']}, "
            f"{figures['mfu_bf16_in_memory']:.1%} in memory"
        )
    return "\n".join(lines)


def ratio_lines(times: Mapping[str, Timed]) -> list[str]:
    """A line for each ratio by wall clock, with the same of processor seconds."""
    ratios = ratios_of(times)
    lines = []
    for name in (name for name in ratios if not name.endswith(", CPU")):
        lines.append(f"{LABELS.get(name, f'speed {name}')}: {ratios[name].text()}")
        lines.append(f"    by CPU time: {ratios[f'{name}, CPU'].text()}")
    return lines
