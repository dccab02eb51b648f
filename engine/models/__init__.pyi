from .config import MAEConfig, SimCLRConfig, SimMIMConfig, SwinConfig, ViTConfig
from .mae import MAE
from .simclr import SimCLR
from .simmim import SimMIM
from .swin import SwinEncoder
from .vit import ViT3D

__all__ = [
    "MAE",
    "MAEConfig",
    "SimCLR",
    "SimCLRConfig",
    "SimMIM",
    "SimMIMConfig",
    "SwinConfig",
    "SwinEncoder",
    "ViT3D",
    "ViTConfig",
]
