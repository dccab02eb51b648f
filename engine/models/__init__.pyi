from .mae import MAE, MAEConfig
from .simclr import SimCLR, SimCLRConfig
from .simmim import SimMIM, SimMIMConfig
from .swin import SwinConfig, SwinEncoder
from .vit import ViT3D, ViTConfig

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
