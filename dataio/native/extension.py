"""The loops in C, loaded: None where they were not built, and numpy gives the same, slower."""

import importlib
from functools import cache
from typing import Any

LOOPS = {
    "_chunks": "volumes to chunks",
    "_crops": "chunks to crops",
    "_streams": "chunks to streams for the GPU",
    "_views": "crops to augmented views",
}
"""Each module by name, and what it does."""
NEWEST = {"_chunks": "tally", "_crops": "RUNS"}
"""A name that a module built from earlier sources lacks: it would not do."""


def chunk_loops() -> Any:
    """Volumes to chunks (chunks.c); None where it was not built."""
    return loaded("_chunks")


def crop_loops() -> Any:
    """Stored chunks to crops (crops.c); None where it was not built."""
    return loaded("_crops")


def stream_loops() -> Any:
    """Stored chunks to packed streams (streams.c); None where it was not built."""
    return loaded("_streams")


def view_loops() -> Any:
    """Crops to augmented views (views.c); None where it was not built."""
    return loaded("_views")


def not_built() -> list[str]:
    """Names of the modules that are not there."""
    return [name for name in LOOPS if loaded(name) is None]


@cache
def loaded(name: str) -> Any:
    """The module of that name; None where it was not built, or not from these sources."""
    try:
        module = importlib.import_module(f"mim3d.dataio.native.{name}")
    except ImportError:
        return None
    return module if hasattr(module, NEWEST.get(name, "__name__")) else None
