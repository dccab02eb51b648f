"""The figures of `mim3d bench step` for people and for --json."""

import torch

from mim3d.bench.step.rounds import Timed
from mim3d.engine.distributed.parallel import choose_precision
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.models.config import method_name
from mim3d.engine.models.flops import peak_bf16, run_flops
from mim3d.engine.pretrain.config import PretrainConfig


def figures_of(times: dict[str, Timed], config: PretrainConfig, ranks: Ranks) -> dict[str, object]:
    """What --json writes; rates and MFU are the loader's where there is one."""
    memory = times["in memory"]
    real = times.get("loader", memory)
    flops = run_flops(config.method, config.vit, config.swin) * config.global_batch
    on_gpu = ranks.device.type == "cuda"
    peak = peak_bf16(torch.cuda.get_device_name(ranks.device)) if on_gpu else None
    rest = memory.step_s - times["model"].step_s - memory.optimiser_s
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
        "outside_share": rest / memory.step_s,
        "seconds": {name: timed.step_s for name, timed in times.items()},
        "rounds": {name: list(timed.rounds) for name, timed in times.items()},
    }
    if "loader" in times:
        figures["loader_over_memory"] = memory.step_s / real.step_s
        figures["data_stall_share"] = real.waited_s / real.step_s
    if "eager recipe" in times:
        figures["over_eager"] = times["eager recipe"].step_s / memory.step_s
    if on_gpu:
        figures["peak_memory_gib"] = torch.cuda.max_memory_allocated(ranks.device) / 2**30
    return figures


def table(times: dict[str, Timed], figures: dict[str, object], config: PretrainConfig) -> str:
    """The figures for people."""
    b = config.global_batch
    lines = [f"{figures['method']}, {b} crops a step, on {figures['device']}"]
    lines += [
        f"{name:<13} {timed.step_s * 1e3:9.2f} ms  {b / timed.step_s:9.1f} crops/s"
        for name, timed in times.items()
    ]
    lines.append(
        f"in memory: optimiser {figures['optimiser_share']:.1%} of the step, all else outside the"
        f" model {figures['outside_share']:.1%}"
    )
    if "loader" in times:
        lines.append(
            f"with the loader {figures['loader_over_memory']:.3f} of the rate in memory; the host"
            f" waits for data {figures['data_stall_share']:.1%} of the step"
        )
    if figures["mfu_bf16"] is not None:
        lines.append(
            f"MFU (bf16 peak) {figures['mfu_bf16']:.1%} from {figures['fed_by']}, "
            f"{figures['mfu_bf16_in_memory']:.1%} in memory"
        )
    if "over_eager" in figures:
        lines.append(f"{figures['over_eager']:.2f}x the eager recipe, everything else equal")
    return "\n".join(lines)
