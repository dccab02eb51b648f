"""Named recipes: functions that return the whole configuration of a pretraining run.

`demo-*` train a tiny ViT in a minute on two CPU cores, so that all parts can be seen at work.
`btcv-*` and `brats-*` are the settings of Chen et al. 2022, "Masked image modeling advances 3D
medical image analysis" (WACV): ViT-B, crops of 96^3, patches of 16, mask ratio 0.75, L1 on raw
voxels, a decoder 512 wide and 8 deep, AdamW; SimCLR is their contrastive control. `mae-vit-*` are
plain starting points by size, `primus-*` and `resenc-*` the same for Primus and the U-Net,
`openmind-*` are as OpenMind's models were trained.
"""

from collections.abc import Callable
from dataclasses import replace

from mim3d.dataio.loader.config import LoaderConfig
from mim3d.dataio.registry import Registry, UnknownNameError
from mim3d.engine.distributed.config import ParallelConfig
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import (
    IDLE_WITH_SWIN,
    MAEConfig,
    MethodConfig,
    SimCLRConfig,
    SimMIMConfig,
    SwinConfig,
    ViTConfig,
    method_name,
)
from mim3d.engine.models.primus.config import PrimusConfig, primus
from mim3d.engine.models.resenc.config import (
    IDLE_WITH_RESENC,
    RESENC_S,
    RESENC_TINY,
    Masking,
)
from mim3d.engine.pretrain.config import PretrainConfig, PretrainLog
from mim3d.engine.pretrain.data import DECIDED_ELSEWHERE, DataConfig
from mim3d.engine.pretrain.openmind import openmind_primus_m, openmind_resenc
from mim3d.engine.runs.config import CheckpointConfig
from mim3d.engine.training.config import OptimConfig, ScheduleConfig

SIZES = {
    "tiny": (96, 6, 3),
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "h": (1280, 32, 16),
}
"""Width, depth and heads of the encoder by name."""
LOADER = LoaderConfig(augment="auto", cache="auto", threads=2)
"""What the recipes begin with: compressed chunks stay in memory, crops are augmented."""
DEVICE_CACHE = 32 << 30
"""Of a GPU of 80 GB two fifths, as much as a cache takes there; raise it where there is more.

Recipes fit one such GPU by their batch or by `most`, the crops of a micro-batch there; of more GPUs
each has a smaller share of the batch, which then need not be parted.
"""
MIM_METHODS: dict[str, MethodConfig] = {
    "mae": MAEConfig(loss="l1", normalise_target=False),
    "simmim": SimMIMConfig(loss="l1"),
    "simclr": SimCLRConfig(temperature=0.5),
}


def sized_vit(size: str, crop: int, patch: int, channels: int = 1) -> ViTConfig:
    """A ViT of a named size on cubic crops and patches."""
    width, depth, heads = SIZES[size]
    crop_size, patch_size = (crop, crop, crop), (patch, patch, patch)
    return ViTConfig(crop_size, patch_size, channels, width, depth, heads)


def demo(method: str) -> PretrainConfig:
    """A tiny ViT on 32^3 crops, for a minute on two CPU cores."""
    methods: dict[str, MethodConfig] = {
        "mae": MAEConfig(decoder_width=64, decoder_depth=2, decoder_heads=4, loss="l2"),
        "simmim": SimMIMConfig(loss="l1", mask_ratio=0.6),
        "simclr": SimCLRConfig(projection_hidden=192, projection_width=64),
    }
    return PretrainConfig(
        method=methods[method],
        vit=sized_vit("tiny", 32, 8),
        # Flips would hide how anatomy lies, which a minute is too short to learn both ways.
        data=DataConfig(
            loader=replace(
                LOADER,
                snap=8,
                cache_bytes=1 << 30,
                augment="contrastive" if method == "simclr" else "none",
            )
        ),
        schedule=ScheduleConfig(lr=2e-3 if method != "simclr" else 1e-3, warmup_steps=60),
        checkpoint=CheckpointConfig(every=300),
        log=PretrainLog(every=20, picture_every=300),
        global_batch=16,
        steps=600,
    )


