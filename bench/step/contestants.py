"""What is stepped: the bare model, the engine's step from memory and from the loader, its peers."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from mim3d.bench.corpora import bench_corpus, many_volumes
from mim3d.bench.step.options import LR, StepBench
from mim3d.bench.step.peers import PEERS, EagerMAE, PeerMAE
from mim3d.bench.step.plain import plain_step
from mim3d.dataio.loader.batch import Batch
from mim3d.dataio.loader.loader import Loader
from mim3d.engine.arithmetic.blocks import transformer_blocks
from mim3d.engine.arithmetic.precision import choose_precision
from mim3d.engine.arithmetic.recompute import set_recompute
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.models.config import MAEConfig
from mim3d.engine.models.objective import Objective
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.training.sharding import shard_objective
from mim3d.engine.training.train_step import Stepper


@dataclass
class Contestant:
    """Something that can be stepped; `run` takes a step and says what it waited for data.

    `lead` steps are taken before a round: what a loader has read ahead is then as much at its
    beginning as at its end.
    """

    run: Callable[[], float]
    stepper: Stepper | None = None
    lead: int = 0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)


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
        for name, kind in PEERS.items():
            steppers[name] = same(peer(kind, config), forever(batch))
    found = {"model": Contestant(bare_step(config, ranks, config.build(), batch))}
    for name, stepper in steppers.items():
        lead = loader.config.prefetch + 1 if loader is not None and name == "loader" else 0
        found[name] = Contestant(engine_step(stepper), stepper, lead)
    on_gpu = ranks.device.type == "cuda"
    if options.peers and (on_gpu if options.compiled is None else options.compiled):
        module, dtype = (
            peer(EagerMAE, config).to(ranks.device),
            choose_precision(config.parallel.precision, ranks.device),
        )
        step = plain_step(module, batch, config.optim, dtype, config.parallel.grad_accum)
        found["plain, compiled"] = Contestant(step)
    return found


def peer(kind: type[PeerMAE], config: PretrainConfig) -> PeerMAE:
    """A yardstick with the same weights."""
    assert isinstance(config.method, MAEConfig)
    module = kind(config.method, config.vit, config.seed)
    module.load_state_dict(config.build().state_dict())
    return module


def random_batch(config: PretrainConfig, ranks: Ranks) -> Batch:
    """Normalised noise of the shape and dtype that the loader would hand over."""
    b, vit = config.micro_batch(ranks.world), config.vit
    settings = config.data.loader_config(vit, config.method, b, config.seed)
    crops = torch.randn(b, vit.channels, *vit.crop_size, device=ranks.device)
    image = crops.to(getattr(torch, settings.dtype))
    second = image.flip(-1).contiguous() if settings.views == 2 else None
    zeros = torch.zeros(b, dtype=torch.int64)
    return Batch(image, second, None, zeros, torch.zeros(b, 3).long(), torch.arange(b), 0)


def make_stepper(
    config: PretrainConfig, ranks: Ranks, module: Objective, batches: Iterator[Batch]
) -> Stepper:
    """The engine's step around a module."""
    part = shard_objective(module.to(ranks.device), config.optim, config.parallel, ranks)
    return Stepper(part.module, part.optimiser, batches, ranks, config.parallel.grad_accum)


def bare_step(
    config: PretrainConfig, ranks: Ranks, module: nn.Module, batch: Batch
) -> Callable[[], float]:
    """Forward and backward of the module alone, in the engine's precision; waits for no data."""
    parallel = config.parallel
    module.to(ranks.device, choose_precision(parallel.precision, ranks.device))
    for block in transformer_blocks(module):
        if parallel.recompute != "none":
            set_recompute(block, parallel.recompute)
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


def forever(batch: Batch) -> Iterator[Batch]:
    """The same batch, again and again."""
    while True:
        yield batch


def kept(batch: Batch) -> Batch:
    """A copy that outlives the loader's buffers."""
    second = None if batch.second_view is None else batch.second_view.clone()
    return dataclasses.replace(batch, image=batch.image.clone(), second_view=second)


def corpus_to_read(options: StepBench, config: PretrainConfig, folder: Path) -> Path:
    """The corpus given, or a generated one in `folder`."""
    if options.corpus is not None:
        return options.corpus
    volumes = many_volumes(volume_shape(config.vit.crop_size))
    return bench_corpus(folder / "corpus.zarr", volumes, workers=min(8, os.cpu_count() or 1))


def open_loader(root: Path, config: PretrainConfig, ranks: Ranks) -> Loader:
    """The real loader over a corpus."""
    micro_batch = config.micro_batch(ranks.world)
    return Loader(
        root,
        config.data.loader_config(config.vit, config.method, micro_batch, config.seed),
        rank=ranks.rank,
        world=ranks.world,
        device=ranks.device,
    )


def volume_shape(crop: tuple[int, int, int]) -> tuple[int, int, int]:
    """Volumes as large beside a crop as scans are: 192 x 256 x 256 for crops of 96^3."""
    z, y, x = crop
    return 2 * z, 8 * y // 3, 8 * x // 3
