from .config import EmbedConfig, PredictConfig
from .embed import run_embed
from .predict import run_predict

__all__ = [
    "EmbedConfig",
    "PredictConfig",
    "run_embed",
    "run_predict",
]
