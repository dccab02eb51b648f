"""Named studies and ablations: functions that return a whole configuration."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import TINY, LabelledData
from mim3d.engine.finetune.splits import SplitConfig
from mim3d.engine.models.config import (
    IDLE_WITH_SWIN,
    MAEConfig,
    SimCLRConfig,
    SimMIMConfig,
    SwinConfig,
    ViTConfig,
)
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.study.config import ArmPlan, FinetunePlan, PretrainPlan, StudyConfig, Variant
from mim3d.engine.study.encoders import TINY_SHAPES

SMALL_MAE = MAEConfig(decoder_width=64, decoder_depth=2, decoder_heads=4, loss="l2")
FEW_LABELS = 16.0
SMALL_SIMCLR = SimCLRConfig(projection_hidden=192, projection_width=64)


def demo() -> StudyConfig:
    """All parts at work in five minutes on two CPU cores; too small to prove anything.

    Sixteen labelled phantoms are enough for every arm to find all three classes (Dice about 0.86).
    With eight, or with 240 steps, one run of six never found the third; half the rate is too slow.
    """
    return StudyConfig(
        name="demo",
        data=LabelledData(split=SplitConfig(validation=6, test=8)),
        vit=TINY,
        shapes=TINY_SHAPES,
        seeds=(0, 1),
        labels=(FEW_LABELS,),
        pretrain=PretrainPlan(
            mae=ArmPlan(replace(SMALL_MAE, mask_ratio=0.6), lr=1e-3, global_batch=8),
            simmim=ArmPlan(SimMIMConfig(), lr=2e-3, global_batch=8),
            simclr=ArmPlan(SMALL_SIMCLR, lr=1e-3, global_batch=32),
            per_seed=False,
        ),
        finetune=FinetunePlan(
            steps=320,
            eval_every=20,
            lr=(4e-3,),
            encoder_lr_scale=(0.3,),
            foreground_fraction=0.9,
            augment="upright",
        ),
    )


def hippocampus() -> StudyConfig:
    """Hippocampi of the Medical Segmentation Decathlon: four arms, three decoders, few labels.

    Rates and mask ratios of the masked arms are what study `pretext` found, by the largest area
    under the validation curve of a seed that is not scored here. For SimCLR that search, of 16,000
    crops, took temperature 0.5; at full length 0.1 is far stronger, so the control has 0.1.
    """
    return StudyConfig(
        name="hippocampus",
        data=LabelledData(split=SplitConfig(validation=24, test=40, keep="number")),
        vit=TINY,
        shapes=TINY_SHAPES,
        arms=("scratch", "simclr", "mae", "simmim"),
        seeds=(0, 1, 2, 3, 4),
        heads=("unetr", "tokens", "linear"),
        labels=(1.0, 8.0),
        matching=("crops", "flops"),
        flops_of="simclr",
        pretrain=PretrainPlan(
            crops=96_000,
            mae=ArmPlan(replace(SMALL_MAE, mask_ratio=0.6), lr=5e-4, global_batch=16),
            simmim=ArmPlan(
                SimMIMConfig(loss="l2", normalise_target=True, mask_ratio=0.6),
                lr=1.5e-3,
                global_batch=16,
            ),
            simclr=ArmPlan(replace(SMALL_SIMCLR, temperature=0.1), lr=1.5e-3, global_batch=64),
            snap=1,
            mim_augment="none",
        ),
        finetune=FinetunePlan(
            steps=240,
            eval_every=20,
            lr=(4e-3, 1e-2),
            encoder_lr_scale=(0.05, 0.3),
            tuning_seeds=(100,),
            feature_size=4,
            augment="upright",
        ),
    )


def head_neck_ct() -> StudyConfig:
    """Head-and-neck CT, four organs, people as subjects: four arms, 8 to all labelled subjects.

    The hippocampus recipe finds no organ here (Dice 0.000): of a window's voxels 0.06 to 0.1 % are
    of each, so crops are drawn on organs and the decoder is wider. Validation is small because
    a scan has ten times a hippocampus' voxels; what convergence compares is paired by seed.
    24,000 crops tile the training scans nine times; 9,600 at rate 5e-4 taught MAE nothing. Rates,
    batches, mask ratios and temperature are what study `pretext-ct` found, eight settings of each
    method (bench/results/2026-11-30-pretext-search-ct).
    """
    base = hippocampus()
    return replace(
        base,
        name="head-neck-ct",
        data=LabelledData(
            normalise="window:-160:240", split=SplitConfig(validation=10, test=30, keep="subject")
        ),
        seeds=tuple(range(10)),
        heads=("unetr", "tokens"),
        labels=(1.0, 8.0, 16.0, 32.0),
        matching=("crops",),
        pretrain=replace(
            base.pretrain,
            crops=24_000,
            mae=replace(base.pretrain.mae, lr=3e-3),
            simmim=replace(base.pretrain.simmim, lr=3e-3),
            simclr=replace(base.pretrain.simclr, lr=1e-3, global_batch=16),
        ),
        finetune=replace(
            base.finetune,
            steps=1_000,
            eval_every=50,
            lr=(4e-3,),
            encoder_lr_scale=(0.3,),
            tuning_seeds=(),
            feature_size=8,
            foreground_fraction=0.9,
            overlap=0.0,
        ),
    )


def swin() -> StudyConfig:
    """Swin in the ViT's place, under SwinUNETR: scratch, SimCLR and SimMIM on hippocampi."""
    base = hippocampus()
    return replace(
        base,
        name="swin",
        vit=replace(TINY, crop_size=(64, 64, 64)),
        swin=SwinConfig(feature_size=12, depths=(2, 2, 2, 2), heads=(3, 6, 12, 24), window=4),
        arms=("scratch", "simclr", "simmim"),
        heads=("unetr", "tokens"),
        labels=(1.0,),
        matching=("crops",),
    )


