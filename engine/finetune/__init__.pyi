from .config import FinetuneConfig
from .finetune import run_finetune

__all__ = [
    "FinetuneConfig",
    "run_finetune",
]
