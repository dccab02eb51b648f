from .batch import Batch
from .config import LoaderConfig
from .loader import Loader

__all__ = [
    "Batch",
    "Loader",
    "LoaderConfig",
]
