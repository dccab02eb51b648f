"""`mim3d bench step --sweep`: settings to train with on this machine, and what bounds a run.

Three things are timed in interleaved rounds: the engine's step on a batch in memory (compute
alone), the loader with nothing behind it (loader alone), and one fed by the other (together).
Settings are tried one after the other, each with the best of those before it: micro-batches of a
step, then threads with caches, then batches read ahead. Of two settings the costlier wins only
where the rounds resolve that it is faster. The crops of a step stay as they are: fewer or more of
them would train another model.
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from mim3d.bench.noise import compared, spread
from mim3d.bench.step.contestants import (
    Contestant,
    engine_step,
    forever,
    make_stepper,
    open_loader,
    random_batch,
)
from mim3d.bench.step.options import StepBench
from mim3d.bench.step.rounds import measure_rounds
from mim3d.bench.step.settings import (
    PARTS,
    Setting,
    ahead_choices,
    cheapest_best,
    reading_choices,
)
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.loader.loader import Loader
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.errors import ConfigError
from mim3d.engine.pretrain.config import PretrainConfig

CONTENTION = 0.9
"""Of the slower of loader and compute alone: together below it, each slows the other."""
ROUND_S = 0.5
"""Of the loader alone, at least."""


@dataclass(frozen=True)
class Sweep:
    """Crops per second in each round, by what was varied; the choice, and what bounds it."""

    compute: dict[str, list[float]]
    loader: dict[str, list[float]]
    chosen: dict[str, list[float]]
    setting: Setting
    bound: str
    left_out: dict[str, str]


def run_sweep(options: StepBench, config: PretrainConfig, ranks: Ranks, root: Path) -> Sweep:
    """Measure, choose, and say what bounds; ConfigError on more ranks than one."""
    if ranks.world > 1:
        raise ConfigError(
            f"--sweep chooses the settings of one rank, here are {ranks.world}: "
            "start it without torchrun"
        )
    left_out: dict[str, str] = {}
    own = config.data.loader
    setting = Setting(config.parallel.grad_accum, own.threads, own.cache, own.prefetch)

    compute = sweep_compute(options, config, ranks, setting, left_out)
    setting = dataclasses.replace(setting, grad_accum=int(cheapest_best(compute)))
    loading: dict[str, list[float]] = {}
    for choices in (reading_choices(ranks.device), ahead_choices()):
        tried = {name: dataclasses.replace(setting, **change) for name, change in choices.items()}
        rates = sweep_loader(options, config, ranks, root, tried, left_out)
        if not rates:
            raise ConfigError(f"no loader could be opened: {next(iter(left_out.values()))}")
        setting = tried[cheapest_best(rates)]
        loading |= rates
    chosen = time_chosen(options, setting, config, ranks, root)
    return Sweep(compute, loading, chosen, setting, bound_by(**chosen), left_out)


def sweep_compute(
    options: StepBench,
    config: PretrainConfig,
    ranks: Ranks,
    setting: Setting,
    left_out: dict[str, str],
) -> dict[str, list[float]]:
    """Crops per second of compute alone by micro-batches a step; one that does not fit is left."""
    contestants = {}
    for parts in sorted({setting.grad_accum, *PARTS}):
        if config.global_batch % parts:
            continue
        try:
            one = dataclasses.replace(setting, grad_accum=parts).applied(config)
            stepper = make_stepper(one, ranks, one.build(), forever(random_batch(one, ranks)))
            step = engine_step(stepper)
            step()
        except (torch.OutOfMemoryError, ConfigError) as why:
            left_out[f"{parts} micro-batches a step"] = str(why).partition("\n")[0]
            continue
        contestants[str(parts)] = Contestant(step)
    if not contestants:
        raise ConfigError(f"no micro-batch fits: {next(iter(left_out.values()))}")
    crops = dict.fromkeys(contestants, config.global_batch)
    return crops_per_s(options, contestants, crops, ranks.device)


def sweep_loader(
    options: StepBench,
    config: PretrainConfig,
    ranks: Ranks,
    root: Path,
    tried: Mapping[str, Setting],
    left_out: dict[str, str],
) -> dict[str, list[float]]:
    """Crops per second of the loader alone; a way that needs what is not installed is left."""
    with ExitStack() as stack:
        contestants, crops = {}, {}
        for name, setting in tried.items():
            one = setting.applied(config)
            try:
                loader = stack.enter_context(open_loader(root, one, ranks))
            except Mim3dError as why:
                left_out[name] = str(why)
                continue
            contestants[name], steps = loader_alone(options, loader, setting)
            crops[name] = steps * config.global_batch
        return crops_per_s(options, contestants, crops, ranks.device)


def time_chosen(
    options: StepBench, setting: Setting, config: PretrainConfig, ranks: Ranks, root: Path
) -> dict[str, list[float]]:
    """Crops per second of compute alone, the loader alone and both together, in the same rounds."""
    one = setting.applied(config)
    with open_loader(root, one, ranks) as alone, open_loader(root, one, ranks) as fed:
        memory = make_stepper(one, ranks, one.build(), forever(random_batch(one, ranks)))
        stepper = make_stepper(one, ranks, one.build(), fed)
        lone, steps = loader_alone(options, alone, setting)
        contestants = {
            "compute": Contestant(engine_step(memory)),
            "loader": lone,
            "together": Contestant(engine_step(stepper), None, setting.prefetch + 1),
        }
        crops = dict.fromkeys(contestants, config.global_batch)
        crops["loader"] *= steps
        return crops_per_s(options, contestants, crops, ranks.device)


def loader_alone(options: StepBench, loader: Loader, setting: Setting) -> tuple[Contestant, int]:
    """Something that takes the batches of so many steps and does nothing with them.

    So many that a round lasts a good while longer than what was read ahead.
    """

    def take(steps: int) -> float:
        for _ in range(steps * setting.grad_accum):
            next(loader)
        return 0.0

    ahead = setting.prefetch + 1
    take(ahead)
    began = time.perf_counter()
    take(ahead)
    once = (time.perf_counter() - began) / ahead
    steps = max(1, math.ceil(ROUND_S / once / options.steps))
    return Contestant(lambda: take(steps), None, -(-ahead // steps)), steps


def crops_per_s(
    options: StepBench,
    contestants: dict[str, Contestant],
    crops: Mapping[str, int],
    device: torch.device,
) -> dict[str, list[float]]:
    """Crops per second of wall clock in each round; `crops` are those of one call."""
    measure_rounds(options, contestants, device)
    return {name: [crops[name] / s for s in one.wall] for name, one in contestants.items()}


def bound_by(compute: Sequence[float], loader: Sequence[float], together: Sequence[float]) -> str:
    """What to make faster first, in words."""
    slower = [min(a, b) for a, b in zip(compute, loader, strict=True)]
    both, sides = compared(together, slower), compared(loader, compute)
    if both.resolved and both.value < CONTENTION:
        return (
            "both together: they contend for the same cores or bus, and reach "
            f"{both.text()} of what the slower of them does alone"
        )
    if not sides.resolved:
        return f"neither alone: loader over compute is {sides.text()}"
    if sides.value < 1:
        return f"the loader: alone it gives {sides.text()} of the crops that compute takes"
    return f"compute: the loader alone gives {sides.text()} times the crops that it takes"


def text_of(sweep: Sweep, recipe: str) -> str:
    """The sweep for people, ending in the settings it recommends."""
    lines = ["crops per second of wall clock, median (range)"]
    parts = (
        ("compute alone, micro-batches a step", sweep.compute),
        ("loader alone", sweep.loader),
        ("the chosen settings", sweep.chosen),
    )
    for title, rates in parts:
        lines.append(f"{title}:")
        lines += [f"  {name:<24} {spread(rate).text(digits=1)}" for name, rate in rates.items()]
    lines += [f"left out: {name}: {why}" for name, why in sweep.left_out.items()]
    lines += [f"bound by {sweep.bound}", "recommended for this machine:"]
    return "\n".join([*lines, f"  mim3d pretrain {recipe} {' '.join(sweep.setting.words())}"])


def figures_of_sweep(sweep: Sweep) -> dict[str, object]:
    """For --json."""
    return {
        "crops_per_s": {
            "compute": sweep.compute,
            "loader": sweep.loader,
            "chosen": sweep.chosen,
        },
        "recommended": dataclasses.asdict(sweep.setting),
        "options": sweep.setting.words(),
        "bound_by": sweep.bound,
        "left_out": sweep.left_out,
    }
