"""The configuration of a convergence study or an ablation."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from mim3d.dataio.finite import (
    MOST_SEED,
    MOST_SIZE,
    MOST_WORKERS,
    refuse_not_finite,
    refuse_outside,
)
from mim3d.engine.distributed.config import DeviceKind
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.finetune.config import LabelledData
from mim3d.engine.models.config import (
    MAEConfig,
    MethodConfig,
    SimCLRConfig,
    SimMIMConfig,
    SwinConfig,
    ViTConfig,
)
from mim3d.engine.models.own_fields import (
    method_config_of,
    method_of,
    own_method,
    read_words,
    with_fields,
)
from mim3d.engine.runs.files import read_json
from mim3d.engine.study.encoders import (
    METHODS,
    EncoderShapes,
    StudyHead,
    check_arms,
    check_encoders,
)

ARM_SETTINGS = {
    "mae": {"lr", "global_batch", "crops", "mask_ratio", "decoder_depth", "decoder_width"}
    | {"decode_fraction"},
    "simmim": {"lr", "global_batch", "crops", "mask_ratio"},
    "simclr": {"lr", "global_batch", "crops", "temperature"},
}
"""Settings of a variant that change a method's pretraining, besides the encoder's."""
OWN_SETTINGS = {"lr", "global_batch", "crops"}
"""Those that change a plugin's."""
EARLIER_SETTINGS = {"pretrain_lr": "lr", "simclr_batch": "global_batch"}
"""Names that studies before 0.2 stored for settings of a variant."""
ENCODER_SETTINGS = {"crop", "patch", "width", "depth"}
"""Settings of a variant that change every arm."""


def arm_settings(arm: str) -> set[str]:
    """Settings that change an arm's pretraining; none of scratch and of given encoders."""
    return OWN_SETTINGS if own_method(arm) else ARM_SETTINGS.get(arm.split("-", 1)[0], set())


Matching = Literal["crops", "flops"]
MethodName = Literal["mae", "simmim", "simclr"]


Method = TypeVar("Method", bound=MethodConfig)


@dataclass(frozen=True)
class ArmPlan(Generic[Method]):
    """A method and how it is trained; SimCLR has 2b - 2 negatives, so it wants large batches."""

    method: Annotated[Method, tyro.conf.arg(name="")]
    lr: float
    """Peak learning rate."""
    global_batch: int
    """Crops of a step."""

    def __post_init__(self) -> None:
        refuse_not_finite(self, "pretrain", ConfigError)
        if self.global_batch < 1 or not self.lr > 0.0:
            raise ConfigError(
                f"pretrain: lr {self.lr} must be positive and global_batch {self.global_batch} "
                "at least 1"
            )


@dataclass(frozen=True)
class PretrainPlan:
    """Pretraining of every arm: the same corpus, encoder and number of crops."""

    crops: int = 9600
    """Crops that every arm sees."""
    mae: ArmPlan[MAEConfig] = field(
        default_factory=lambda: ArmPlan(MAEConfig(), lr=2e-3, global_batch=16)
    )
    simmim: ArmPlan[SimMIMConfig] = field(
        default_factory=lambda: ArmPlan(SimMIMConfig(), lr=2e-3, global_batch=16)
    )
    simclr: ArmPlan[SimCLRConfig] = field(
        default_factory=lambda: ArmPlan(SimCLRConfig(), lr=1e-3, global_batch=32)
    )
    weight_decay: float = 0.05
    snap: int = 8
    """Crops start at multiples of so many voxels."""
    mim_augment: Literal["none", "mim", "spatial"] = "mim"
    """Flips and intensities of the masked methods' crops, with spatial also turns and zooms within
    the volume; contrastive views always have theirs."""
    per_seed: bool = True
    """Pretrain anew for every seed, so that seeds vary pretraining too; where they share one
    pretraining the report speaks of that encoder, not of its method."""
    own: tuple[str, ...] = ()
    """NAME.FIELD=VALUE of a plugin's method that is an arm, such as turns.lr=2e-3: lr and
    global_batch (mae's where none is told), and fields of the method itself."""

    def __post_init__(self) -> None:
        read_words(self.own, "pretrain.own")
        refuse_not_finite(self, "pretrain", ConfigError)
        refuse_outside(self, "crops", 1, part="pretrain", kind=ConfigError)
        refuse_outside(self, "snap", 1, MOST_SIZE, part="pretrain", kind=ConfigError)
        refuse_outside(self, "weight_decay", 0, part="pretrain", kind=ConfigError)

    def arm(self, name: str) -> ArmPlan[Any]:
        """The plan of an arm such as mae or mae-flops, or of a plugin's method."""
        method = method_of(name)
        if method in METHODS:
            return getattr(self, method)
        given, said = dict(self.own_fields(method)), f"pretrain.own {method}"
        rates = {k: given.pop(k) for k in ("lr", "global_batch") if k in given}
        config = with_fields(method_config_of(method), given, said)
        return with_fields(ArmPlan(config, self.mae.lr, self.mae.global_batch), rates, said)

    def own_fields(self, method: str) -> Mapping[str, str]:
        """What `own` says of a method."""
        return read_words(self.own, "pretrain.own").get(method, {})


