"""The configuration of a pretraining run: typed, checked, and stored with the run as JSON."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from mim3d.dataio.finite import refuse_outside
from mim3d.engine.distributed.config import ParallelConfig
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import (
    MAEConfig,
    MethodConfig,
    SwinConfig,
    ViTConfig,
    method_name,
)
from mim3d.engine.models.registry import METHODS, EncoderShape, way_of
from mim3d.engine.models.resenc.config import Backbone, ResEncConfig
from mim3d.engine.pretrain.data import DECIDED_ELSEWHERE, DataConfig
from mim3d.engine.probe.config import ProbeConfig
from mim3d.engine.runs.config import CheckpointConfig, check_channel_map
from mim3d.engine.training.config import (
    DivergenceConfig,
    LogConfig,
    OptimConfig,
    ScheduleConfig,
    optim_identity,
    schedule_identity,
)

if TYPE_CHECKING:
    from mim3d.engine.models.objective import Objective

SEED_MARGIN = 1 << 32
"""Seeds derived from a run's own lie above it."""


@dataclass(frozen=True)
class PretrainLog(LogConfig):
    """What is measured, and how often the pretext is drawn and scored."""

    picture_every: int = 0
    """Steps between reconstruction pictures; 0 draws at the end only."""
    held_out_every: int = 0
    """Steps between scores on held-out subjects; 0 scores at the end only."""

    def __post_init__(self) -> None:
        """Intervals are not negative."""
        super().__post_init__()
        if min(self.picture_every, self.held_out_every) < 0:
            raise ConfigError(
                f"log.picture_every {self.picture_every} and log.held_out_every "
                f"{self.held_out_every} must not be negative; 0 leaves them to the end"
            )


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run, whole."""

    method: MethodConfig = field(default_factory=MAEConfig)
    vit: ViTConfig = field(default_factory=ViTConfig)
    swin: SwinConfig | None = None
    """A Swin encoder in the ViT's place (SimMIM and SimCLR); crop and channels stay vit's."""
    resenc: ResEncConfig | None = None
    """A residual-encoder U-Net in its place (MAE and SimCLR); crop and channels stay vit's, and
    vit.patch_size is that of the blocks that are hidden."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: PretrainLog = field(default_factory=PretrainLog)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    divergence: Annotated[DivergenceConfig, tyro.conf.arg(name="")] = field(
        default_factory=DivergenceConfig
    )
    global_batch: int = 64
    """Crops of a step over all ranks and micro-batches."""
    max_micro_batch: int = 0
    """Crops of a micro-batch at most: a rank whose share of a step is larger accumulates over as
    few more micro-batches as it parts into, so that few devices do what many do. 0: no limit."""
    steps: int = 1000
    """Optimiser steps."""
    seed: int = 0
    """Of initial weights, crops, augmentation and masks."""
    init: str = ""
    """Weights to start from: a run, or a file of ours, MONAI's or timm's names; empty: none."""
    init_axes: Literal["auto", "xyz", "zyx"] = "auto"
    """Order of space in those weights; auto: a card's, else MONAI's xyz, timm's and ours zyx."""
    init_channels: str = "auto"
    """What each channel's part of the patch embedding is: auto (the weights' own where they are as
    many, else the mean of theirs, so that equal channels give what they gave), or for each channel
    the number of one of theirs (from 0), or - for their mean, such as 0,1,-."""
    accept_corpus: bool = False
    """Go on though the corpus is not what it was at the last checkpoint; kept in the history."""

    def __post_init__(self) -> None:
        """Check what no part can see alone."""
        if min(self.global_batch, self.steps) < 1:
            raise ConfigError(
                f"global_batch {self.global_batch} and steps {self.steps} must be at least 1"
            )
        refuse_outside(self, "max_micro_batch", 0, kind=ConfigError)
        if self.max_micro_batch and self.method.contrasts:
            raise ConfigError(
                f"max_micro_batch {self.max_micro_batch} would part the crops of a step, and "
                f"negatives of {method_name(self.method)} come from one micro-batch: set it to 0, "
                "or parallel.grad_accum where fewer negatives are meant"
            )
        if not 0 <= self.seed < 2**63 - SEED_MARGIN:
            raise ConfigError(f"seed {self.seed} must lie in [0, 2^63 - {SEED_MARGIN})")
        if self.init_axes != "auto" and not self.init:
            raise ConfigError(f"init_axes {self.init_axes} says nothing without --init")
        check_channel_map(self.init_channels)
        if self.init_channels != "auto" and not self.init:
            raise ConfigError(f"init_channels {self.init_channels} says nothing without --init")
        if self.log.profile_step > self.steps:
            raise ConfigError(
                f"log.profile_step {self.log.profile_step} lies past the last of {self.steps} steps"
            )
        if self.method.contrasts and self.global_batch // self.parallel.grad_accum < 2:
            raise ConfigError(
                f"global_batch {self.global_batch} in parallel.grad_accum "
                f"{self.parallel.grad_accum} parts leaves {method_name(self.method)} no negatives: "
                "two crops at least"
            )
        if self.resenc is not None:
            if self.swin is not None:
                raise ConfigError("swin and resenc are two encoders: a run has one")
            self.resenc.refuse_crop(self.vit)
        way_of(self.method, self.encoder)

    @property
    def encoder(self) -> EncoderShape:
        """The encoder that is trained."""
        return EncoderShape(self.vit, self.backbone)

    def build(self) -> "Objective":
        """The pretext module with its initial weights, the same on any rank."""
        from mim3d.engine.models.build import build_method  # loads torch

        return build_method(self.method, self.vit, self.backbone, self.seed)

    @property
    def backbone(self) -> Backbone | None:
        """What stands in the ViT's place, if anything does."""
        return self.swin or self.resenc

    def micro_batch(self, world: int) -> int:
        """Crops of one rank's micro-batch."""
        return self.for_ranks(world).parallel.micro_batch(self.global_batch, world)

    def for_ranks(self, world: int) -> "PretrainConfig":
        """The same with as many micro-batches as so many ranks need under `max_micro_batch`."""
        accum, most = self.parallel.grad_accum, self.max_micro_batch
        share, rest = divmod(self.global_batch, world * accum)
        if not most or rest or share <= most:
            return self
        parts = next(n for n in range(2, share + 1) if share % n == 0 and share // n <= most)
        parallel = dataclasses.replace(self.parallel, grad_accum=accum * parts)
        return dataclasses.replace(self, parallel=parallel)


def config_dict(config: object) -> dict[str, Any]:
    """Plain nested values of a configuration, with the method's name.

    The loader's stand under `data`, as their options do and as every version has stored them.
    """
    plain = json.loads(json.dumps(dataclasses.asdict(config), default=str))  # pyright: ignore
    if isinstance(config, PretrainConfig):
        plain["method"]["name"] = method_name(config.method)
        plain |= config.encoder.own_name
        loader = plain["data"].pop("loader")
        plain["data"] |= {k: v for k, v in loader.items() if k not in DECIDED_ELSEWHERE}
    return plain


NOT_IDENTITY = (
    *("checkpoint", "log", "probe", "parallel", "divergence", "dealt", "environment"),
    "max_micro_batch",
    *("init", "init_axes", "init_channels", "accept_corpus", "start", "history", "plugins"),
)
"""Parts that a resumed run may change: they do not decide what is learned (but for the gradient
accumulation of methods that contrast, see `identity_of`)."""
HOW_DATA_ARRIVE = (
    *("corpus", "cache", "cache_bytes", "cache_policy", "threads", "prefetch", "held_out_crops"),
    *("remote_requests", "remote_bytes", "device_keeps"),
)
"""Fields of `data` that a resumed run may change."""
OFF: dict[str, Any] = {
    "held_out": 0.0,
    "held_out_subjects": [],
    "nodes": 1,
    "node_rotation": 0.0,
    "shares": [],
    "where": [],
    "artefacts": [],
}
"""Fields of `data` that came later, with the value that stands for their absence."""
LATER_METHOD: dict[str, Any] = {"decode_fraction": 1.0, "ignore": []}
"""Fields of `method` that came later, with the value that stands for their absence."""
LATER_ENCODERS = ("resenc",)
"""Encoders in the ViT's place that came later; runs without them stay what they were."""


def config_identity(config: PretrainConfig) -> dict[str, Any]:
    """What must be equal for a run to be resumed; where the corpus lies does not matter."""
    return identity_of(config_dict(config))


def identity_of(stored: dict[str, Any]) -> dict[str, Any]:
    """The same of a configuration's plain values, as `config_dict` makes them."""
    plain = {key: value for key, value in stored.items() if key not in NOT_IDENTITY}
    plain["data"] = dict(plain["data"])
    plain["schedule"] = schedule_identity(plain["schedule"])
    plain["optim"] = optim_identity(plain["optim"])
    method = plain["method"]
    plain["method"] = {k: v for k, v in method.items() if LATER_METHOD.get(k, ...) != v}
    for key in HOW_DATA_ARRIVE:
        plain["data"].pop(key, None)
    for key, off in OFF.items():
        if plain["data"].get(key, off) == off:  # runs from before these existed stay what they were
            plain["data"].pop(key, None)
    for key in LATER_ENCODERS:
        if plain.get(key) is None:
            plain.pop(key, None)
    accum = stored.get("parallel", {}).get("grad_accum", 1)
    method = METHODS.get(str(plain["method"].get("name")))
    if method is not None and method.config.contrasts and accum > 1:
        # Negatives come from one micro-batch of all ranks: another split is another task.
        plain["parallel"] = {"grad_accum": accum}
    return plain
