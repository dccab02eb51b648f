"""From a ViT's configuration to its module."""

from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.primus.encoder import Primus3D
from mim3d.engine.models.vit import ViT3D


def make_encoder(vit: ViTConfig) -> ViT3D:
    """The encoder that `vit` describes, with fresh weights."""
    return Primus3D(vit) if isinstance(vit, PrimusConfig) else ViT3D(vit)
