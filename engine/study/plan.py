"""From a study's configuration to its pretrainings and cells; pure, so it can be counted first."""

import math
import re
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from mim3d.dataio.loader.config import LoaderConfig
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import FinetuneConfig
from mim3d.engine.finetune.splits import Splits
from mim3d.engine.models.config import (
    MAEConfig,
    MethodConfig,
    SimCLRConfig,
    SimMIMConfig,
)
from mim3d.engine.pretrain.config import PretrainConfig, PretrainLog
from mim3d.engine.pretrain.data import DataConfig
from mim3d.engine.runs.config import CheckpointConfig
from mim3d.engine.study.arms import (
    arms_of,
    encoder_of,
    given_path,
    head_of,
    is_pretrained_here,
    turnable,
)
from mim3d.engine.study.config import StudyConfig, Variant
from mim3d.engine.study.encoders import StudyHead, label_of
from mim3d.engine.training.config import OptimConfig, ScheduleConfig

LOGGED_ROWS = 60


@dataclass(frozen=True)
class Pretraining:
    """One pretraining: an arm in a variant, for all seeds or (`seed`) for one."""

    arm: str
    variant: Variant
    seed: int | None
    encoder: str = ""
    """Where it is not the study's own."""

    @property
    def key(self) -> str:
        """Name of its folder."""
        return pretraining_key(self.arm, self.variant.name, self.seed, self.encoder)


@dataclass(frozen=True)
class Cell:
    """One fine-tuning run."""

    arm: str
    variant: Variant
    head: StudyHead
    labels: float
    seed: int
    lr: float
    encoder_lr_scale: float = 1.0
    tuning: bool = False
    encoder: str = ""
    """Where it is not the study's own."""

    @property
    def label(self) -> str:
        """`mae`, or `mae@primus`."""
        return label_of(self.arm, self.encoder)

    @property
    def key(self) -> str:
        """Name of its folder."""
        parts = [self.arm, self.encoder, self.variant.name, self.head, f"labels {self.labels:g}"]
        scale = "" if self.encoder_lr_scale == 1.0 else f"encoder {self.encoder_lr_scale:g}"
        parts += [f"seed {self.seed}", f"lr {self.lr:g}", scale, "tuning" if self.tuning else ""]
        return slug(*parts)


def pretraining_key(arm: str, variant: str, seed: int | None, encoder: str = "") -> str:
    """Name of a pretraining's folder."""
    return slug(arm, encoder, variant, "" if seed is None else f"seed {seed}")


def slug(*parts: str) -> str:
    """Parts as one file name."""
    return "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in parts if part)


def pretrainings(config: StudyConfig) -> list[Pretraining]:
    """Every pretraining of the study, each once."""
    seeds: tuple[int | None, ...] = (None,)
    if config.pretrain.per_seed:
        tuning = config.finetune.tuning_seeds if len(config.finetune.lr_grid) > 1 else ()
        seeds = (*tuning, *config.seeds)
    wanted = (
        Pretraining(arm.name, variant.of(arm.name), seed, arm.encoder)
        for arm, variant, seed in product(arms_of(config), config.variants, seeds)
        if is_pretrained_here(config, arm.name, arm.encoder)
    )
    return list(dict.fromkeys(wanted))


