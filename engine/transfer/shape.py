"""What encoder a source of weights holds: as its card or run tells, or as its tensors show."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mim3d.engine.models.config import SwinConfig, ViTConfig
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.registry import EncoderShape
from mim3d.engine.models.resenc.config import Backbone
from mim3d.engine.runs.encoder_file import card_shape
from mim3d.engine.transfer.given_weights import GivenWeights, card_of, open_encoder
from mim3d.engine.transfer.key_layouts import translate
from mim3d.engine.transfer.start import cube_edge

HEAD_WIDTH = 64
"""Features of an attention head in nearly every published ViT."""


@dataclass(frozen=True)
class GivenShape(EncoderShape):
    """The encoder that weights are of, and a line for what of it is a guess."""

    guesses: tuple[str, ...] = ()


def encoder_shape(
    source: str,
    vit: ViTConfig,
    backbone: Backbone | None = None,
    given: GivenWeights | None = None,
) -> GivenShape:
    """The encoder that weights are of; `vit` and `backbone` stand for what nothing tells.

    `given` are the weights where they are open already. Raises CheckpointError where there are
    none.
    """
    card = card_of(source) if given is None else given.card
    if not isinstance(card.get("vit"), Mapping):
        if backbone is not None or isinstance(vit, PrimusConfig):
            return GivenShape(vit, backbone)  # what does not fit is told where it is taken over
        return shape_of_tensors(source, given or open_encoder(source), vit)
    stored = card_shape(card)
    found = stored.vit
    if isinstance(found, PrimusConfig) and isinstance(vit, PrimusConfig):
        found = replace(found, drop_path=vit.drop_path)  # of training, not of the weights
    return GivenShape(found, stored.backbone)


def shape_of_tensors(source: str, given: GivenWeights, vit: ViTConfig) -> GivenShape:
    """A plain ViT's shape by its tensors' sizes, in MONAI's, timm's or our names."""
    named = translate(given.tensors, given.place)
    tensors = named.tensors
    width = len(tensors["blocks.0.norm1.weight"])
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    found: dict[str, Any] = {"width": width, "depth": len(blocks)}
    found["mlp_ratio"] = len(tensors["blocks.0.mlp.fc1.weight"]) / width
    kernel = tensors["patch_embed.weight"]
    patch = vit.patch_size
    if kernel.ndim == 5:
        sizes = tuple(int(size) for size in kernel.shape[2:])
        patch = sizes[::-1] if named.layout == "monai" else sizes
        found |= {"channels": kernel.shape[1], "patch_size": patch}
    notes: list[str] = []
    heads = given.card.get("arguments", {}).get("num_heads")
    if heads is None:
        heads = vit.heads if width == vit.width else max(width // HEAD_WIDTH, 1)
        notes.append(
            f"{source} does not tell its attention heads: {heads} is a guess; --vit.heads N "
            "otherwise"
        )
    found["heads"] = heads
    if "pos_embed" in tensors:
        found["position"] = "learned"
        count = tensors["pos_embed"].numel() // width - named.extra_tokens
        if edge := cube_edge(count):
            found["crop_size"] = tuple(edge * size for size in patch)
    crop = found.get("crop_size", vit.crop_size)
    found["crop_size"] = tuple(
        max(size // step, 1) * step for size, step in zip(crop, patch, strict=True)
    )
    whole = ViTConfig(**{"patch_size": patch, "channels": vit.channels, **found})
    return GivenShape(whole, guesses=tuple(notes))


def in_words(source: str | Path, shape: EncoderShape) -> str:
    """The encoder that is taken from there, as a line."""
    vit = shape.vit
    kind = f"{vit.width} features x {vit.depth} blocks"
    if shape.backbone is not None:
        kind = f"a {'Swin' if isinstance(shape.backbone, SwinConfig) else 'residual encoder'}"
    return (
        f"{source} holds: {kind}, crop {vit.crop_size}, patch {vit.patch_size}, channels "
        f"{vit.channels}; the options of the encoder that are not given are set to these"
    )
