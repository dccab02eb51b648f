"""What an nnssl checkpoint tells beside its weights: the adaptation plan that nnU-Net reads.

Such a file is a .pth with `network_weights` and, beside them, `nnssl_adaptation_plan`, which tells
the architecture and the crop it was pretrained on; OpenMind's published ones are such.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

PLAN = "nnssl_adaptation_plan"


def nnssl_card(file: Path) -> dict[str, Any]:
    """What an nnssl checkpoint tells beside its weights; nothing of other files."""
    if not zipfile.is_zipfile(file):
        return {}
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        return {}  # reading the weights themselves tells why
    plan = content.get(PLAN) if isinstance(content, dict) else None
    return {"nnssl": plan} if isinstance(plan, dict) else {}


def pretrained_crop(card: Mapping[str, Any]) -> tuple[int, ...]:
    """Voxels of the crops that an adaptation plan tells; empty where it tells none."""
    plan = card.get("nnssl") or {}
    configurations = (plan.get("pretrain_plan") or {}).get("configurations") or {}
    crops = [plan.get("pretrain_patch_size")]
    crops += [one.get("patch_size") for one in configurations.values() if isinstance(one, dict)]
    crops.append(plan.get("recommended_downstream_patchsize"))
    return next((tuple(map(int, crop)) for crop in crops if crop), ())