def scored_cells(
    config: StudyConfig, chosen: dict[tuple[str, str], tuple[float, float]]
) -> list[Cell]:
    """Every scored cell; `chosen` has the lr and encoder_lr_scale of (arm's label, head)."""
    arms, default = arms_of(config), config.finetune.lr_grid[0]
    # The headline's decoder and labels first, and there seed by seed: an interrupted study has
    # whole pairs of what it tests.
    wanted = (
        Cell(
            arm.name,
            variant.of(arm.name),
            head,
            labels,
            seed,
            *chosen.get((arm.label, head), default),
            encoder=arm.encoder,
        )
        for head, labels, seed, variant, arm in product(
            config.heads, config.labels, config.seeds, config.variants, arms
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
        Cell(
            *(arm.name, variant.of(arm.name), head, labels, seed, *lr),
            tuning=True,
            encoder=arm.encoder,
        )
        for head, arm, seed, lr in product(
            config.heads, arms_of(config), plan.tuning_seeds, plan.lr_grid
        )
    ]


def method_config(
    config: StudyConfig, arm: str, variant: Variant, encoder: str = ""
) -> MethodConfig:
    """The pretext method of an arm in a variant; on Primus with a decoder that it can turn."""
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
        if variant.decode_fraction is not None:
            method = replace(method, decode_fraction=variant.decode_fraction)
        if encoder == "primus":
            method = turnable(method)
    return method


def crops_seen(config: StudyConfig, pretraining: Pretraining) -> int:
    """Crops of a pretraining: the study's number, or what the FLOPs of `flops_of` pay for."""
    own, paid = flops_of_crops(config, pretraining)
    return round((pretraining.variant.crops or config.pretrain.crops) * paid / own)


def flops_of_crops(config: StudyConfig, pretraining: Pretraining) -> tuple[float, float]:
    """FLOPs of a crop, and what is paid for each crop asked for; the same but for equal FLOPs."""
    if not pretraining.arm.endswith("-flops"):
        return 1.0, 1.0
    from mim3d.engine.models.flops import crop_flops  # loads torch

    encoder, variant = pretraining.encoder, pretraining.variant
    shape = encoder_of(config, encoder, variant)
    own, paid = (
        crop_flops(method_config(config, arm, variant, encoder), shape.vit, shape.backbone).training
        for arm in (pretraining.arm, config.flops_of)
    )
    return own, paid


def steps_of(config: StudyConfig, pretraining: Pretraining, global_batch: int) -> int:
    """Steps of a pretraining; ConfigError where its crops are fewer than one takes."""
    crops = crops_seen(config, pretraining)
    if crops < global_batch:
        own, paid = flops_of_crops(config, pretraining)
        least = math.ceil(global_batch * own / paid)
        how = f"vary crops from {least} up" if pretraining.variant.crops else ""
        raise ConfigError(
            f"{crops} crops for {pretraining.arm} are fewer than one step takes, {global_batch}: "
            f"{how or f'set --pretrain.crops {least} at least'}, or a smaller batch"
        )
    return crops // global_batch


def pretrain_config(
    config: StudyConfig, pretraining: Pretraining, splits: Splits
) -> PretrainConfig:
    """The whole configuration of a pretraining; validation and test subjects are not in it."""
    plan, variant = config.pretrain, pretraining.variant
    arm = plan.arm(pretraining.arm)
    global_batch = variant.global_batch or arm.global_batch
    steps = steps_of(config, pretraining, global_batch)
    shape = encoder_of(config, pretraining.encoder, variant)
    return PretrainConfig(
        method=method_config(config, pretraining.arm, variant, pretraining.encoder),
        vit=shape.vit,
        swin=shape.swin,
        resenc=shape.resenc,
        data=DataConfig(
            corpus=config.data.corpus,
            subjects=splits.pretrain,
            loader=LoaderConfig(
                normalise=config.data.normalise,
                augment="auto" if arm.method.views > 1 else plan.mim_augment,
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
        return given_path(config, cell.arm, cell.encoder)
    return str(out / "pretrain" / pretraining.key)


def pretraining_of(config: StudyConfig, cell: Cell) -> Pretraining | None:
    """The study's own pretraining that a cell starts from, None of scratch and of given arms."""
    if not is_pretrained_here(config, cell.arm, cell.encoder):
        return None
    seed = cell.seed if config.pretrain.per_seed else None
    return Pretraining(cell.arm, cell.variant.of(cell.arm), seed, cell.encoder)


def finetune_config(config: StudyConfig, cell: Cell, splits: Splits, out: Path) -> FinetuneConfig:
    """The whole configuration of a cell."""
    plan, shape = config.finetune, encoder_of(config, cell.encoder, cell.variant)
    return FinetuneConfig(
        data=config.data,
        init=init_of(config, cell, out),
        head=head_of(config, cell.head, cell.encoder),
        vit=shape.vit,
        swin=shape.swin,
        resenc=shape.resenc,
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