def paper() -> StudyConfig:
    """Chen et al. 2022: ViT-B, 96^3, patch 16, mask ratio 0.75, UNETR; for a GPU."""
    return StudyConfig(
        name="paper",
        vit=ViTConfig(),
        arms=("scratch", "simclr", "mae", "simmim"),
        seeds=tuple(range(10)),
        heads=("unetr", "tokens"),
        matching=("crops", "flops"),
        pretrain=PretrainPlan(
            crops=1_280_000,
            mae=ArmPlan(MAEConfig(loss="l1", normalise_target=False), lr=1e-4, global_batch=128),
            simmim=ArmPlan(SimMIMConfig(loss="l1"), lr=1e-4, global_batch=128),
            simclr=ArmPlan(SimCLRConfig(temperature=0.5), lr=1e-4, global_batch=128),
            snap=16,
        ),
        finetune=FinetunePlan(
            steps=25_000,
            global_batch=2,
            eval_every=500,
            lr=(5e-5, 1e-4, 2e-4),
            tuning_seeds=(100, 101),
            warmup_steps=500,
            weight_decay=1e-5,
            feature_size=16,
        ),
    )


def paper_swin() -> StudyConfig:
    """The paper's Swin-B encoder under SwinUNETR, without MAE; for a GPU."""
    return replace(
        paper(),
        name="paper-swin",
        swin=SwinConfig(),
        arms=("scratch", "simclr", "simmim"),
        matching=("crops",),
    )


def ablation(name: str, axes: tuple[str, ...], variants: list[Variant]) -> StudyConfig:
    """A study of MAE alone over variants, on the hippocampus settings; five seeds, each pretrained.

    The first variant is the one that others are held against, where no arm is a control. 9,600
    crops are few, but MAE with patch 8 and mask ratio 0.6 learns its pretext task in them (0.86 of
    each patch's mean); of a setting that does not, the report tells and makes no comparison.
    """
    base = hippocampus()
    return replace(
        base,
        name=name,
        arms=("mae",),
        heads=("tokens",),
        labels=(1.0,),
        matching=("crops",),
        pretrain=replace(base.pretrain, crops=9_600),
        finetune=replace(
            base.finetune, steps=300, lr=(1e-2,), encoder_lr_scale=(0.1,), tuning_seeds=()
        ),
        ablation=name,
        ablation_axes=axes,
        variants=tuple(variants),
    )


def ablate_mask() -> StudyConfig:
    """Mask ratio by patch size (finding ii of the paper); patch 4 makes 512 tokens of a crop."""
    ratios, patches = (0.6, 0.3, 0.75, 0.9), (8, 4, 16)
    variants = [Variant(mask_ratio=r, patch=p) for p, r in product(patches, ratios)]
    return ablation("mask", ("mask_ratio", "patch"), variants)


