"""The configuration of a fine-tuning run, and its named recipes."""

import dataclasses
import json
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import tyro

from mim3d.dataio.finite import (
    MOST_SEED,
    MOST_SIZE,
    MOST_WORKERS,
    refuse_not_finite,
    refuse_outside,
)
from mim3d.dataio.transforms.artefacts import parsed_artefacts
from mim3d.engine.distributed.config import DeviceKind, ParallelConfig
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.splits import SplitConfig
from mim3d.engine.models.config import IDLE_WITH_SWIN, SwinConfig, ViTConfig
from mim3d.engine.models.primus.config import PrimusConfig, primus
from mim3d.engine.models.registry import EncoderShape
from mim3d.engine.models.resenc.config import (
    IDLE_WITH_RESENC,
    RESENC_L,
    RESENC_S,
    RESENC_TINY,
    ResEncConfig,
)
from mim3d.engine.runs.config import check_channel_map
from mim3d.engine.training.config import (
    DivergenceConfig,
    LogConfig,
    ScheduleConfig,
    schedule_identity,
)

Head = Literal["unetr", "tokens", "patch", "linear", "classify", "regress"]
WHOLE_VOLUME = ("classify", "regress")
"""Heads that learn something of a volume, not of its voxels; their targets are a table's."""


@dataclass(frozen=True)
class LabelledData:
    """Which labelled volumes, how their subjects are dealt, and how intensities are scaled."""

    corpus: Annotated[str, tyro.conf.arg(aliases=("--corpus",))] = ""
    """Folder or address (s3://BUCKET/KEY) of the corpus that `mim3d convert` wrote."""
    label: str = "seg"
    """Label of the corpus to learn (segmentation)."""
    targets: str = ""
    """CSV with columns subject,target: classes (head classify) or numbers (head regress)."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Subjects held out of training; in a study they never pretrain either."""
    normalise: str = "zscore"
    """zscore: mean and deviation of the foreground, voxels above Otsu's threshold; clip-zscore: of
    the foreground clipped to its 0.5 to 99.5 percentiles; percentile: those of all voxels to -1..1;
    window:LOW:HIGH: real values to -1..1; none. Each channel by itself."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Supervised training of an encoder with a fresh head, from pretrained weights or scratch."""

    data: LabelledData = field(default_factory=LabelledData)
    init: str = ""
    """Weights to start the encoder from: a run, or a file of ours, MONAI's or timm's names; empty
    starts from scratch."""
    head: Head = "unetr"
    """unetr; tokens (no skip from the raw image); patch (Primus's own: transposed convolutions from
    the last tokens alone); linear (one layer per token); classify; or regress (a number of each
    subject, such as its age)."""
    init_axes: Literal["auto", "xyz", "zyx"] = "auto"
    """Order of space in those weights; auto: a card's, else MONAI's xyz, timm's and ours zyx."""
    init_channels: str = "auto"
    """What each channel's part of the patch embedding is: auto (the weights' own where they are as
    many, else the mean of theirs, so that equal channels give what they gave), or for each channel
    the number of one of theirs (from 0), or - for their mean, such as 0,1,-."""
    vit: ViTConfig = field(default_factory=ViTConfig)
    """The encoder. On the command line that of --init, but for what is told: another crop, patch or
    other channels have its weights fitted; the rest must be the same."""
    swin: SwinConfig | None = None
    """MONAI's Swin in the vit's place, under SwinUNETR's decoder; vit keeps the crop."""
    resenc: ResEncConfig | None = None
    """A residual-encoder U-Net in the vit's place, whole (head unetr) or its encoder alone (those
    of whole volumes); vit keeps the crop."""
    feature_size: int = 16
    """Channels of the decoder at full resolution; SwinUNETR's are swin.feature_size."""
    freeze: bool = False
    """Train the head only."""
    head_steps: int = 0
    """Steps in which the head trains alone, its rate rising; then the encoder joins, and the rate
    rises again over schedule.warmup_steps (nnU-Net's sawtooth, with schedule.kind poly)."""
    layer_decay: float = 1.0
    """Rate of an encoder's layer over that of the next: below 1 the first layers change least."""
    drop_path: float = 0.0
    """Chance that a sample skips the branches of a ViT's last block while training; earlier blocks
    less."""
    encoder_lr_scale: float = 1.0
    """The encoder's rate over the head's: below 1 keeps more of what pretraining learned."""
    labels: float = 1.0
    """Labelled subjects used: a share up to 1, or a number of them."""
    train: tuple[str, ...] = ()
    """Subjects to train on, in the place of those that data.split deals; name validation too."""
    validation: tuple[str, ...] = ()
    """Subjects whose score makes the curve."""
    test: tuple[str, ...] = ()
    """Subjects scored once, at the end."""
    steps: int = 1000
    """Optimiser steps."""
    global_batch: int = 4
    """Crops of a step over all ranks and micro-batches."""
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(lr=3e-4, kind="constant", warmup_steps=20)
    )
    """Warm-up, then constant: any end of a schedule would favour whoever is late."""
    weight_decay: float = 0.01
    """AdamW's decoupled decay."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    eval_every: int = 50
    """Steps between evaluations, the same for every arm."""
    overlap: float = 0.25
    """Overlap of neighbouring windows in sliding-window inference."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class's weight in the loss is inverse to its share of the training volumes (head
    classify)."""
    foreground_fraction: float = 0.5
    """Share of training crops centred on a labelled voxel."""
    augment: str = "segmentation"
    """Of training crops: none, segmentation, upright, spatial-segmentation, spatial-upright, or a
    plugin's. upright is segmentation without flips. Both turn and zoom within the crop, whose
    border they repeat; spatial- reads what lies beyond it, turns in millimetres, by more."""
    artefacts: tuple[str, ...] = ()
    """NAME=CHANCE of MRI artefacts of training crops: bias-field, ghosting, gibbs, low-resolution,
    gamma."""
    seed: int = 0
    """Of the head's weights, the scratch encoder's weights, and the order of crops."""
    threads: int = 1
    """Reading threads of the loader."""
    device: DeviceKind = "auto"
    """auto, cpu or cuda."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log: LogConfig = field(default_factory=lambda: LogConfig(tensorboard=False))
    divergence: Annotated[DivergenceConfig, tyro.conf.arg(name="")] = field(
        default_factory=DivergenceConfig
    )

    def __post_init__(self) -> None:
        refuse_not_finite(self, kind=ConfigError)
        refuse_outside(self, "labels", above=0, kind=ConfigError)
        refuse_outside(self, "foreground_fraction", 0, 1, kind=ConfigError)
        refuse_outside(self, "seed", 0, MOST_SEED, kind=ConfigError)
        refuse_outside(self, "feature_size", most=MOST_SIZE, kind=ConfigError)
        refuse_outside(self, "threads", 1, MOST_WORKERS, kind=ConfigError)
        if min(self.steps, self.global_batch, self.eval_every, self.feature_size) < 1:
            raise ConfigError(
                f"steps {self.steps}, global_batch {self.global_batch}, eval_every "
                f"{self.eval_every} and feature_size {self.feature_size} must be at least 1"
            )
        if bool(self.train) != bool(self.validation):
            raise ConfigError("name both --train and --validation subjects, or neither")
        if self.encoder_lr_scale <= 0.0:
            raise ConfigError(
                f"encoder_lr_scale {self.encoder_lr_scale} must be positive; freeze trains the "
                "head only"
            )
        self._check_transfer()
        parsed_artefacts(self.artefacts)
        if not (self.weight_decay >= 0.0 and self.clip_norm >= 0.0):
            # A negative norm would turn the gradient round.
            raise ConfigError(
                f"weight_decay {self.weight_decay} and clip_norm {self.clip_norm} must not be "
                "negative; 0 turns them off"
            )
        if self.log.profile_step > self.steps:
            raise ConfigError(
                f"log.profile_step {self.log.profile_step} lies past the last of {self.steps} steps"
            )
        if not 0.0 <= self.overlap < 1.0:
            raise ConfigError(f"overlap {self.overlap} must be in [0, 1)")
        if self.resenc is not None:
            self.resenc.refuse_crop(self.vit)
            if self.swin is not None or self.head in {"tokens", "patch", "linear"}:
                raise ConfigError(
                    f"head {self.head} with swin {self.swin}: a U-Net has its own decoder, with "
                    "head unetr, and stands alone"
                )
        if self.swin is not None and self.head in {"linear", "patch"}:
            raise ConfigError(
                f"head {self.head} reads one token per patch, which Swin has not: take head unetr "
                "(SwinUNETR) or tokens (SwinUNETR without the skip from the raw image)"
            )
        if self.head in WHOLE_VOLUME and not self.data.targets:
            raise ConfigError(
                f"head {self.head} needs --data.targets FILE.csv (columns subject,target)"
            )
        if self.class_weights != "none" and self.head != "classify":
            raise ConfigError(
                f"class_weights {self.class_weights} does not count with head {self.head}: set "
                "--head classify, or leave it out"
            )

    def _check_transfer(self) -> None:
        """Refuse rates of layers and steps of the head that cannot be."""
        check_channel_map(self.init_channels)
        if not self.init and (self.init_channels, self.init_axes) != ("auto", "auto"):
            raise ConfigError(
                f"init_channels {self.init_channels} and init_axes {self.init_axes} say nothing "
                "without --init"
            )
        if not 0.0 < self.layer_decay <= 1.0 or not 0.0 <= self.drop_path < 1.0:
            raise ConfigError(
                f"layer_decay {self.layer_decay} must lie in (0, 1] and drop_path {self.drop_path} "
                "in [0, 1)"
            )
        if not 0 <= self.head_steps < self.steps or (self.head_steps and self.freeze):
            raise ConfigError(
                f"head_steps {self.head_steps} must be below steps {self.steps}, and 0 with "
                f"freeze ({self.freeze}), where the head trains alone to the end"
            )
        backbone = self.encoder.backbone
        if self.drop_path and (backbone is not None or isinstance(self.vit, PrimusConfig)):
            own = " (Primus has its own, --vit.drop-path)" if backbone is None else ""
            raise ConfigError(f"drop_path {self.drop_path} is of plain ViTs alone{own}: leave it 0")

    @property
    def encoder(self) -> EncoderShape:
        """The encoder of the run."""
        return EncoderShape(self.vit, self.resenc or self.swin)

    @property
    def evaluation_steps(self) -> list[int]:
        """Steps at which the validation subjects are scored: 0, every `eval_every`, the last."""
        return sorted({*range(0, self.steps, self.eval_every), self.steps})


