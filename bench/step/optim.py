"""`mim3d bench optim`: one optimiser update over a model's local shards, ours and what is usual."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mim3d.bench.noise import Compared, as_json, compared, in_turn, spread
from mim3d.bench.step.options import LR, OptimBench
from mim3d.bench.timing import wait_for
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.distributed.parallel import make_mesh, shard_group, shard_model
from mim3d.engine.distributed.process_group import Ranks, process_ranks
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.recipes import recipe
from mim3d.engine.training.config import OptimConfig
from mim3d.engine.training.optim import ShardedOptimiser, apex_problem, decayed, load_apex

OURS = "mim3d, clipped"
BYTES_PER_PARAMETER = 28
"""Read weight, gradient and two moments, write weight and moments: 7 values of 4 bytes."""
Update = Callable[[], object]


def main(words: list[str]) -> Outcome:
    """Run the bench and print its table."""
    options = parse(OptimBench, words, "mim3d bench optim", OptimBench.__doc__)
    with process_ranks(600.0) as ranks:
        on_gpu = ranks.device.type == "cuda"
        config = recipe(options.recipe or ("mae-vit-l-128" if on_gpu else "demo-mae"))
        contestants, missing = make_updates(config, ranks)
        clocks = measure_updates(contestants, options, ranks.device)
        parameters = sum(p.numel() for p in config.build().parameters()) // ranks.world
    clock = "wall" if on_gpu else "cpu"  # others may share a CPU
    rounds = clocks[clock]
    seconds = {name: statistics.median(values) for name, values in rounds.items()}
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name(ranks.device) if on_gpu else "cpu",
        "parameters_per_rank": parameters,
        "clock": clock,
        "seconds": seconds,
        "rounds": rounds,
        "ratios": as_json(ratios_of(rounds)),
        **{f"{other}_rounds": values for other, values in clocks.items()},
        "gb_per_s": {k: BYTES_PER_PARAMETER * parameters / s / 1e9 for k, s in seconds.items()},
        "not_available": missing,
    }
    if ranks.first:
        print(table_of_updates(figures))
    return Outcome(figures)


def make_updates(config: PretrainConfig, ranks: Ranks) -> tuple[dict[str, Update], dict[str, str]]:
    """Updates by name, and why others are not there."""
    optim = config.optim
    contestants: dict[str, Update] = {OURS: ours(config, ranks, optim)}
    for name, how in (("fused", {"fused": True}), ("foreach", {"foreach": True})):
        contestants[f"torch AdamW {name}"] = plain(config, ranks, optim, how, clip=False)
        contestants[f"torch AdamW {name}, clipped"] = plain(config, ranks, optim, how, clip=True)
    missing: dict[str, str] = {}
    problem = apex_problem()
    if problem is not None:
        missing["apex FusedAdam"] = problem
    else:
        contestants["apex FusedAdam"] = apex_alone(config, ranks, optim)
        through = dataclasses.replace(optim, impl="apex")
        contestants["mim3d through apex, clipped"] = ours(config, ranks, through)
    return contestants, missing


def ours(config: PretrainConfig, ranks: Ranks, optim: OptimConfig) -> Update:
    """The engine's optimiser over a sharded model, with norm, clipping and the check for NaN."""
    module = config.build().to(ranks.device)
    mesh = make_mesh(ranks.device, ranks.world, config.parallel.replicate)
    shard_model(module, mesh, config.parallel, torch.float32)
    optimiser = ShardedOptimiser(module.named_parameters(), optim, shard_group(mesh))
    grads = {name: p.detach() * 1e-3 for name, p in module.named_parameters()}

    def update() -> None:
        for name, parameter in module.named_parameters():
            parameter.grad = grads[name]
        optimiser.step(LR)

    return update


def plain(
    config: PretrainConfig, ranks: Ranks, optim: OptimConfig, how: dict[str, Any], *, clip: bool
) -> Update:
    """torch's AdamW on plain tensors of the shards' sizes."""
    groups, tensors = shards_of(config, ranks, optim)
    common = {"lr": LR, "betas": (optim.beta1, optim.beta2), "eps": optim.eps}
    inner = torch.optim.AdamW(groups, **common, **how)

    def update() -> None:
        if clip:
            nn.utils.clip_grad_norm_(tensors, optim.clip_norm, foreach=True)
        inner.step()

    return update


def apex_alone(config: PretrainConfig, ranks: Ranks, optim: OptimConfig) -> Update:
    """NVIDIA's FusedAdam on the same tensors."""
    groups, _ = shards_of(config, ranks, optim)
    common = {"lr": LR, "betas": (optim.beta1, optim.beta2), "eps": optim.eps}
    return load_apex("adamw")(groups, **common).step


def shards_of(
    config: PretrainConfig, ranks: Ranks, optim: OptimConfig
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Parameter groups of plain tensors, a rank's share of each parameter, with gradients."""
    tensors: list[Tensor] = []
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": optim.weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for name, parameter in config.build().named_parameters():
        rows = -(-parameter.shape[0] // ranks.world)
        piece = nn.Parameter(parameter.detach()[:rows].to(ranks.device, copy=True))
        piece.grad = torch.randn_like(piece) * 1e-3
        groups[0 if decayed(name, parameter) else 1]["params"].append(piece)
        tensors.append(piece)
    return groups, tensors


def measure_updates(
    contestants: dict[str, Update], options: OptimBench, device: torch.device
) -> dict[str, dict[str, list[float]]]:
    """Seconds of an update by clock ("wall", "cpu") and contestant, in each round."""
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    for update in contestants.values():
        timed(update, 3, device)
    for number in range(options.rounds):
        for name in in_turn(list(contestants), number):
            passed, used = timed(contestants[name], options.steps, device)
            wall[name].append(passed)
            cpu[name].append(used)
    return {"wall": wall, "cpu": cpu}


def timed(update: Update, steps: int, device: torch.device) -> tuple[float, float]:
    """Seconds per update by the wall clock and of processors; the device is waited for."""
    wait_for(device.type)
    began, used = time.perf_counter(), time.process_time()
    for _ in range(steps):
        update()
    wait_for(device.type)
    return (time.perf_counter() - began) / steps, (time.process_time() - used) / steps


def ratios_of(rounds: dict[str, list[float]]) -> dict[str, Compared]:
    """Every other optimiser's time over ours."""
    return {name: compared(values, rounds[OURS]) for name, values in rounds.items() if name != OURS}


def table_of_updates(figures: dict[str, Any]) -> str:
    """The figures for people."""
    ratios, lines = ratios_of(figures["rounds"]), []
    for name, rounds in figures["rounds"].items():
        lines.append(
            f"{name:<29} {spread(rounds).text(1e3, 3):<26} ms  {figures['gb_per_s'][name]:6.1f}"
            f" GB/s  {f'{ratios[name].text()} x ours' if name in ratios else ''}"
        )
        other = "cpu" if figures["clock"] == "wall" else "wall"
        lines.append(f"{'':<24}{other:>5} {spread(figures[f'{other}_rounds'][name]).text(1e3, 3)}")
    head = f"{figures['parameters_per_rank'] / 1e6:.2f} M parameters a rank on {figures['device']}"
    head += f", {figures['clock']} time, median (range) of {len(figures['rounds'][OURS])} rounds"
    rest = [f"{name}: {why}" for name, why in figures["not_available"].items()]
    return "\n".join([head, *lines, *rest])
