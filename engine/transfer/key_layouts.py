"""Names of a ViT's tensors in other libraries, turned into ours.

    mim3d  blocks.0.attn.qkv.weight, patch_embed.weight (a linear layer over patch rows)
    monai  blocks.0.mlp.linear1.weight, attn.out_proj, patch_embedding.*: MONAI's ViT and UNETR,
           and the MAE of Chen et al. 2022 (MIM-Med3D), whose encoder is MONAI's
    timm   blocks.0.mlp.fc1.weight, patch_embed.proj.* (a 3D convolution), pos_embed with a class
           token before it; q_bias, v_bias and gamma_1 as BEiT has them (MIM-Med3D's SimMIM)

Layer scales are multiplied into the projections behind them, missing biases of queries, keys and
values are zeros: the function stays the same.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mim3d.engine.errors import CheckpointError

Layout = Literal["mim3d", "monai", "timm"]
WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before names."""
FIRST = re.compile(r"((?:.*\.)?)blocks\.0\.norm1\.weight")
LIKELY = ("encoder.", "", "vit.", "backbone.", "model.")
RENAMED = {"attn.out_proj.": "attn.proj.", "mlp.linear1.": "mlp.fc1.", "mlp.linear2.": "mlp.fc2."}
KERNELS = {
    "patch_embed.proj.weight": "patch_embed.weight",
    "patch_embedding.patch_embeddings.weight": "patch_embed.weight",
    "patch_embedding.patch_embeddings.1.weight": "patch_embed.weight",
    "patch_embed.proj.bias": "patch_embed.bias",
    "patch_embedding.patch_embeddings.bias": "patch_embed.bias",
    "patch_embedding.patch_embeddings.1.bias": "patch_embed.bias",
    "patch_embedding.position_embeddings": "pos_embed",
}
SCALES = {"ls1.gamma": "attn.proj", "gamma_1": "attn.proj", "ls2.gamma": "mlp.fc2"}
SCALES["gamma_2"] = "mlp.fc2"
CLASS_TOKENS = ("cls_token", "dist_token", "reg_token", "register_tokens")
NO_PATCHES = (
    "{} has blocks and no patch embedding (patch_embed.weight, patch_embed.proj.weight or "
    "patch_embedding.*): give a file of the whole encoder"
)


@dataclass(frozen=True)
class Translated:
    """An encoder's tensors under our names; the patch kernel and positions still in their form."""

    layout: Layout
    prefix: str
    """Stood before the encoder's names."""
    tensors: dict[str, Tensor]
    others: dict[str, Tensor]
    """What is not the encoder's, under its own names."""
    extra_tokens: int = 0
    """Class and register tokens of the file, which ours has not."""
    notes: list[str] = field(default_factory=list)


def translate(given: Mapping[str, Tensor], place: object) -> Translated:
    """Find a ViT among tensors by name; CheckpointError where there is none."""
    named = {unwrapped(name): tensor for name, tensor in given.items()}
    prefix = encoder_prefix(named, place)
    part = {name[len(prefix) :]: t for name, t in named.items() if name.startswith(prefix)}
    others = {name: t for name, t in named.items() if not name.startswith(prefix)}
    layout = layout_of(part, place)
    ours = {renamed(name): tensor for name, tensor in part.items()}
    norm = ours["blocks.0.norm1.weight"]
    if "patch_embed.weight" not in ours:
        raise CheckpointError(NO_PATCHES.format(place))
    if "norm.weight" not in ours and "fc_norm.weight" in ours:
        ours |= {f"norm.{leaf}": ours.pop(f"fc_norm.{leaf}") for leaf in ("weight", "bias")}
    notes = [*fold_scales(ours), *complete_biases(ours)]
    # A distilled or registered ViT has positions for some of these; a class token always has.
    tokens = sum(ours[name].numel() // len(norm) for name in CLASS_TOKENS if name in ours)
    return Translated(layout, prefix, ours, others, tokens, notes)


def unwrapped(name: str) -> str:
    """A name without what wrappers add."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def encoder_prefix(named: Mapping[str, Tensor], place: object) -> str:
    """What stands before the names of the encoder's blocks."""
    found = [match[1] for name in named if (match := FIRST.fullmatch(name))]
    if not found:
        raise CheckpointError(
            f"{place} holds no vision transformer whose names are known (no blocks.0.norm1.weight; "
            f"it has {', '.join(sorted(named)[:3]) or 'nothing'}): rename its tensors to MONAI's "
            "or timm's names, and give that file"
        )
    likely = [prefix for prefix in LIKELY if prefix in found]
    return likely[0] if likely else min(found, key=len)


def layout_of(part: Mapping[str, Tensor], place: object) -> Layout:
    """Whose names these are, told by the patch embedding."""
    if any(name.startswith("patch_embedding.") for name in part):
        return "monai"
    if "patch_embed.proj.weight" in part:
        return "timm"
    if "patch_embed.weight" in part:
        return "mim3d"
    raise CheckpointError(NO_PATCHES.format(place))


def renamed(name: str) -> str:
    """Our name for a tensor of the encoder."""
    for theirs, ours in RENAMED.items():
        name = name.replace(theirs, ours)
    return KERNELS.get(name, name)


def fold_scales(ours: dict[str, Tensor]) -> list[str]:
    """Multiply layer scales into the layers that they scale."""
    found = [name for name in ours if name.partition(".")[2].partition(".")[2] in SCALES]
    for name in found:
        _, block, scale = name.split(".", 2)
        layer = f"blocks.{block}.{SCALES[scale]}"
        gamma = ours.pop(name)
        for leaf in ("weight", "bias"):
            if (tensor := ours.get(f"{layer}.{leaf}")) is not None:
                ours[f"{layer}.{leaf}"] = (
                    gamma[:, None] * tensor if leaf == "weight" else (gamma * tensor)
                )
    return [f"{len(found)} layer scales multiplied into the layers before them"] * bool(found)


def complete_biases(ours: dict[str, Tensor]) -> list[str]:
    """Biases of queries, keys and values where the file has none, or has them apart."""
    blank = 0
    for name in [name for name in ours if name.endswith("attn.qkv.weight")]:
        base = name.removesuffix("qkv.weight")
        if f"{base}qkv.bias" in ours:
            continue
        query, value = ours.pop(f"{base}q_bias", None), ours.pop(f"{base}v_bias", None)
        zeros = torch.zeros(len(ours[name]) // 3)
        blank += query is None
        parts = [zeros if query is None else query, zeros, zeros if value is None else value]
        ours[f"{base}qkv.bias"] = torch.cat([part.float() for part in parts])
    return [f"{blank} blocks have no bias of queries, keys and values: zeros"] * bool(blank)