NOT_IDENTITY = ("threads", "device", "init", "parallel", "log", "divergence")
"""Fields that a resumed run may change; of `init` the weights must stay the same, not the path."""
MAY_CHANGE = ("schedule", "clip_norm", "weight_decay", "encoder_lr_scale")
"""Parts of what is learned that a run under way may have otherwise from a step on."""
EARLIER_NAMES = {"batch": "global_batch"}
EARLIER_DATA = ("label", "targets", "split", "normalise")
"""Fields that stood beside the others before 0.2 and are `data`'s now."""


def identity(config: FinetuneConfig) -> dict[str, Any]:
    """What must be equal for a run to be resumed, as plain JSON values; not where the corpus is."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    from mim3d.engine.transfer.given_weights import sha256_of

    plain["init"] = sha256_of(config.init) if config.init else ""
    return identity_of(plain | config.encoder.own_name)


OFF: dict[str, Any] = {
    **{"class_weights": "none", "resenc": None, "init_axes": "auto", "init_channels": "auto"},
    **{"layer_decay": 1.0, "drop_path": 0.0, "head_steps": 0, "artefacts": [], "encoder": None},
}
"""Fields that came later, with the value that stands for their absence."""
absent = object()


def identity_of(plain: dict[str, Any]) -> dict[str, Any]:
    """The same of a configuration's plain values, whose `init` is the hash of the weights."""
    data = dict(plain["data"])
    if split := data.get("split"):
        # Off or idle is what runs have that do not know it.
        idle = not split.get("stratify") or plain["head"] not in WHOLE_VOLUME
        data["split"] = {k: v for k, v in split.items() if not (idle and k == "stratify")}
    # A split decides nothing where subjects are named.
    for name in ("corpus", "split") if plain["train"] else ("corpus",):
        data.pop(name, None)
    found = {
        key: value
        for key, value in plain.items()
        if key not in NOT_IDENTITY and OFF.get(key, absent) != value
    }
    found |= {"data": data, "schedule": schedule_identity(plain["schedule"])}
    return found | {"init": plain["init"]}