@dataclass(frozen=True)
class FinetunePlan:
    """Fine-tuning of every cell: one recipe for all arms."""

    steps: int = 400
    global_batch: int = 4
    """Crops of a step."""
    eval_every: int = 20
    """Steps between evaluations."""
    lr: tuple[float, ...] = (1e-3,)
    """Learning rates; several are a grid that every arm is tuned on by tuning_seeds."""
    encoder_lr_scale: tuple[float, ...] = (1.0,)
    """Rate of the encoder over the head's; several are the grid's second axis, for every arm."""
    tuning_seeds: tuple[int, ...] = ()
    """Seeds that choose the rates and are not scored."""
    warmup_steps: int = 20
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    feature_size: int = 8
    """Channels of the decoder at full resolution."""
    foreground_fraction: float = 0.5
    """Share of crops centred on a labelled voxel."""
    overlap: float = 0.25
    """Overlap of sliding windows."""
    freeze: bool = False
    """Train the head only."""
    augment: Literal[
        "none", "segmentation", "upright", "spatial-segmentation", "spatial-upright"
    ] = "segmentation"
    """Of training crops; upright is segmentation without flips, spatial- turns and zooms within the
    volume, which leaves no repeated border."""

    def __post_init__(self) -> None:
        refuse_not_finite(self, "finetune", ConfigError)
        within = partial(refuse_outside, self, part="finetune", kind=ConfigError)
        within("steps global_batch eval_every feature_size", 1)
        within("feature_size", most=MOST_SIZE)
        within("lr encoder_lr_scale", above=0)
        within("warmup_steps weight_decay", 0)
        within("foreground_fraction overlap", 0, 1)
        within("tuning_seeds", 0, MOST_SEED)
        if not self.lr or not self.encoder_lr_scale:
            raise ConfigError("finetune.lr or .encoder_lr_scale names no learning rate")
        if len(self.lr_grid) > 1 and not self.tuning_seeds:
            raise ConfigError(
                f"finetune.lr {self.lr} and .encoder_lr_scale {self.encoder_lr_scale} are a grid: "
                "name finetune.tuning_seeds to choose by"
            )

    @property
    def lr_grid(self) -> list[tuple[float, float]]:
        """The grid: every rate with every scale of the encoder's."""
        return list(product(self.lr, self.encoder_lr_scale))


def settings_in_words(settings: Mapping[str, Any]) -> str:
    """`mask_ratio 0.5, patch 8`; empty without settings."""
    return ", ".join(f"{key} {value:g}" for key, value in settings.items())


