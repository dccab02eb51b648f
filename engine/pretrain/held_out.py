"""Subjects kept out of pretraining, and the pretext's loss on them.

The same crops under the same masks every time: a loader of its own over the held-out subjects,
set back to its first sample, without augmentation that a method does not need.
"""

import dataclasses
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mim3d.dataio.loader.batch import Batch
from mim3d.dataio.loader.loader import Loader
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.reconstruction import Pictures, first_crops
from mim3d.engine.pretrain.verdict import PREFIX
from mim3d.engine.training.trainer import Hook, Trainer

SEED_OFFSET = 1_000_003
"""Crops of held-out subjects are drawn from a seed of their own."""
COUNTED = "counted"


class HeldOut:
    """Scores a model on crops of held-out subjects, always the same ones."""

    def __init__(self, config: PretrainConfig, ranks: Ranks, subjects: Sequence[str]) -> None:
        self.ranks = ranks
        micro_batch = config.micro_batch(ranks.world)
        self.batches = max(1, -(-config.data.held_out_crops // (micro_batch * ranks.world)))
        self.crops = self.batches * micro_batch * ranks.world
        needs_views = config.method.views > 1
        seed = config.seed + SEED_OFFSET
        drawn = config.data.loader_config(config.vit, config.method, micro_batch, seed)
        if not needs_views:
            drawn = dataclasses.replace(drawn, augment="none", artefacts=())
        self.loader = Loader(
            config.data.corpus,
            dataclasses.replace(drawn, cache="auto", shares=()),
            rank=ranks.rank,
            world=ranks.world,
            device=ranks.device,
            subjects=subjects,
        )
        self._first = self.loader.state_dict()
        self.picture_batch: Batch | None = None

    @torch.no_grad()
    def score(self, model: nn.Module) -> dict[str, float]:
        """Loss and trivial losses, `held_out_*`, over all ranks; every rank takes part."""
        self.loader.load_state_dict(self._first)
        share = 1.0 / (self.ranks.world * self.batches)
        total: dict[str, Tensor] = {}
        for i_batch in range(self.batches):
            batch = next(self.loader)
            if i_batch == 0:
                self.picture_batch = batch
            loss, metrics, counted = model(batch, share, True)
            parts = {"loss": loss, **{name: value * share for name, value in metrics.items()}}
            parts |= {} if counted is None else {COUNTED: counted}
            for name, value in parts.items():
                total[name] = total.get(name, 0.0) + value.detach().float()
        sums = torch.stack(list(total.values()))
        if self.ranks.world > 1:
            dist.all_reduce(sums)
        if COUNTED in total:  # the last of them
            sums[:-1] /= sums[-1]
        scores = {PREFIX + name: value for name, value in zip(total, sums.tolist(), strict=True)}
        return scores | {PREFIX + "crops": float(self.crops)}

    def close(self) -> None:
        """Stop the loader's threads."""
        self.loader.close()


class HeldOutScores(Hook):
    """Scores in the rows of every so many steps (0: of the last), and a picture beside each."""

    doing = "scoring held-out volumes"

    def __init__(self, held_out: HeldOut, model: nn.Module, every: int, pictures: Pictures) -> None:
        self.held_out, self.model, self.every, self.pictures = held_out, model, every, pictures

    def due(self, step: int, steps: int) -> bool:
        """Where there is a score there is a row."""
        return step == steps or (self.every > 0 and step % self.every == 0)

    def after_step(self, trainer: Trainer) -> None:
        """The pretext's loss on held-out subjects, where this step is one that scores."""
        if not self.due(trainer.step, trainer.steps) and not trainer.finished:
            return
        with trainer.clock.paused():
            trainer.row |= self.held_out.score(self.model)
        assert self.held_out.picture_batch is not None
        batch = first_crops(self.held_out.picture_batch)
        self.pictures.draw(trainer, f"held-out-{trainer.step:08d}.png", batch)
