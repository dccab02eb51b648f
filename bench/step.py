"""`mim3d bench step`: the whole training step, what bounds it, and the eager recipe beside it."""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import nn

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.bench.step_peers import EagerMAE
from mim3d.dataio.batch import Batch
from mim3d.dataio.loader import Loader
from mim3d.engine.build import build_method
from mim3d.engine.config import PretrainConfig, method_name
from mim3d.engine.errors import ConfigError
from mim3d.engine.flops import peak_bf16, run_flops
from mim3d.engine.mae import MAEConfig
from mim3d.engine.optim import ShardedOptimiser
from mim3d.engine.outcome import Outcome
from mim3d.engine.parallel import choose_precision, make_mesh, shard_group, shard_model
from mim3d.engine.process_group import Ranks, process_ranks
from mim3d.engine.recipes import recipe
from mim3d.engine.train_step import Stepper

LR = 1e-4


@dataclass(frozen=True)
class StepBench:
    """Time training steps in interleaved rounds; the best round of each counts.

    `model` is forward and backward of the bare module; `in memory` the engine's step on a batch
    that is already there (FSDP, clipping, optimiser); `loader` the same fed by the real loader.
    """

    recipe: str = ""
    """Recipe to time; demo-mae on a CPU and mae-vit-b-96 on a GPU where not given."""
    corpus: Path | None = None
    """Corpus for the loader; a generated one where not given."""
    global_batch: int = 0
    """Crops a step; 0 keeps the recipe's."""
    steps: int = 10
    """Steps of a round."""
    rounds: int = 3
    """Interleaved rounds."""
    warmup: int = 3
    """Steps before the first round."""
    peers: bool = False
    """Also time MAE in its common eager formulation, everything else equal."""


@dataclass(frozen=True)
class Timed:
    """Best seconds per step of one contestant, and the optimiser's part of its last step."""

    step_s: float
    optimiser_s: float = 0.0


def main(words: list[str]) -> Outcome:
    """Run the bench and print its table."""
    options = tyro.cli(
        StepBench, args=words, prog="mim3d bench step", description=StepBench.__doc__
    )
    with ExitStack() as stack:
        ranks = stack.enter_context(process_ranks(600.0))
        config = chosen_config(options, ranks)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mim3d-bench-")))
        loader = stack.enter_context(open_loader(options, config, ranks, folder))
        times = measure(options, config, ranks, loader)
    figures = figures_of(times, config, ranks)
    if ranks.first:
        print(table(times, figures, config))
    return Outcome(figures)


def chosen_config(options: StepBench, ranks: Ranks) -> PretrainConfig:
    """The recipe with the batch asked for."""
    on_gpu = ranks.device.type == "cuda"
    config = recipe(options.recipe or ("mae-vit-b-96" if on_gpu else "demo-mae"))
    if options.peers and not isinstance(config.method, MAEConfig):
        raise ConfigError(f"--peers times MAE's eager recipe; {options.recipe} is no MAE")
    return dataclasses.replace(config, global_batch=options.global_batch or config.global_batch)


def open_loader(options: StepBench, config: PretrainConfig, ranks: Ranks, folder: Path) -> Loader:
    """The real loader, over the corpus given or four generated volumes."""
    root = options.corpus or corpus_of(
        folder / "corpus.zarr", [anatomy_like((192, 192, 192), seed) for seed in range(4)]
    )
    micro_batch = config.micro_batch(ranks.world)
    return Loader(
        root,
        config.data.loader_config(config.vit, config.method, micro_batch, config.seed),
        rank=ranks.rank,
        world=ranks.world,
        device=ranks.device,
    )


def measure(
    options: StepBench, config: PretrainConfig, ranks: Ranks, loader: Loader
) -> dict[str, Timed]:
    """Seconds per step of every contestant."""
    batch = kept(next(loader))
    fused = build_method(config).to(ranks.device)
    steppers = {
        "in memory": make_stepper(config, ranks, build_method(config), forever(batch)),
        "loader": make_stepper(config, ranks, build_method(config), loader),
    }
    if options.peers:
        assert isinstance(config.method, MAEConfig)
        eager = EagerMAE(config.method, config.vit, config.seed)
        steppers["eager recipe"] = make_stepper(config, ranks, eager, forever(batch))
    runs: dict[str, Callable[[], object]] = {"model": bare_step(config, ranks, fused, batch)}
    for name, stepper in steppers.items():
        runs[name] = engine_step(stepper)
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        seconds_per_step(run, options.warmup, ranks.device)
    for _ in range(options.rounds):
        for name, run in runs.items():
            best[name] = min(best[name], seconds_per_step(run, options.steps, ranks.device))
    parts = {name: optimiser_seconds(stepper) for name, stepper in steppers.items()}
    return {name: Timed(seconds, parts.get(name, 0.0)) for name, seconds in best.items()}


