"""From a configuration to the module it describes."""

import torch

from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import (
    MAEConfig,
    MethodConfig,
    SimMIMConfig,
    SwinConfig,
    ViTConfig,
)
from mim3d.engine.models.encoder import make_encoder
from mim3d.engine.models.mae import MAE
from mim3d.engine.models.objective import Objective
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.primus.mae import PrimusMAE
from mim3d.engine.models.resenc.config import NO_SIMMIM, Backbone, ResEncConfig
from mim3d.engine.models.resenc.encoder import ResEncEncoder
from mim3d.engine.models.resenc.methods import ResEncMAE
from mim3d.engine.models.simclr import SimCLR
from mim3d.engine.models.simmim import SimMIM
from mim3d.engine.models.swin import SwinEncoder, SwinSimMIM


def build_method(
    method: MethodConfig, vit: ViTConfig, backbone: Backbone | None, seed: int
) -> Objective:
    """The pretext module, its weights drawn from `seed` on the CPU, the same on any rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(backbone, ResEncConfig):
            return _build_resenc(method, vit, backbone, seed)
        return _build(method, vit, backbone, seed)


def _build_resenc(
    method: MethodConfig, vit: ViTConfig, resenc: ResEncConfig, seed: int
) -> Objective:
    if isinstance(method, MAEConfig):
        return ResEncMAE(method, resenc, vit, seed)
    if isinstance(method, SimMIMConfig):
        raise ConfigError(NO_SIMMIM)
    return SimCLR(method, ResEncEncoder(resenc, vit), resenc.width)


def _build(method: MethodConfig, vit: ViTConfig, swin: SwinConfig | None, seed: int) -> Objective:
    if isinstance(method, MAEConfig):
        if isinstance(vit, PrimusConfig):
            return PrimusMAE(method, vit, seed)
        return MAE(method, vit, seed)
    if isinstance(method, SimMIMConfig):
        if swin is None:
            return SimMIM(method, vit, seed)
        if any(patch % 2 for patch in vit.patch_size):
            raise ConfigError(f"vit.patch_size {vit.patch_size} must be even for Swin's 2^3 tokens")
        return SwinSimMIM(method, swin, vit, seed)
    encoder = make_encoder(vit) if swin is None else SwinEncoder(swin, vit)
    return SimCLR(method, encoder, vit.width if swin is None else swin.width)