def beside_identity(config: FinetuneConfig) -> dict[str, Any]:
    """What is stored of a run besides: settings whose changes its history tells."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    precision = {"precision": plain["parallel"]["precision"]}
    return {"log": plain["log"], "divergence": plain["divergence"], "parallel": precision}


def stored_identity(stored: dict[str, Any]) -> dict[str, Any]:
    """The identity in a run's config.json, with today's names where it was written before 0.2."""
    found = {EARLIER_NAMES.get(key, key): value for key, value in stored.items()}
    if "data" not in found:
        found["data"] = {key: found.pop(key) for key in EARLIER_DATA if key in found}
    if found.get("train"):
        found["data"].pop("split", None)
    return found


def input_mismatch(config: FinetuneConfig) -> list[str]:
    """A line where the encoder was pretrained on intensities of another scale than it will get."""
    from mim3d.engine.transfer.intensities import intensity_mismatch

    return intensity_mismatch(config.init, config.data.normalise) if config.init else []


def idle_fields(config: FinetuneConfig) -> dict[type, tuple[str, ...]]:
    """Fields that decide nothing in a run such as this one, by class: no options of its command."""
    if config.resenc is not None:
        return {ViTConfig: IDLE_WITH_RESENC, FinetuneConfig: ("feature_size", "drop_path")}
    if config.swin is not None:
        return {ViTConfig: IDLE_WITH_SWIN, FinetuneConfig: ("feature_size", "drop_path")}
    return {FinetuneConfig: ("drop_path",)} if isinstance(config.vit, PrimusConfig) else {}


TINY_PRIMUS = PrimusConfig((32, 32, 32), (8, 8, 8), width=96, depth=4, heads=4)
TINY = ViTConfig((32, 32, 32), (8, 8, 8), width=96, depth=6, heads=3)


def demo() -> FinetuneConfig:
    """Small enough for two CPU cores: 32^3 crops, patch 8, a tiny encoder."""
    return FinetuneConfig(vit=TINY, steps=150, eval_every=15, feature_size=8)


def unetr_vit_b_96() -> FinetuneConfig:
    """UNETR's own setting: ViT-B, 96^3, patch 16 (Hatamizadeh et al. 2022)."""
    return FinetuneConfig(
        vit=ViTConfig(),
        steps=20_000,
        global_batch=2,
        eval_every=500,
        schedule=ScheduleConfig(lr=1e-4, kind="constant", warmup_steps=500),
        weight_decay=1e-5,
        threads=8,
    )


