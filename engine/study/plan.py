"""From a study's configuration to its pretrainings and cells; pure, so it can be counted first."""

import re
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from mim3d.dataio.loader.config import LoaderConfig
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import FinetuneConfig, Head
from mim3d.engine.finetune.splits import Splits
from mim3d.engine.models.config import (
    MAEConfig,
    MethodConfig,
    SimCLRConfig,
    SimMIMConfig,
    ViTConfig,
)
from mim3d.engine.pretrain.config import PretrainConfig, PretrainLog
from mim3d.engine.pretrain.data import DataConfig
from mim3d.engine.runs.config import CheckpointConfig
from mim3d.engine.study.config import METHODS, StudyConfig, Variant
from mim3d.engine.training.config import OptimConfig, ScheduleConfig

LOGGED_ROWS = 60


@dataclass(frozen=True)
class Pretraining:
    """One pretraining: an arm in a variant, for all seeds or (`seed`) for one."""

    arm: str
    variant: Variant
    seed: int | None

    @property
    def key(self) -> str:
        """Name of its folder."""
        return pretraining_key(self.arm, self.variant.name, self.seed)


@dataclass(frozen=True)
class Cell:
    """One fine-tuning run."""

    arm: str
    variant: Variant
    head: Head
    labels: float
    seed: int
    lr: float
    encoder_lr_scale: float = 1.0
    tuning: bool = False

    @property
    def key(self) -> str:
        """Name of its folder."""
        parts = [self.arm, self.variant.name, self.head, f"labels {self.labels:g}"]
        scale = "" if self.encoder_lr_scale == 1.0 else f"encoder {self.encoder_lr_scale:g}"
        parts += [f"seed {self.seed}", f"lr {self.lr:g}", scale, "tuning" if self.tuning else ""]
        return slug(*parts)


def pretraining_key(arm: str, variant: str, seed: int | None) -> str:
    """Name of a pretraining's folder."""
    return slug(arm, variant, "" if seed is None else f"seed {seed}")


def slug(*parts: str) -> str:
    """Parts as one file name."""
    return "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in parts if part)


def arm_names(config: StudyConfig) -> list[str]:
    """Names of the arms, those of equal FLOPs included."""
    names = [arm.split("=", 1)[0] for arm in config.arms]
    if "flops" in config.matching:
        names += [f"{arm}-flops" for arm in names if arm in METHODS and arm != config.flops_of]
    if "crops" not in config.matching:
        names = [name for name in names if f"{name}-flops" not in names]
    return names


def given_path(config: StudyConfig, arm: str) -> str:
    """Path of an arm given as NAME=PATH, empty for others."""
    found = dict(a.split("=", 1) for a in config.arms if "=" in a)
    return found.get(arm, "")


def is_pretrained_here(config: StudyConfig, arm: str) -> bool:
    """Whether the study itself pretrains the arm."""
    return arm.split("-", 1)[0] in METHODS and not given_path(config, arm)


def pretrainings(config: StudyConfig) -> list[Pretraining]:
    """Every pretraining of the study, each once."""
    seeds: tuple[int | None, ...] = (None,)
    if config.pretrain.per_seed:
        tuning = config.finetune.tuning_seeds if len(config.finetune.lr_grid) > 1 else ()
        seeds = (*tuning, *config.seeds)
    wanted = (
        Pretraining(arm, variant.of(arm), seed)
        for arm, variant, seed in product(arm_names(config), config.variants, seeds)
        if is_pretrained_here(config, arm)
    )
    return list(dict.fromkeys(wanted))


def scored_cells(
    config: StudyConfig, chosen: dict[tuple[str, str], tuple[float, float]]
) -> list[Cell]:
    """Every scored cell; `chosen` has the lr and encoder_lr_scale of (arm, head)."""
    arms, default = arm_names(config), config.finetune.lr_grid[0]
    # Seed by seed, so that an interrupted study has whole pairs.
    wanted = (
        Cell(arm, variant.of(arm), head, labels, seed, *chosen.get((arm, head), default))
        for seed, head, labels, variant, arm in product(
            config.seeds, config.heads, config.labels, config.variants, arms
        )
    )
    return list(dict.fromkeys(wanted))


def tuning_cells(config: StudyConfig) -> list[Cell]:
    """Cells that choose the lr: every arm and head on the same grid, first variant and labels."""
    plan = config.finetune
    if len(plan.lr_grid) < 2:
        return []
    labels, variant = config.labels[0], config.variants[0]
    return [
        Cell(arm, variant.of(arm), head, labels, seed, *lr, tuning=True)
        for head, arm, seed, lr in product(
            config.heads, arm_names(config), plan.tuning_seeds, plan.lr_grid
        )
    ]


