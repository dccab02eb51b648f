"""Subjects kept out of pretraining, and the pretext's loss on them.

The same crops under the same masks every time: a loader of its own over the held-out subjects,
set back to its first sample, without augmentation that a method does not need.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mim3d.dataio.batch import Batch
from mim3d.dataio.loader import Loader
from mim3d.dataio.open_corpus import opened_corpus
from mim3d.engine.config import DataConfig, PretrainConfig
from mim3d.engine.errors import ConfigError
from mim3d.engine.pretext import PREFIX
from mim3d.engine.process_group import Ranks
from mim3d.engine.simclr import SimCLRConfig

SEED_OFFSET = 1_000_003
"""Crops of held-out subjects are drawn from a seed of their own."""


@dataclasses.dataclass(frozen=True)
class Subjects:
    """Who trains (None: all) and who is held out."""

    train: tuple[str, ...] | None
    held_out: tuple[str, ...]


def choose_subjects(data: DataConfig, seed: int) -> Subjects:
    """Deal the subjects of the corpus by `data.held_out` or `data.held_out_subjects`."""
    if not data.held_out and not data.held_out_subjects:
        return Subjects(data.subjects, ())
    with opened_corpus(data.corpus) as (corpus, _):
        subjects = corpus.table.subjects
        present = {subjects[i] for i in range(len(subjects))}
    strangers = sorted(set(data.subjects or ()) - present)
    if strangers:
        raise ConfigError(
            f"data.subjects {strangers[:3]} are not in {data.corpus}, whose subjects are "
            f"{sorted(present)[:3]} and so on"
        )
    if data.held_out_subjects:
        held = set(data.held_out_subjects)
        if held - present:
            raise ConfigError(
                f"data.held_out_subjects {sorted(held - present)[:3]} are not in {data.corpus}, "
                f"whose subjects are {sorted(present)[:3]} and so on"
            )
        allowed = present if data.subjects is None else set(data.subjects)
    else:
        allowed = present if data.subjects is None else present & set(data.subjects)
        held = set(share_of(sorted(allowed), data.held_out, seed))
    train = allowed - held
    if not train or not held:
        raise ConfigError(
            f"data.held_out {data.held_out:g} of {len(allowed)} subjects leaves {len(train)} to "
            f"train and {len(held)} to score: both need one"
        )
    return Subjects(tuple(sorted(train)), tuple(sorted(held)))


def share_of(subjects: Sequence[str], share: float, seed: int) -> list[str]:
    """A share of the subjects, at least one, in an order that the seed decides."""
    order = sorted(subjects, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    return order[: max(1, round(share * len(order)))]


class HeldOut:
    """Scores a model on crops of held-out subjects, always the same ones."""

    def __init__(self, config: PretrainConfig, ranks: Ranks, subjects: Sequence[str]) -> None:
        self.ranks = ranks
        micro_batch = config.micro_batch(ranks.world)
        self.batches = max(1, -(-config.data.held_out_crops // (micro_batch * ranks.world)))
        self.crops = self.batches * micro_batch * ranks.world
        data = config.data
        if not isinstance(config.method, SimCLRConfig):
            data = dataclasses.replace(data, augment="none")
        drawn = data.loader_config(config.vit, config.method, micro_batch, config.seed)
        self.loader = Loader(
            data.corpus,
            dataclasses.replace(drawn, seed=config.seed + SEED_OFFSET, cache="host"),
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
