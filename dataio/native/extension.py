"""The compiled loops, loaded: None where they were not built."""

import importlib
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def chunk_loops() -> Any:
    """Volumes to chunks (chunks.c); None where it was not built."""
    return _extension("_chunks")


@lru_cache(maxsize=1)
def crop_loops() -> Any:
    """Stored chunks to crops and to packed streams (crops.c); None where it was not built."""
    return _extension("_crops")


def _extension(name: str) -> Any:
    try:
        return importlib.import_module(f"mim3d.dataio.native.{name}")
    except ImportError:
        return None