@dataclass(frozen=True)
class Variant:
    """Settings that differ from the study's; None keeps the study's."""

    mask_ratio: float | None = None
    patch: int | None = None
    crop: int | None = None
    decoder_depth: int | None = None
    decoder_width: int | None = None
    decode_fraction: float | None = None
    """Of MAE: share of hidden patches that are decoded and scored."""
    temperature: float | None = None
    lr: float | None = None
    """Of pretraining."""
    width: int | None = None
    """Of the encoder; its heads keep their width."""
    depth: int | None = None
    """Of the encoder."""
    crops: int | None = None
    """Of pretraining."""
    global_batch: int | None = None
    """Of pretraining."""

    def __post_init__(self) -> None:
        """Settings are numbers."""
        refuse_not_finite(self, "variant", ConfigError)
        within = partial(refuse_outside, self, part="variant", kind=ConfigError)
        within("patch crop decoder_width width depth crops global_batch", 1)
        within("decoder_depth", 0)
        within("patch crop decoder_width decoder_depth width depth", most=MOST_SIZE)
        within("mask_ratio decode_fraction", above=0, most=1)
        within("temperature lr", above=0)

    @property
    def settings(self) -> dict[str, Any]:
        """Those that are set."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    @property
    def name(self) -> str:
        """`mask_ratio 0.5, patch 8`; empty for the study's own settings."""
        return settings_in_words(self.settings)

    def of(self, arm: str) -> "Variant":
        """The settings that matter to an arm: scratch has no mask, only MAE has a decoder."""
        kept = ENCODER_SETTINGS | arm_settings(arm)
        return Variant(**{k: v for k, v in self.settings.items() if k in kept})


