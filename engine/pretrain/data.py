"""Which crops a run draws, and of whom: who trains, and who is held out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from mim3d.dataio.finite import refuse_not_finite
from mim3d.dataio.loader.config import LoaderConfig
from mim3d.dataio.reader.corpus import opened_corpus
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import MaskConfig, MethodConfig, ViTConfig

DECIDED_ELSEWHERE = {
    "crop_size": "set vit.crop_size",
    "micro_batch": "set global_batch and parallel.grad_accum",
    "views": "the method decides",
    "seed": "set seed",
    "label": "pretraining reads none",
    "ignore": "set method.ignore",
    "foreground_fraction": "pretraining reads no label; data.weighting foreground draws from boxes",
    "dtype": "pretraining reads float32, and parallel.precision decides what it computes in",
}
"""Fields of the loader that a pretraining run sets itself, and what to do about each."""


@dataclass(frozen=True)
class DataConfig:
    """Which crops are drawn, and how they arrive."""

    corpus: str = ""
    """Folder or address (s3://BUCKET/KEY) of the corpus that `mim3d convert` wrote."""
    subjects: tuple[str, ...] | None = None
    """Train on these subjects only; all where not given."""
    held_out: float = 0.0
    """Share of the subjects kept out of training, on which the pretext is scored."""
    held_out_subjects: tuple[str, ...] = ()
    """Or these subjects, by name."""
    held_out_crops: int = 64
    """Crops of held-out subjects that a score is the mean of, always the same: whole batches of
    the run, so as many or the next more (a row's held_out_crops)."""
    loader: Annotated[LoaderConfig, tyro.conf.arg(name="")] = field(default_factory=LoaderConfig)
    """How crops are drawn and read; what DECIDED_ELSEWHERE names is not told here."""

    def __post_init__(self) -> None:
        """A share below one, told once."""
        refuse_not_finite(self, "data", ConfigError)
        if not 0.0 <= self.held_out < 1.0 or self.held_out_crops < 1:
            raise ConfigError(
                f"data.held_out {self.held_out} must lie in [0, 1) and data.held_out_crops "
                f"{self.held_out_crops} must be at least 1"
            )
        both = set(self.subjects or ()) & set(self.held_out_subjects)
        if both or (self.held_out and self.held_out_subjects):
            raise ConfigError(
                f"data.held_out {self.held_out} and data.held_out_subjects exclude one another, "
                f"and data.subjects: {sorted(both)[:3]} stand in both lists"
            )
        default = LoaderConfig()
        for name, where in DECIDED_ELSEWHERE.items():
            if (value := getattr(self.loader, name)) != getattr(default, name):
                raise ConfigError(f"data.loader.{name} {value!r} does not count: {where}")

    def loader_config(
        self, vit: ViTConfig, method: MethodConfig, micro_batch: int, seed: int
    ) -> LoaderConfig:
        """The loader's configuration for one rank."""
        return replace(
            self.loader,
            crop_size=vit.crop_size,
            micro_batch=micro_batch,
            views=method.views,
            seed=seed,
            ignore=method.ignore if isinstance(method, MaskConfig) else (),
        )


@dataclass(frozen=True)
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