def paper(method: str, channels: int) -> PretrainConfig:
    """The paper's ViT-B settings; BraTS has four modalities, BTCV one."""
    normalise = "window:-175:250" if channels == 1 else "zscore"
    return PretrainConfig(
        method=MIM_METHODS[method],
        vit=sized_vit("b", 96, 16, channels),
        data=DataConfig(
            loader=replace(LOADER, normalise=normalise, cache_bytes=32 << 30, threads=8)
        ),
        optim=OptimConfig(weight_decay=0.05),
        schedule=ScheduleConfig(lr=1e-4, warmup_steps=1000),
        global_batch=128,
        steps=100_000,
    )


def paper_swin(method: str) -> PretrainConfig:
    """The paper's Swin-B encoder for SimMIM and the contrastive control, on BTCV."""
    most = 0 if method == "simclr" else 32
    return replace(paper(method, 1), swin=SwinConfig(), max_micro_batch=most)


def mae_vit(size: str, crop: int, patch: int, most: int = 0) -> PretrainConfig:
    """MAE with per-patch normalised L2 targets, a plain starting point.

    The decoder's heads are of 64 features, of 128 where it sees so many patches that attention is
    half of the step: those of 32 that MAE has leave a GPU waiting for exponentials.
    """
    return PretrainConfig(
        method=MAEConfig(loss="l2", decoder_heads=8 if patch >= 16 else 4),
        vit=sized_vit(size, crop, patch),
        data=DataConfig(
            loader=replace(LOADER, cache="device", cache_bytes=DEVICE_CACHE, threads=8)
        ),
        schedule=ScheduleConfig(lr=3e-4, warmup_steps=2000),
        parallel=ParallelConfig(compile=True),
        global_batch=256,
        max_micro_batch=most,
        steps=100_000,
    )


def demo_primus(method: str) -> PretrainConfig:
    """The demo with a tiny Primus in the ViT's place."""
    base = demo(method)
    config = PrimusConfig((32, 32, 32), (8, 8, 8), width=96, depth=4, heads=4)
    if isinstance(base.method, MAEConfig):
        base = replace(base, method=replace(base.method, decoder_width=48))
    return replace(base, vit=config)


def primus_plain(method: str, size: str, crop: int, most: int) -> PretrainConfig:
    """Primus of a published size; AdamW and decoder as nnssl has them for Primus-M.

    MAE's targets are raw voxels, its decoder two blocks as wide as the encoder's.
    """
    vit = primus(size, crop, drop_path=0.2)
    methods: dict[str, MethodConfig] = {
        "mae": MAEConfig(
            loss="l2",
            normalise_target=False,
            decoder_width=vit.width,
            decoder_depth=2,
            decoder_heads=vit.heads,
        ),
        "simmim": SimMIMConfig(loss="l2"),
        "simclr": SimCLRConfig(temperature=0.5),
    }
    return replace(
        mae_vit("b", crop, 8, most),
        method=methods[method],
        vit=vit,
        optim=OptimConfig(weight_decay=0.05, beta2=0.98),
    )


def demo_resenc(masking: Masking) -> PretrainConfig:
    """A tiny U-Net on the demo's crops, which hides cubes of 8^3."""
    base = demo("mae")
    return replace(
        base,
        method=MAEConfig(loss="l2", normalise_target=False, mask_ratio=0.75),
        vit=ViTConfig((32, 32, 32), (8, 8, 8)),
        resenc=replace(RESENC_TINY, masking=masking),
    )


def primus_contrasted() -> PretrainConfig:
    """Primus-B by SimCLR: a device has all pairs of its share of a step at once."""
    base = primus_plain("simclr", "B", 96, 0)
    return replace(base, parallel=replace(base.parallel, recompute="full"), global_batch=128)