@dataclass(frozen=True)
class StudyConfig:
    """Arms x seeds x decoders x labels: who converges faster, by how much, at what cost."""

    name: str = "study"
    data: LabelledData = field(default_factory=LabelledData)
    vit: ViTConfig = field(default_factory=ViTConfig)
    swin: SwinConfig | None = None
    """MONAI's Swin in the vit's place, for arms scratch, simclr and simmim; set by a study."""
    arms: tuple[str, ...] = ("scratch", "simclr", "mae")
    """scratch, simclr, mae, simmim, each with another encoder as mae@primus, and NAME=PATH for any
    encoder or finished run (NAME@ENCODER=PATH where it is not of the study's own kind); and the
    name of a plugin's method."""
    encoders: tuple[str, ...] = ()
    """Every arm on each of these encoders (vit, primus, resenc, swin, or a plugin's), in one report
    that compares arms of one encoder alone; none: on the study's own."""
    shapes: EncoderShapes = field(default_factory=EncoderShapes)
    """What primus, resenc and swin are as encoders of arms; vit is the study's."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    heads: tuple[StudyHead, ...] = ("unetr",)
    """Decoders: unetr, tokens (no skip from the raw image), linear; own, each encoder's own (UNETR,
    Primus's, nnU-Net's, SwinUNETR); or classify alone."""
    labels: tuple[float, ...] = (1.0,)
    """Labelled subjects to train on: shares up to 1, or numbers."""
    matching: tuple[Matching, ...] = ("crops",)
    """crops gives every arm as many; flops adds arms with the FLOPs of `flops_of`."""
    flops_of: MethodName = "mae"
    """Method whose pretraining FLOPs, at `pretrain.crops`, arms of matching flops spend."""
    pretrain: PretrainPlan = field(default_factory=PretrainPlan)
    finetune: FinetunePlan = field(default_factory=FinetunePlan)
    targets: tuple[float, ...] = (0.8, 0.9, 0.95)
    """Shares of scratch's best smoothed score."""
    primary: float = 0.9
    """The target that the verdict is about."""
    smoothing: int = 3
    """Evaluations in the moving mean (odd)."""
    tasks: int = 10
    """Tasks that share a pretraining in the third ledger."""
    ablation: str = ""
    """Title of an ablation."""
    ablation_axes: tuple[str, ...] = ()
    """The settings it varies: one gives curves, two a heat map."""
    variants: Annotated[tuple[Variant, ...], tyro.conf.Suppress] = (Variant(),)
    pretext_search: str = ""
    """Folder of the finished study `pretext` that chose the pretext tasks' settings: the report
    tells how many settings each arm was tried with."""
    score_test: bool = True
    """Score the test subjects; off where settings are searched, so that the test stays unseen."""
    workers: int = 0
    """Cells at a time; 0 takes one per core on a CPU and one on a GPU."""
    device: DeviceKind = "auto"
    synthetic: Annotated[bool, tyro.conf.Suppress] = False
    """Whether the corpus is generated; the report then says so on top."""

    def __post_init__(self) -> None:
        refuse_not_finite(self, kind=ConfigError)
        refuse_outside(self, "seeds", 0, MOST_SEED, kind=ConfigError)
        refuse_outside(self, "labels", above=0, kind=ConfigError)
        refuse_outside(self, "tasks", 1, kind=ConfigError)
        refuse_outside(self, "workers", 0, MOST_WORKERS, kind=ConfigError)
        for what in ("arms", "seeds", "heads", "labels", "matching", "targets"):
            values = getattr(self, what)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{what} {values} must name at least one, each once")
        check_arms(self.arms)
        check_encoders(self.encoders)
        if "regress" in self.heads:
            raise ConfigError(
                "heads regress is no head of a study, which compares Dice or balanced accuracy: "
                "use `mim3d finetune` with --head regress for each arm"
            )
        segmenting = [head for head in self.heads if head != "classify"]
        if segmenting and len(segmenting) < len(self.heads):
            raise ConfigError(
                f"heads {self.heads} mix classify with {', '.join(segmenting)}: the classes of "
                "data.targets and the label volumes deal different subjects and give different "
                "scores, so make two studies, each with an --out of its own"
            )
        if self.swin is not None and ("mae" in self.arms or "linear" in self.heads):
            raise ConfigError(
                f"arms {self.arms} and heads {self.heads} hold mae or linear: Swin computes every "
                "window and has no token per patch, so it takes scratch, simclr, simmim with "
                "heads unetr, tokens or classify"
            )
        if self.swin is not None and "flops" in self.matching:
            raise ConfigError("matching flops counts the FLOPs of a ViT, not of Swin: take crops")
        both = set(self.seeds) & set(self.finetune.tuning_seeds)
        if both:
            raise ConfigError(f"seeds {sorted(both)} would tune the rate and be scored: keep apart")
        refuse_outside(self, "targets", above=0, most=1, kind=ConfigError)
        if self.primary not in self.targets:
            raise ConfigError(f"primary {self.primary} must be one of targets {self.targets}")
        settings = {name for variant in self.variants for name in variant.settings} | {"labels"}
        if idle := set(self.ablation_axes) - settings:
            raise ConfigError(
                f"ablation_axes {', '.join(sorted(idle))} is varied by no variant: leave it out, "
                f"and vary by --vary {min(idle)}=VALUE,VALUE"
            )
        if self.smoothing < 1 or self.smoothing % 2 == 0:
            raise ConfigError(f"smoothing {self.smoothing} must be odd")


def plain(config: StudyConfig) -> dict[str, Any]:
    """The configuration as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


STUDY, RESULTS, CASES, PRETRAINING, PLAN = (
    "study.json",
    "results.jsonl",
    "cases.jsonl",
    "pretraining.json",
    "plan.json",
)
PLANNED = ("about", "cells", "pretrainings", "given", "corpus_sha256", "notes")
"""What a plan has."""
CLASSIFY = "classify"
Row = dict[str, Any]


def read_plan(folder: Path, parts: Sequence[str] = PLANNED) -> Row:
    """A study's plan.json; CheckpointError where it has not all these parts."""
    plan = read_json(folder / PLAN)
    found = plan if isinstance(plan, dict) else {}
    if lacking := [name for name in parts if name not in found]:
        raise CheckpointError(
            f"{folder / PLAN} is no plan of a study (it has no {', '.join(lacking)}): delete it, "
            "and the study's own command writes it anew; without it --report draws what was "
            "gathered last"
        )
    return plan


def labels_in_words(labels: float) -> str:
    """`25 % of the labels`, or `8 labelled subjects`."""
    if labels <= 1:
        return f"{100 * labels:g} % of the labels"
    return f"{labels:g} labelled subjects"
