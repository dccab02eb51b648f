"""From a configuration to the module it describes."""

import torch
from torch import nn

from mim3d.engine.config import PretrainConfig
from mim3d.engine.errors import ConfigError
from mim3d.engine.mae import MAE, MAEConfig
from mim3d.engine.simclr import SimCLR
from mim3d.engine.simmim import SimMIM, SimMIMConfig
from mim3d.engine.swin import SwinEncoder, SwinSimMIM
from mim3d.engine.vit import ViT3D


def build_method(config: PretrainConfig) -> nn.Module:
    """The pretext module, its weights drawn from `config.seed` on the CPU, the same on any rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _build(config)


def _build(config: PretrainConfig) -> nn.Module:
    method, vit, swin = config.method, config.vit, config.swin
    if isinstance(method, MAEConfig):
        return MAE(method, vit, config.seed)
    if isinstance(method, SimMIMConfig):
        if swin is None:
            return SimMIM(method, vit, config.seed)
        if any(patch % 2 for patch in vit.patch_size):
            raise ConfigError(f"vit.patch_size {vit.patch_size} must be even for Swin's 2^3 tokens")
        return SwinSimMIM(method, swin, vit, config.seed)
    encoder = ViT3D(vit) if swin is None else SwinEncoder(swin, vit)
    return SimCLR(method, encoder, vit.width if swin is None else swin.width)
