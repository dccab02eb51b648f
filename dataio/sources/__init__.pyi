from .discover import discover
from .source import Discovery, Source

__all__ = [
    "Discovery",
    "Source",
    "discover",
]