def encoder_shape(config: StudyConfig, variant: Variant) -> ViTConfig:
    """The encoder of a variant."""
    vit = config.vit
    if variant.patch is not None:
        vit = replace(vit, patch_size=(variant.patch,) * 3)
    if variant.crop is not None:
        vit = replace(vit, crop_size=(variant.crop,) * 3)
    if variant.width is not None:
        own = vit.width // vit.heads
        if variant.width % own:
            raise ConfigError(f"width {variant.width} must be a multiple of a head's width, {own}")
        vit = replace(vit, width=variant.width, heads=variant.width // own)
    if variant.depth is not None:
        vit = replace(vit, depth=variant.depth)
    return vit


def method_config(config: StudyConfig, arm: str, variant: Variant) -> MethodConfig:
    """The pretext method of an arm in a variant."""
    method: MethodConfig = config.pretrain.arm(arm).method
    if variant.mask_ratio is not None and isinstance(method, MAEConfig | SimMIMConfig):
        method = replace(method, mask_ratio=variant.mask_ratio)
    if variant.temperature is not None and isinstance(method, SimCLRConfig):
        method = replace(method, temperature=variant.temperature)
    if isinstance(method, MAEConfig):
        if variant.decoder_depth is not None:
            method = replace(method, decoder_depth=variant.decoder_depth)
        if variant.decoder_width is not None:
            heads = max(1, variant.decoder_width // 16)
            method = replace(method, decoder_width=variant.decoder_width, decoder_heads=heads)
    return method


def crops_seen(config: StudyConfig, pretraining: Pretraining) -> int:
    """Crops of a pretraining: the study's number, or what the FLOPs of `flops_of` pay for."""
    crops = pretraining.variant.crops or config.pretrain.crops
    if not pretraining.arm.endswith("-flops"):
        return crops
    from mim3d.engine.models.flops import crop_flops  # loads torch

    vit = encoder_shape(config, pretraining.variant)
    own = crop_flops(method_config(config, pretraining.arm, pretraining.variant), vit).training
    paid = crop_flops(method_config(config, config.flops_of, pretraining.variant), vit).training
    return round(crops * paid / own)


def pretrain_config(
    config: StudyConfig, pretraining: Pretraining, splits: Splits
) -> PretrainConfig:
    """The whole configuration of a pretraining; validation and test subjects are not in it."""
    plan, variant = config.pretrain, pretraining.variant
    arm, contrastive = plan.arm(pretraining.arm), pretraining.arm.startswith("simclr")
    global_batch = variant.global_batch or arm.global_batch
    steps = max(crops_seen(config, pretraining) // global_batch, 1)
    return PretrainConfig(
        method=method_config(config, pretraining.arm, variant),
        vit=encoder_shape(config, variant),
        swin=config.swin,
        data=DataConfig(
            corpus=config.data.corpus,
            subjects=splits.pretrain,
            loader=LoaderConfig(
                normalise=config.data.normalise,
                augment="auto" if contrastive else plan.mim_augment,
                snap=plan.snap,
                cache="auto",
                cache_bytes=4 << 30,
            ),
        ),
        optim=OptimConfig(weight_decay=plan.weight_decay),
        schedule=ScheduleConfig(
            lr=variant.lr or arm.lr, warmup_steps=max(1, min(steps // 10, 1000))
        ),
        checkpoint=CheckpointConfig(every=max(steps // 4, 100), keep=1, keep_best=False),
        log=PretrainLog(every=max(steps // LOGGED_ROWS, 1), tensorboard=False),
        global_batch=global_batch,
        steps=steps,
        seed=pretraining.seed or 0,
    )


def init_of(config: StudyConfig, cell: Cell, out: Path) -> str:
    """Where a cell's encoder comes from, empty for scratch."""
    if cell.arm == "scratch":
        return ""
    pretraining = pretraining_of(config, cell)
    if pretraining is None:
        return given_path(config, cell.arm)
    return str(out / "pretrain" / pretraining.key)


def pretraining_of(config: StudyConfig, cell: Cell) -> Pretraining | None:
    """The study's own pretraining that a cell starts from, None of scratch and of given arms."""
    if not is_pretrained_here(config, cell.arm):
        return None
    seed = cell.seed if config.pretrain.per_seed else None
    return Pretraining(cell.arm, cell.variant.of(cell.arm), seed)


def finetune_config(config: StudyConfig, cell: Cell, splits: Splits, out: Path) -> FinetuneConfig:
    """The whole configuration of a cell."""
    if cell.head == "classify" and not config.data.targets:
        raise ConfigError("head classify needs --data.targets FILE.csv (columns subject,target)")
    plan = config.finetune
    return FinetuneConfig(
        data=config.data,
        init=init_of(config, cell, out),
        head=cell.head,
        vit=encoder_shape(config, cell.variant),
        swin=config.swin,
        feature_size=plan.feature_size,
        freeze=plan.freeze,
        encoder_lr_scale=cell.encoder_lr_scale,
        labels=cell.labels,
        train=splits.train,
        validation=splits.validation,
        test=() if cell.tuning or not config.score_test else splits.test,
        steps=plan.steps,
        global_batch=plan.global_batch,
        schedule=ScheduleConfig(lr=cell.lr, kind="constant", warmup_steps=plan.warmup_steps),
        weight_decay=plan.weight_decay,
        eval_every=plan.eval_every,
        overlap=plan.overlap,
        foreground_fraction=plan.foreground_fraction,
        augment=plan.augment,
        seed=cell.seed,
        device=config.device,
    )