def resenc_plain(masking: Masking) -> PretrainConfig:
    """A small U-Net on 96^3 crops; the loss is the squared error of hidden voxels."""
    return replace(
        mae_vit("b", 96, 16, 64),
        method=MAEConfig(loss="l2", normalise_target=False),
        vit=ViTConfig((96, 96, 96), (16, 16, 16)),
        resenc=replace(RESENC_S, masking=masking),
    )


def mae_vit_l_160() -> PretrainConfig:
    """ViT-L on 160^3 crops with patches of 8: 8000 tokens, for 100,000 volumes seen 1280 times."""
    base = mae_vit("l", 160, 8, 128)
    return replace(
        base,
        data=DataConfig(loader=replace(LOADER, cache_bytes=256 << 30, threads=16)),
        schedule=ScheduleConfig(lr=3e-4, warmup_steps=10_000),
        parallel=ParallelConfig(compile=True, recompute="full"),
        checkpoint=CheckpointConfig(every=2000, keep=3),
        log=PretrainLog(every=50, picture_every=10_000),
        global_batch=512,
        steps=250_000,
    )


OURS: dict[str, Callable[[], PretrainConfig]] = {
    "demo-mae": lambda: demo("mae"),
    "demo-simmim": lambda: demo("simmim"),
    "demo-simclr": lambda: demo("simclr"),
    "btcv-mae": lambda: paper("mae", 1),
    "btcv-simmim": lambda: paper("simmim", 1),
    "btcv-simclr": lambda: paper("simclr", 1),
    "btcv-swin-simmim": lambda: paper_swin("simmim"),
    "btcv-swin-simclr": lambda: paper_swin("simclr"),
    "brats-mae": lambda: paper("mae", 4),
    "brats-simmim": lambda: paper("simmim", 4),
    "brats-simclr": lambda: paper("simclr", 4),
    "mae-vit-b-96": lambda: mae_vit("b", 96, 16),
    "mae-vit-l-128": lambda: mae_vit("l", 128, 16, 128),
    "mae-vit-l-128-p8": lambda: mae_vit("l", 128, 8, 16),
    "mae-vit-h-128": lambda: mae_vit("h", 128, 16, 64),
    "demo-primus-mae": lambda: demo_primus("mae"),
    "demo-primus-simmim": lambda: demo_primus("simmim"),
    "demo-primus-simclr": lambda: demo_primus("simclr"),
    "primus-s-mae-96": lambda: primus_plain("mae", "S", 96, 128),
    "primus-b-mae-96": lambda: primus_plain("mae", "B", 96, 64),
    "primus-b-simmim-96": lambda: primus_plain("simmim", "B", 96, 32),
    "primus-b-simclr-96": primus_contrasted,
    "primus-l-mae-160": lambda: primus_plain("mae", "L", 160, 8),
    "demo-resenc-mae": lambda: demo_resenc("dense"),
    "demo-resenc-sparse-mae": lambda: demo_resenc("sparse"),
    "resenc-s-mae-96": lambda: resenc_plain("dense"),
    "resenc-s-sparse-mae-96": lambda: resenc_plain("sparse"),
    "mae-vit-l-160-p8": mae_vit_l_160,
    "openmind-resenc-mae": openmind_resenc,
    "openmind-primus-m-mae": openmind_primus_m,
}
RECIPES: Registry[Callable[[], PretrainConfig]] = Registry("recipe", OURS)


