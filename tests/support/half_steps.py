"""Steps of a tiny MAE in a half type, for tests; run as a script, of two ranks that hold it whole.

python half_steps.py, under RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
"""

import dataclasses
from typing import Any, Literal

import torch

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.arithmetic.masters import whole_state
from mim3d.engine.distributed.config import ParallelConfig
from mim3d.engine.distributed.process_group import Ranks, process_ranks
from mim3d.engine.models.config import MAEConfig, MaskConfig, ViTConfig
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.training.sharding import ShardedObjective, shard_objective
from mim3d.engine.training.train_step import Stepper


def config_of(
    one_rank: Literal["whole", "sharded"], blocks: tuple[int, int] = (2, 1), **changes: Any
) -> PretrainConfig:
    small = ViTConfig((16, 16, 16), (8, 8, 8), width=24, depth=blocks[0], heads=2)
    vit = changes.pop("vit", small)
    plain = MAEConfig(loss="l2", decoder_width=24, decoder_depth=blocks[1], decoder_heads=2)
    method = changes.pop("method", plain)
    parallel = ParallelConfig(precision="bf16", min_block_parameters=1, one_rank=one_rank)
    parallel = dataclasses.replace(parallel, **changes.pop("parallel", {}))
    return PretrainConfig(method, vit, parallel=parallel, global_batch=4, **changes)


def batch_of(config: PretrainConfig, seed: int, b: int = 4) -> Batch:
    image = torch.randn(b, 1, *config.vit.crop_size, generator=torch.Generator().manual_seed(seed))
    zeros = torch.zeros(b, dtype=torch.int64)
    ignores = isinstance(config.method, MaskConfig) and config.method.ignore
    return Batch(
        *(image, image.flip(-1), None, zeros, torch.zeros(b, 3).long()),
        *(seed * b + torch.arange(b), 0, (image > 0.5 * seed - 1).byte() if ignores else None),
    )


def trained(config: PretrainConfig, ranks: Ranks) -> tuple[Stepper, ShardedObjective]:
    part = shard_objective(config.build(), config.optim, config.parallel, ranks)
    accum = config.parallel.grad_accum
    share, parts = config.micro_batch(ranks.world), ranks.world
    batches = (batch_of(config, parts * i + ranks.rank, share) for i in range(1000))
    return Stepper(part.module, part.optimiser, batches, ranks, accum), part


def course(stepper: Stepper, steps: int) -> list[float]:
    """Losses and gradient norms, to the last digit."""
    found = []
    for i in range(steps):
        figures = stepper.step(3e-3 * (i + 1), measure=False)
        found += [*map(float, figures.losses), float(figures.grad_norm)]
    return found


def main() -> None:
    """Both paths over the ranks; the same losses, and gradients that were summed."""
    torch.set_num_threads(1)
    with process_ranks(240.0) as ranks:
        found = []
        for how in ("sharded", "whole"):
            parallel = {"replicate": ranks.world, "grad_accum": 2}
            stepper, part = trained(config_of(how, parallel=parallel), ranks)
            assert (part.optimiser.masters is not None) == (how == "whole")
            found.append((course(stepper, 3), whole_state(part.module)))
        (losses, weights), (theirs, their_weights) = found
        assert losses == theirs, (losses, theirs)
        assert all(torch.equal(weights[name], their_weights[name]) for name in weights)
        print(f"rank {ranks.rank} of {ranks.world}: equal")


if __name__ == "__main__":
    main()
