"""From a configuration to the module it describes: mim3d's own ways, which the registry names."""

from typing import Any

import torch

from mim3d.dataio.registry import resolved
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import (
    MAEConfig,
    MethodConfig,
    SimCLRConfig,
    SimMIMConfig,
    ViTConfig,
)
from mim3d.engine.models.mae import MAE
from mim3d.engine.models.objective import Objective
from mim3d.engine.models.primus.mae import PrimusMAE
from mim3d.engine.models.registry import EncoderShape, way_of
from mim3d.engine.models.resenc.methods import ResEncMAE
from mim3d.engine.models.simclr import SimCLR
from mim3d.engine.models.simmim import SimMIM
from mim3d.engine.models.swin import SwinSimMIM


def build_method(method: MethodConfig, vit: ViTConfig, backbone: Any, seed: int) -> Objective:
    """The pretext module, its weights drawn from `seed` on the CPU, the same on any rank.

    `backbone` is the configuration of an encoder in the ViT's place, such as a SwinConfig, or None.
    A ConfigError where a plugin's method gives something else than an Objective with an encoder.
    """
    shape = EncoderShape(vit, backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = resolved(way_of(method, shape).build)(method, shape, seed)
    if not isinstance(module, Objective) or not isinstance(
        getattr(module, "encoder", None), torch.nn.Module
    ):
        raise ConfigError(
            f"the pretext method {method.name!r} built a {type(module).__name__}, not an Objective "
            "with a module named encoder: derive its class from Objective and set self.encoder"
        )
    return module


def mae_vit(config: MAEConfig, shape: EncoderShape, seed: int) -> Objective:
    """MAE on a ViT."""
    return MAE(config, shape.vit, seed)


def mae_primus(config: MAEConfig, shape: EncoderShape, seed: int) -> Objective:
    """MAE on a Primus, with a decoder of its kind."""
    return PrimusMAE(config, shape.config, seed)


def mae_resenc(config: MAEConfig, shape: EncoderShape, seed: int) -> Objective:
    """MAE on a U-Net, dense or sparse."""
    return ResEncMAE(config, shape.backbone, shape.vit, seed)


def simmim_vit(config: SimMIMConfig, shape: EncoderShape, seed: int) -> Objective:
    """SimMIM on any transformer."""
    return SimMIM(config, shape.vit, seed)


def simmim_swin(config: SimMIMConfig, shape: EncoderShape, seed: int) -> Objective:
    """SimMIM on Swin, which hides whole tokens."""
    if any(patch % 2 for patch in shape.vit.patch_size):
        raise ConfigError(
            f"vit.patch_size {shape.vit.patch_size} must be even for Swin's 2^3 tokens"
        )
    return SwinSimMIM(config, shape.backbone, shape.vit, seed)


def simclr_any(config: SimCLRConfig, shape: EncoderShape, seed: int) -> Objective:
    """SimCLR on any encoder that gives tokens."""
    return SimCLR(config, shape.make(), shape.width)
