"""NVIDIA apex, found without importing the unrelated package of that name on PyPI."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

from mim3d.engine.errors import ConfigError

BUILD = (
    "git clone https://github.com/NVIDIA/apex && cd apex && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 "
    "pip install -v --no-build-isolation ."
)
CLASSES = {"adamw": "FusedAdam", "lamb": "FusedLAMB"}


def apex_problem() -> str | None:
    """Why apex's fused optimisers cannot be used, with the remedy; None where they can."""
    found = importlib.util.find_spec("apex")
    if found is None:
        return f"NVIDIA apex is not installed. Build it: {BUILD}"
    folders = [Path(place) for place in found.submodule_search_locations or ()]
    if not any((folder / "multi_tensor_apply").is_dir() for folder in folders):
        return (
            f"the package apex at {', '.join(map(str, folders)) or found.origin} is not NVIDIA's "
            "(PyPI's apex is an unrelated authentication toolkit). Remove it (pip uninstall apex) "
            f"and build NVIDIA's: {BUILD}"
        )
    if importlib.util.find_spec("amp_C") is None:
        return f"NVIDIA apex was built without its CUDA extensions (no amp_C). Build it: {BUILD}"
    if not torch.cuda.is_available():
        return "NVIDIA apex's fused optimisers need a CUDA device, and none is visible"
    return None


def load_apex(kind: str) -> Any:
    """The optimiser class for `kind` adamw or lamb; a ConfigError says how to get apex."""
    problem = apex_problem()
    if problem is not None:
        raise ConfigError(
            f"optim.impl apex: {problem}. Or use --optim.impl torch, which is fused too"
        )
    return getattr(importlib.import_module("apex.optimizers"), CLASSES[kind])
