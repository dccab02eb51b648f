from .config import (
    MAEConfig,
    MethodConfig,
    SimCLRConfig,
    SimMIMConfig,
    SwinConfig,
    ViTConfig,
)
from .mae import MAE
from .objective import Objective, StepOutput
from .registering import register_way
from .registry import EncoderShape
from .simclr import SimCLR
from .simmim import SimMIM
from .swin import SwinEncoder
from .vit import ViT3D

__all__ = [
    "MAE",
    "EncoderShape",
    "MAEConfig",
    "MethodConfig",
    "Objective",
    "SimCLR",
    "SimCLRConfig",
    "SimMIM",
    "SimMIMConfig",
    "StepOutput",
    "SwinConfig",
    "SwinEncoder",
    "ViT3D",
    "ViTConfig",
    "register_way",
]
