from .encoder_file import load_encoder
from .export import export_encoder

__all__ = [
    "export_encoder",
    "load_encoder",
]
