from .config import PretrainConfig
from .pretrain import run_pretrain
from .recipes import recipe

__all__ = [
    "PretrainConfig",
    "recipe",
    "run_pretrain",
]
