"""The steps that a calibration times: some to fit laws to, others to check them with.

Sizes differ between the two in batch, patch, crop, width and depth, and lie within one another's
range, for laws are not asked beyond it.
"""

from dataclasses import dataclass, replace
from typing import Literal

from mim3d.dataio.geometry import Triple
from mim3d.engine.models.config import MAEConfig, MethodConfig, SimMIMConfig, ViTConfig
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.resenc.config import RESENC_L, RESENC_S, ResEncConfig
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.recipes import recipe

Role = Literal["fit", "check"]


@dataclass(frozen=True)
class Probe:
    """A step of so many crops, and what it is for."""

    name: str
    config: PretrainConfig
    role: Role


def probes_of(kind: str, asked: PretrainConfig | None = None, name: str = "") -> list[Probe]:
    """Those of a device's kind, and the recipe that was asked for."""
    found = gpu_probes() if kind == "cuda" else cpu_probes()
    if asked is not None:
        found.append(Probe(f"{name}, {asked.global_batch} crops", eager(asked), "fit"))
    return found


def cpu_probes() -> list[Probe]:
    """Milliseconds to tenths of a second on a core.

    U-Nets have two crops at least: on one thread torch takes another, slower way with one.
    """
    tiny, small = (8, 16, 24), (16, 32, 64)
    return [
        vit("fit", 96, 2, 3, 32, 8, 16),
        vit("fit", 96, 3, 3, 32, 8, 4),
        vit("fit", 192, 2, 3, 48, 8, 3),
        vit("fit", 384, 2, 6, 32, 8, 6),
        vit("fit", 192, 1, 6, 32, 4, 2),
        vit("fit", 384, 1, 6, 48, 8, 2, method="simmim"),
        primus("fit", 96, 2, 4, 32, 8, 12),
        primus("fit", 96, 1, 4, 32, 8, 4),
        primus("fit", 192, 1, 8, 48, 8, 2),
        unet("fit", tiny, 32, 8),
        unet("fit", small, 32, 2),
        unet("fit", (16, 32), 48, 2),
        unet("fit", (8, 16, 32), 48, 3),
        unet("fit", (32, 64), 32, 2),
        vit("check", 96, 6, 3, 32, 8, 8),
        vit("check", 96, 3, 3, 48, 8, 6),
        vit("check", 192, 3, 3, 32, 4, 1),
        vit("check", 384, 3, 6, 32, 8, 12),
        vit("check", 192, 4, 6, 32, 8, 8, method="simmim"),
        primus("check", 96, 4, 4, 32, 8, 6),
        primus("check", 192, 2, 8, 32, 8, 8),
        unet("check", tiny, 48, 2),
        unet("check", (8, 16, 32), 32, 6),
        unet("check", small, 32, 4),
        unet("check", small, 48, 2),
    ]


def gpu_probes() -> list[Probe]:
    """Milliseconds on a data centre's GPU: widths and tokens of the recipes, few blocks."""
    return [
        vit("fit", 768, 2, 12, 96, 16, 32),
        vit("fit", 768, 2, 12, 96, 8, 8),
        vit("fit", 1024, 2, 16, 128, 16, 64),
        vit("fit", 1280, 2, 16, 128, 16, 16),
        primus("fit", 864, 2, 12, 96, 8, 8),
        primus("fit", 864, 1, 12, 160, 8, 2),
        unet("fit", RESENC_L.features, 96, 2, RESENC_L.blocks),
        unet("fit", RESENC_S.features, 96, 8, RESENC_S.blocks),
        vit("check", 768, 12, 12, 96, 16, 64),
        vit("check", 1024, 6, 16, 128, 16, 32),
        vit("check", 1024, 3, 16, 128, 8, 8),
        primus("check", 864, 8, 12, 160, 8, 4),
        unet("check", RESENC_L.features, 160, 2, RESENC_L.blocks),
    ]


def vit(
    role: Role, width: int, depth: int, heads: int, crop: int, patch: int, batch: int,
    method: str = "mae",
) -> Probe:  # fmt: skip
    """A ViT with MAE's decoder half as wide, or SimMIM's head."""
    chosen: MethodConfig = SimMIMConfig()
    if method == "mae":
        chosen = MAEConfig(
            decoder_width=width // 2, decoder_depth=max(1, depth // 2), decoder_heads=heads
        )
    shape = ViTConfig(cube(crop), cube(patch), 1, width, depth, heads)
    name = f"ViT {width} x {depth}, {method}, {crop}^3 by {patch}^3, {batch} crops"
    return Probe(name, step_config(chosen, shape, batch), role)


def primus(
    role: Role, width: int, depth: int, heads: int, crop: int, patch: int, batch: int
) -> Probe:
    """A Primus with MAE's decoder, two blocks as wide."""
    chosen = MAEConfig(decoder_width=width, decoder_depth=2, decoder_heads=heads, loss="l2")
    shape = PrimusConfig(cube(crop), cube(patch), 1, width, depth, heads, drop_path=0.1)
    name = f"Primus {width} x {depth}, mae, {crop}^3 by {patch}^3, {batch} crops"
    return Probe(name, step_config(chosen, shape, batch), role)


def unet(
    role: Role, features: tuple[int, ...], crop: int, batch: int, blocks: tuple[int, ...] = ()
) -> Probe:
    """A residual-encoder U-Net that paints, cubes of 8^3 hidden."""
    chosen = MAEConfig(loss="l2", normalise_target=False)
    shape = ViTConfig(cube(crop), (8, 8, 8))
    resenc = ResEncConfig(features, blocks or (1,) * len(features))
    name = f"ResEnc {'-'.join(map(str, features))}, mae, {crop}^3, {batch} crops"
    return Probe(name, replace(step_config(chosen, shape, batch), resenc=resenc), role)


def cube(side: int) -> Triple:
    """Equal sides."""
    return side, side, side


def step_config(method: MethodConfig, vit: ViTConfig, batch: int) -> PretrainConfig:
    """The demo's run with another model."""
    base = recipe("demo-mae")
    return replace(base, method=method, vit=vit, global_batch=batch)


def eager(config: PretrainConfig) -> PretrainConfig:
    """Without compilation, whose kernels are no operations of torch's, in one micro-batch."""
    parallel = replace(config.parallel, compile=False, grad_accum=1, recompute=False)
    return replace(config, parallel=parallel)