MADE_FOR = {
    **dict.fromkeys(("demo-mae", "demo-simmim", "demo-simclr"), 0),
    **dict.fromkeys(("btcv-mae", "btcv-simmim", "btcv-simclr"), 1),
    **dict.fromkeys(("btcv-swin-simmim", "btcv-swin-simclr"), 8),
    **dict.fromkeys(("brats-mae", "brats-simmim", "brats-simclr", "mae-vit-b-96"), 1),
    **dict.fromkeys(("mae-vit-l-128", "mae-vit-l-128-p8", "mae-vit-h-128"), 8),
    **dict.fromkeys(("demo-primus-mae", "demo-primus-simmim", "demo-primus-simclr"), 0),
    **dict.fromkeys(("primus-s-mae-96", "primus-b-mae-96"), 1),
    **dict.fromkeys(("primus-b-simmim-96", "primus-b-simclr-96", "primus-l-mae-160"), 8),
    **dict.fromkeys(("demo-resenc-mae", "demo-resenc-sparse-mae"), 0),
    **dict.fromkeys(("resenc-s-mae-96", "resenc-s-sparse-mae-96"), 1),
    "mae-vit-l-160-p8": 64,
    **dict.fromkeys(("openmind-resenc-mae", "openmind-primus-m-mae"), 1),
}
"""GPUs that the batch was chosen for, by `mim3d plan`; 0 is a CPU. All but btcv-swin-simclr, whose
128 pairs of crops are the paper's, fit one of 80 GB."""


RENAMED = {
    "openmind-mae-vit-l-160": "mae-vit-l-160-p8, for it sees 64 times the crops that OpenMind's "
    "published models saw; theirs are openmind-primus-m-mae and openmind-resenc-mae",
}
"""Earlier names, and what became of each."""


def idle_fields(config: PretrainConfig) -> dict[type, tuple[str, ...]]:
    """Fields that decide nothing in a run such as this one, by class: no options of its command."""
    idle: dict[type, tuple[str, ...]] = {LoaderConfig: tuple(DECIDED_ELSEWHERE)}
    if config.swin is not None:
        idle[ViTConfig] = IDLE_WITH_SWIN
    if config.resenc is not None:
        idle[ViTConfig] = IDLE_WITH_RESENC
        idle[MAEConfig] = ("decoder_width", "decoder_depth", "decoder_heads", "decode_fraction")
    if not config.method.paints:
        idle[PretrainLog] = ("picture_every",)
    return idle


def recipe(name: str) -> PretrainConfig:
    """The recipe of that name; a ConfigError lists the others."""
    if name in RENAMED:
        raise ConfigError(f"recipe {name} is now {RENAMED[name]}")
    try:
        return RECIPES.find(name)()
    except UnknownNameError as error:
        raise ConfigError(str(error)) from None


def register_recipe(name: str, make: Callable[[], PretrainConfig], gpus: int = 0) -> None:
    """Add a plugin's recipe, made for so many GPUs; 0 is a CPU."""
    RECIPES.add(name, make)
    MADE_FOR[name] = gpus


def recipe_table() -> str:
    """The recipes, a line each: method, model, crop, patch, batch, and what each was made for."""
    rows = [("RECIPE", "method", "model", "crop", "patch", "batch", "made for")]
    for name in RECIPES:
        config, gpus = recipe(name), MADE_FOR[name]
        vit = config.vit
        rows.append(
            (
                *(name, method_name(config.method), model_name(config), cube(vit.crop_size)),
                *(cube(vit.patch_size), str(config.global_batch)),
                f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "a CPU",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


MODEL_NAMES = {"vit": "ViT", "primus": "Primus", "swin": "Swin", "resenc": "ResEnc"}


def model_name(config: PretrainConfig) -> str:
    """What the table calls a recipe's encoder, such as "ViT 768 x 12"."""
    kind = config.encoder.kind
    size = f"{config.vit.width} x {config.vit.depth}"
    if config.swin is not None:
        size = str(config.swin.feature_size)
    if config.resenc is not None:
        size = f"{config.resenc.width} x {config.resenc.stages}"
    return f"{MODEL_NAMES.get(kind, kind)} {size}"


def cube(size: tuple[int, int, int]) -> str:
    """`96^3`, or `32x64x64` where sides differ."""
    return f"{size[0]}^3" if len(set(size)) == 1 else "x".join(map(str, size))
