"""Subjects kept out of pretraining, and the pretext's loss on them.

The same crops under the same masks every time: a loader of its own over the held-out subjects,
set back to its first sample, without augmentation that a method does not need.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mim3d.dataio.loader.batch import Batch
from mim3d.dataio.loader.loader import Loader
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.models.config import SimCLRConfig
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.reconstruction import Pictures, first_crops
from mim3d.engine.training.trainer import Hook, Trainer

SEED_OFFSET = 1_000_003
"""Crops of held-out subjects are drawn from a seed of their own."""


class HeldOut:
    """Scores a model on crops of held-out subjects, always the same ones."""

    def __init__(self, config: PretrainConfig, ranks: Ranks, subjects: Sequence[str]) -> None:
        self.ranks = ranks
        micro_batch = config.micro_batch(ranks.world)
        self.batches = max(1, -(-config.data.held_out_crops // (micro_batch * ranks.world)))
        self.crops = self.batches * micro_batch * ranks.world
        contrastive = isinstance(config.method, SimCLRConfig)
        seed = config.seed + SEED_OFFSET
        drawn = config.data.loader_config(config.vit, config.method, micro_batch, seed)
        self.loader = Loader(
            config.data.corpus,
            dataclasses.replace(
                drawn, augment=drawn.augment if contrastive else "none", cache="host"
            ),
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
            loss, metrics = model(batch, share, True)
            parts = {"loss": loss, **{name: value * share for name, value in metrics.items()}}
            for name, value in parts.items():
                total[name] = total.get(name, 0.0) + value.detach().float()
        sums = torch.stack(list(total.values()))
        if self.ranks.world > 1:
            dist.all_reduce(sums)
        scores = {PREFIX + name: value for name, value in zip(total, sums.tolist(), strict=True)}
        return scores | {PREFIX + "crops": float(self.crops)}

    def close(self) -> None:
        """Stop the loader's threads."""
        self.loader.close()


class HeldOutScores(Hook):
    """Scores in the rows of every so many steps (0: of the last), and a picture beside each."""

    def __init__(self, held_out: HeldOut, model: nn.Module, every: int, pictures: Pictures) -> None:
        self.held_out, self.model, self.every, self.pictures = held_out, model, every, pictures

    def due(self, step: int, steps: int) -> bool:
        """Where there is a score there is a row."""
        return step == steps or (self.every > 0 and step % self.every == 0)

    def after_step(self, trainer: Trainer) -> None:
        """The pretext's loss on held-out subjects, where this step is one that scores."""
        if not self.due(trainer.step, trainer.steps):
            return
        with trainer.clock.aside():
            trainer.row |= self.held_out.score(self.model)
        assert self.held_out.picture_batch is not None
        batch = first_crops(self.held_out.picture_batch)
        self.pictures.draw(trainer, f"held-out-{trainer.step:08d}.png", batch)


LAST_SHARE = 0.2
"""Rows of the last fifth of a run decide."""
CLEARLY = 0.95
"""A loss clearly beats another below this share of it."""
PREFIX = "held_out_"
"""Begins the names of what was scored on held-out subjects."""
BASELINES = ("patch_mean", "nearest_patch", "chance")


def judge_pretext(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean loss over the last rows, that of each trivial predictor, and the verdict.

    `learned` is true where the loss is below CLEARLY times the patch mean's (MAE, SimMIM) or
    chance (NT-Xent at ln(2b - 1)); `nearest_patch` is reported, not asked for, because on
    smooth images it can be worse than the mean.
    """
    last = [row for row in rows[-max(1, round(LAST_SHARE * len(rows))) :] if has_loss(row)]
    if not last:
        return {"loss": None, "learned": False}
    verdict: dict[str, Any] = {"loss": mean_of(last, "loss"), "rows": len(last)}
    for name in BASELINES:
        if any(row.get(name) is not None for row in last):
            verdict[name] = mean_of(last, name)
    gate = verdict.get("patch_mean", verdict.get("chance"))
    verdict["floor"] = gate
    verdict["loss_over_floor"] = None if not gate else verdict["loss"] / gate
    verdict["learned"] = bool(gate) and verdict["loss"] < CLEARLY * gate
    if PREFIX + "loss" in rows[-1]:
        verdict["held_out"] = judge_held_out(rows[-1])
    return verdict


def judge_held_out(row: dict[str, Any]) -> dict[str, Any]:
    """The same verdict for subjects that did not train, from one row."""
    verdict = {name: row[PREFIX + name] for name in ("loss", *BASELINES) if PREFIX + name in row}
    gate = verdict.get("patch_mean", verdict.get("chance"))
    verdict["loss_over_floor"] = None if not gate else verdict["loss"] / gate
    verdict["learned"] = bool(gate) and verdict["loss"] < CLEARLY * gate
    return verdict


def has_loss(row: dict[str, Any]) -> bool:
    """Whether a row's loss is a number: one bad step, which changes no weights, makes it none."""
    loss = row.get("loss")
    return loss is not None and math.isfinite(loss)


def mean_of(rows: Sequence[dict[str, Any]], name: str) -> float:
    """Mean of a value over rows that have it; null stands for what was not finite."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values)