def make_stepper(
    config: PretrainConfig, ranks: Ranks, module: nn.Module, batches: Iterator[Batch]
) -> Stepper:
    """The engine's step around a module."""
    dtype = choose_precision(config.parallel.precision, ranks.device)
    mesh = make_mesh(ranks.device, ranks.world, config.parallel.replicate)
    module.to(ranks.device)
    model = shard_model(module, mesh, config.parallel, dtype)
    optimiser = ShardedOptimiser(
        module.named_parameters(), config.optim, shard_group(mesh), scaled=dtype == torch.float16
    )
    return Stepper(model, optimiser, batches, ranks, config.parallel.grad_accum)


def bare_step(
    config: PretrainConfig, ranks: Ranks, module: nn.Module, batch: Batch
) -> Callable[[], None]:
    """Forward and backward of the module alone, in the engine's precision."""
    dtype = choose_precision(config.parallel.precision, ranks.device)
    module.to(dtype)

    def run() -> None:
        for _ in range(config.parallel.grad_accum):
            module(batch)[0].backward()
        for parameter in module.parameters():
            parameter.grad = None

    return run


def engine_step(stepper: Stepper) -> Callable[[], object]:
    """One whole step."""
    return lambda: stepper.step(LR, measure=False)


def seconds_per_step(run: Callable[[], object], steps: int, device: torch.device) -> float:
    """Mean seconds of `steps` calls, the device waited for at both ends."""
    wait_for(device)
    began = time.perf_counter()
    for _ in range(steps):
        run()
    wait_for(device)
    return (time.perf_counter() - began) / steps


def optimiser_seconds(stepper: Stepper) -> float:
    """The optimiser's part, the least of three measured steps."""
    parts = []
    for _ in range(3):
        stepper.step(LR, measure=True)
        parts.append(stepper.clock.read()["optimiser"])
    return min(parts)


def wait_for(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forever(batch: Batch) -> Iterator[Batch]:
    """The same batch, again and again."""
    while True:
        yield batch


def kept(batch: Batch) -> Batch:
    """A copy that outlives the loader's buffers."""
    second = None if batch.second_view is None else batch.second_view.clone()
    return dataclasses.replace(batch, image=batch.image.clone(), second_view=second)


def figures_of(times: dict[str, Timed], config: PretrainConfig, ranks: Ranks) -> dict[str, object]:
    """What --json writes."""
    memory, real = times["in memory"], times["loader"]
    flops = run_flops(config.method, config.vit, config.swin) * config.global_batch
    on_gpu = ranks.device.type == "cuda"
    peak = peak_bf16(torch.cuda.get_device_name(ranks.device)) if on_gpu else None
    rest = memory.step_s - times["model"].step_s - memory.optimiser_s
    figures: dict[str, object] = {
        "device": torch.cuda.get_device_name(ranks.device) if on_gpu else "cpu",
        "world": ranks.world,
        "global_batch": config.global_batch,
        "crops_per_s": config.global_batch / real.step_s,
        "tflops_per_s": flops / real.step_s / 1e12,
        "mfu_bf16": None if peak is None else flops / real.step_s / peak / ranks.world,
        "loader_over_memory": memory.step_s / real.step_s,
        "optimiser_share": memory.optimiser_s / memory.step_s,
        "outside_share": rest / memory.step_s,
        "seconds": {name: timed.step_s for name, timed in times.items()},
    }
    if "eager recipe" in times:
        figures["over_eager"] = times["eager recipe"].step_s / memory.step_s
    return figures


def table(times: dict[str, Timed], figures: dict[str, object], config: PretrainConfig) -> str:
    """The figures for people."""
    b = config.global_batch
    lines = [f"{method_name(config.method)}, {b} crops a step, on {figures['device']}"]
    lines += [
        f"{name:<13} {timed.step_s * 1e3:9.2f} ms  {b / timed.step_s:9.1f} crops/s"
        for name, timed in times.items()
    ]
    lines.append(
        f"in memory: optimiser {figures['optimiser_share']:.1%} of the step, all else outside the"
        f" model {figures['outside_share']:.1%}; with the loader "
        f"{figures['loader_over_memory']:.3f} of its rate"
    )
    if figures["mfu_bf16"] is not None:
        lines.append(f"MFU (bf16 peak) with the loader {figures['mfu_bf16']:.1%}")
    if "over_eager" in figures:
        lines.append(f"{figures['over_eager']:.2f}x the eager recipe, everything else equal")
    return "\n".join(lines)