def tokens_vit_b_96() -> FinetuneConfig:
    """The same without the skip from the raw image."""
    return replace(unetr_vit_b_96(), head="tokens")


def swinunetr_96() -> FinetuneConfig:
    """SwinUNETR on 96^3 crops, for the encoders of the btcv-swin recipes."""
    return replace(unetr_vit_b_96(), swin=SwinConfig())


def demo_primus() -> FinetuneConfig:
    """A tiny Primus with its own decoder, for the encoders of demo-primus-*."""
    return replace(demo(), vit=TINY_PRIMUS, head="patch")


def primus_s_96() -> FinetuneConfig:
    """Primus-S with its own decoder on 96^3 crops."""
    return replace(unetr_vit_b_96(), vit=primus("S", 96, drop_path=0.2), head="patch")


def primus_b_96() -> FinetuneConfig:
    """Primus-B with its own decoder on 96^3 crops."""
    return replace(primus_s_96(), vit=primus("B", 96, drop_path=0.2))


def primus_m_160() -> FinetuneConfig:
    """Primus-M with its own decoder on 160^3 crops."""
    return replace(primus_s_96(), vit=primus("M", 160, drop_path=0.2))


def demo_resenc() -> FinetuneConfig:
    """A tiny residual-encoder U-Net, for the encoders of demo-resenc-*."""
    return replace(demo(), resenc=RESENC_TINY)


def resenc_s_96() -> FinetuneConfig:
    """A small residual-encoder U-Net on 96^3 crops."""
    vit = ViTConfig((96, 96, 96), (16, 16, 16))
    return replace(unetr_vit_b_96(), vit=vit, resenc=RESENC_S)


def resenc_l_160() -> FinetuneConfig:
    """nnU-Net's ResEnc-L on 160^3 crops."""
    vit = ViTConfig((160, 160, 160), (16, 16, 16))
    return replace(unetr_vit_b_96(), vit=vit, resenc=RESENC_L)


RECIPES = {
    "demo": demo,
    "demo-resenc": demo_resenc,
    "demo-primus": demo_primus,
    "unetr-vit-b-96": unetr_vit_b_96,
    "tokens-vit-b-96": tokens_vit_b_96,
    "swinunetr-96": swinunetr_96,
    "primus-s-96": primus_s_96,
    "primus-b-96": primus_b_96,
    "primus-m-160": primus_m_160,
    "resenc-s-96": resenc_s_96,
    "resenc-l-160": resenc_l_160,
}