def ablate_decoder() -> StudyConfig:
    """Decoder depth and width together, beside SimMIM's linear head (finding iii)."""
    sizes = ((2, 64), (1, 32), (8, 128))
    variants = [Variant(decoder_depth=d, decoder_width=w) for d, w in sizes]
    found = ablation("decoder", ("decoder_depth", "decoder_width"), variants)
    return replace(found, arms=("mae", "simmim"))


def ablate_decode() -> StudyConfig:
    """Share of the hidden patches that MAE decodes: what the cheaper step costs in quality."""
    variants = [Variant(decode_fraction=f) for f in (1.0, 0.5, 0.25)]
    return ablation("decode", ("decode_fraction",), variants)


def ablate_resolution() -> StudyConfig:
    """Crop size, from scratch and from MAE (finding iv)."""
    variants = [Variant(crop=crop) for crop in (32, 24, 48)]
    return replace(ablation("resolution", ("crop",), variants), arms=("scratch", "mae"))


def ablate_labels() -> StudyConfig:
    """Labelled subjects from a handful to all, all arms (finding iv); SimCLR wants more crops."""
    found = ablation("labels", ("labels",), [Variant()])
    return replace(
        found,
        arms=("scratch", "simclr", "mae", "simmim"),
        labels=(4.0, 8.0, 16.0, 0.25, 0.5, 1.0),
        pretrain=replace(found.pretrain, crops=24_000),
    )


def search_pretext() -> StudyConfig:
    """Settings of every pretext task, eight each, chosen by a seed that no study scores.

    Every arm varies rate and batch; masked arms their mask ratio, SimCLR its temperature. All at
    the length of study `hippocampus`: at 16,000 crops SimCLR's temperatures rank otherwise than at
    96,000. The test subjects are not looked at, and not in any training set either.
    """
    plan = FinetunePlan(
        steps=180, eval_every=15, lr=(4e-3,), encoder_lr_scale=(0.3,), augment="upright"
    )
    return pretext_search("pretext", hippocampus(), plan, rates=(5e-4, 1.5e-3))


def search_pretext_ct() -> StudyConfig:
    """The same search on head-and-neck CT, at the length of study `head-neck-ct`; higher rates."""
    base = head_neck_ct()
    return pretext_search("pretext-ct", base, base.finetune, rates=(1e-3, 3e-3))


def pretext_search(
    name: str, base: StudyConfig, plan: FinetunePlan, rates: tuple[float, ...]
) -> StudyConfig:
    """Eight settings of each pretext task on one seed, at the full length of study `base`."""
    grid = product(rates, (16, 64), ((0.6, 0.1), (0.75, 0.5)))
    variants = [
        Variant(lr=lr, global_batch=batch, mask_ratio=mask_ratio, temperature=temperature)
        for lr, batch, (mask_ratio, temperature) in grid
    ]
    axes = ("lr", "global_batch", "mask_ratio", "temperature")
    return replace(
        ablation(name, axes, variants),
        data=base.data,
        arms=("simclr", "mae", "simmim"),
        seeds=(100,),
        pretrain=replace(base.pretrain, per_seed=False),
        finetune=plan,
        score_test=False,
    )


STUDIES: dict[str, Callable[[], StudyConfig]] = {
    "demo": demo,
    "hippocampus": hippocampus,
    "head-neck-ct": head_neck_ct,
    "swin": swin,
    "paper": paper,
    "paper-swin": paper_swin,
    "mask": ablate_mask,
    "decoder": ablate_decoder,
    "decode": ablate_decode,
    "resolution": ablate_resolution,
    "labels": ablate_labels,
    "pretext": search_pretext,
    "pretext-ct": search_pretext_ct,
}


def idle_fields(config: StudyConfig) -> dict[type, tuple[str, ...]]:
    """Fields that decide nothing in such a study, by class: no options of its command."""
    crops = {PrimusConfig: ("crop_size", "channels")}
    if config.swin is None:
        return crops
    return crops | {
        ViTConfig: IDLE_WITH_SWIN,
        PretrainPlan: ("mae",),
        FinetunePlan: ("feature_size",),
        StudyConfig: ("matching", "flops_of"),
    }


def study(name: str) -> StudyConfig:
    """The study of that name; a ConfigError lists the others."""
    if name not in STUDIES:
        raise ConfigError(f"no study {name!r}; one of: {', '.join(STUDIES)}")
    return STUDIES[name]()
