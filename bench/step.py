"""`mim3d bench step`: the whole training step, what bounds it, and the eager recipe beside it."""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import nn

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.bench.step_peers import EagerMAE
from mim3d.bench.step_profile import write_profile
from mim3d.dataio.loader.batch import Batch
from mim3d.dataio.loader.loader import Loader
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.distributed.parallel import (
    choose_precision,
    make_mesh,
    set_recompute,
    shard_group,
    shard_model,
    transformer_blocks,
)
from mim3d.engine.distributed.process_group import Ranks, process_ranks
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import MAEConfig, method_name
from mim3d.engine.models.flops import peak_bf16, run_flops
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.recipes import recipe
from mim3d.engine.training.optim import ShardedOptimiser
from mim3d.engine.training.train_step import Stepper

LR = 1e-4


@dataclass(frozen=True)
class StepBench:
    """Time training steps in interleaved rounds; the best round of each counts.

    `model` is forward and backward of the bare module, its blocks compiled if the engine's are;
    `in memory` the engine's step on a batch that is already there (FSDP, clipping, optimiser);
    `loader` the same fed by the real loader.
    """

    recipe: str = ""
    """Recipe to time; demo-mae on a CPU and mae-vit-b-96 on a GPU where not given."""
    corpus: Annotated[Path | None, tyro.conf.arg(name="data.corpus", aliases=("--corpus",))] = None
    """Corpus for the loader; a generated one where not given."""
    global_batch: int = 0
    """Crops a step; 0 keeps the recipe's."""
    steps: int = 10
    """Steps of a round."""
    rounds: int = 3
    """Interleaved rounds."""
    warmup: int = 3
    """Steps before the first round."""
    cache: Literal["recipe", "none", "host", "device"] = "recipe"
    """The loader's cache; "device" decompresses with nvCOMP."""
    loader: bool = True
    """Off: random batches stand in for the loader's, and neither DALI nor nvCOMP is needed."""
    peers: bool = False
    """Also time MAE in its common eager formulation, everything else equal."""
    profile: Path | None = None
    """Folder for profile.txt: where the device's time goes in three steps of each contestant."""


@dataclass(frozen=True)
class Timed:
    """Best seconds per step of one contestant, the optimiser's part, its waiting, all rounds."""

    step_s: float
    optimiser_s: float = 0.0
    waited_s: float = 0.0
    rounds: tuple[float, ...] = ()


@dataclass
class Contestant:
    """Something that can be stepped, how fast it was at best, and what that round waited."""

    run: Callable[[], float]
    stepper: Stepper | None = None
    best_s: float = float("inf")
    waited_s: float = 0.0
    rounds: list[float] = field(default_factory=list)


def main(words: list[str]) -> Outcome:
    """Run the bench and print its table."""
    options = parse(StepBench, words, "mim3d bench step", StepBench.__doc__)
    with ExitStack() as stack:
        ranks = stack.enter_context(process_ranks(600.0))
        config = chosen_config(options, ranks)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mim3d-bench-")))
        loader = None
        if options.loader:
            loader = stack.enter_context(open_loader(options, config, ranks, folder))
        contestants = make_contestants(options, config, ranks, loader)
        times = measure(options, contestants, ranks.device)
        if options.profile is not None and ranks.first:
            runs = {name: one.run for name, one in contestants.items()}
            write_profile(runs, options.profile, ranks.device)
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
    data = config.data
    if options.cache != "recipe":
        loader = dataclasses.replace(data.loader, cache=options.cache)
        data = dataclasses.replace(data, loader=loader)
    batch = options.global_batch or config.global_batch
    return dataclasses.replace(config, global_batch=batch, data=data)


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


def make_contestants(
    options: StepBench, config: PretrainConfig, ranks: Ranks, loader: Loader | None
) -> dict[str, Contestant]:
    """Everything that is timed; the same weights, precision, compilation and batch size."""
    batch = random_batch(config, ranks) if loader is None else kept(next(loader))
    same = functools.partial(make_stepper, config, ranks)
    steppers = {"in memory": same(config.build(), forever(batch))}
    if loader is not None:
        steppers["loader"] = same(config.build(), loader)
    if options.peers:
        assert isinstance(config.method, MAEConfig)
        eager = EagerMAE(config.method, config.vit, config.seed)
        eager.load_state_dict(config.build().state_dict())
        steppers["eager recipe"] = same(eager, forever(batch))
    found = {"model": Contestant(bare_step(config, ranks, config.build(), batch))}
    for name, stepper in steppers.items():
        found[name] = Contestant(engine_step(stepper), stepper)
    return found


def random_batch(config: PretrainConfig, ranks: Ranks) -> Batch:
    """Normalised noise of the shape and dtype that the loader would hand over."""
    b, vit = config.micro_batch(ranks.world), config.vit
    settings = config.data.loader_config(vit, config.method, b, config.seed)
    crops = torch.randn(b, vit.channels, *vit.crop_size, device=ranks.device)
    image = crops.to(getattr(torch, settings.dtype))
    second = image.flip(-1).contiguous() if settings.views == 2 else None
    zeros = torch.zeros(b, dtype=torch.int64)
    return Batch(image, second, None, zeros, torch.zeros(b, 3).long(), torch.arange(b), 0)


def measure(
    options: StepBench, contestants: dict[str, Contestant], device: torch.device
) -> dict[str, Timed]:
    """Seconds per step: warm-up (which compiles), then rounds in turn, the best of each."""
    for one in contestants.values():
        seconds_per_step(one.run, options.warmup, device)
    for _ in range(options.rounds):
        for one in contestants.values():
            seconds, waited = seconds_per_step(one.run, options.steps, device)
            one.rounds.append(seconds)
            if seconds < one.best_s:
                one.best_s, one.waited_s = seconds, waited
    return {
        name: Timed(
            one.best_s,
            0.0 if one.stepper is None else optimiser_seconds(one.stepper),
            one.waited_s,
            tuple(one.rounds),
        )
        for name, one in contestants.items()
    }


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
) -> Callable[[], float]:
    """Forward and backward of the module alone, in the engine's precision; waits for no data."""
    parallel = config.parallel
    module.to(ranks.device, choose_precision(parallel.precision, ranks.device))
    for block in transformer_blocks(module):
        if parallel.recompute:
            set_recompute(block)
        if parallel.compile:
            block.compile(dynamic=False)

    def run() -> float:
        for _ in range(parallel.grad_accum):
            module(batch)[0].backward()
        for parameter in module.parameters():
            parameter.grad = None
        return 0.0

    return run


def engine_step(stepper: Stepper) -> Callable[[], float]:
    """One whole step; seconds it stood still for data."""
    return lambda: stepper.step(LR, measure=False).waited


def seconds_per_step(
    run: Callable[[], float], steps: int, device: torch.device
) -> tuple[float, float]:
    """Mean seconds of `steps` calls, the device waited for at both ends, and what they waited."""
    wait_for(device)
    began = time.perf_counter()
    waited = sum(run() for _ in range(steps))
    wait_for(device)
    return (time.perf_counter() - began) / steps, waited / steps


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
