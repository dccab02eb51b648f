from .conversion import Conversion

__all__ = [
    "Conversion",
]
