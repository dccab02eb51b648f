"""Encoder weights in the forms other libraries load.

    safetensors        the weights under our names, with a JSON card
    monai-vit          state dict of monai.networks.nets.ViT, any patch size and depth
    monai-unetr        state dict of monai.networks.nets.UNETR: its `vit.*` tensors
    monai-swinunetr    state dict of monai.networks.nets.SwinUNETR: its `swinViT.*` tensors
    nnunet             a .pth with nnssl's adaptation plan, see nnunet_form.py

The MONAI forms are safetensors too, to be loaded with `strict=False`: the decoder is not
pretrained. What stays missing is told in the card, so that a loader can check it by name.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import SwinConfig, ViTConfig
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.runs.config import Axes, Format
from mim3d.engine.runs.encoder_file import (
    card_shape,
    load_encoder,
    load_swin,
    read_card,
    refuse_changed_weights,
)
from mim3d.engine.runs.files import file_sha256, read_json
from mim3d.engine.runs.model_card import MUST, model_card
from mim3d.engine.runs.nnunet_form import patch_kernel, write_nnunet
from mim3d.engine.runs.tensor_files import copy_file, save_safetensors

UNETR_PATCH, UNETR_DEPTH = (16, 16, 16), 12
"""MONAI's UNETR has these built in."""


@dataclass(frozen=True)
class Exported:
    """What was written: the weights' file, its card, and how many tensors."""

    weights: Path
    card: Path
    tensors: int
    readme: Path
    """The card for people, with the code that loads the weights."""
    must_set: dict[str, Any]
    """Arguments of the other library's network without which tensors are lost."""


def export_encoder(
    run: str | Path,
    form: Format,
    target: str | Path,
    axes: Axes,
    decoder: Mapping[str, Tensor] | None = None,
) -> Exported:
    """Write a run's encoder to `target` (.safetensors, for nnunet .pth) with a card beside it.

    `axes` is the order in which the other library holds a volume's space: MONAI's loaders give
    x, y, z; ours, SimpleITK's and nnU-Net's z, y, x. For monai-unetr the weights are turned
    accordingly. `decoder` is a pretrained U-Net's, which nnunet takes with its encoder.
    """
    target = Path(target)
    suffix = ".pth" if form == "nnunet" else ".safetensors"
    if target.suffix != suffix:
        raise ConfigError(f"{target} must end in {suffix}: that is what {form} is written as")
    source, card = read_card(run)
    if target.with_suffix("").resolve() == source.with_suffix("").resolve():
        raise ConfigError(
            f"{target} or its card would replace {source} or its own: choose another name"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    if form == "nnunet":
        described = write_nnunet(run, card, target, decoder)
        count = int(described.pop("tensors"))
        return finish(target, {**provenance(card), **described, "axes": "zyx"}, count)
    if form == "safetensors":
        refuse_changed_weights(source, card)
        copy_file(source, target)
        return finish(target, {**card, "weights": target.name}, len(load_names(target)))
    makers: dict[str, Callable[..., tuple[dict[str, Tensor], dict[str, Any]]]] = {
        "monai-vit": vit_form,
        "monai-unetr": unetr_form,
        "monai-swinunetr": swinunetr_form,
    }
    tensors, described = makers[form](run, card, axes)
    save_safetensors(tensors, target)
    return finish(target, {**provenance(card), **described, "axes": axes}, len(tensors))


def finish(target: Path, card: dict[str, Any], tensors: int) -> Exported:
    """Write the card with the hash of the weights."""
    file = target.with_suffix(".json")
    card = {**card, "weights": target.name, "weights_sha256": file_sha256(target)}
    file.write_text(json.dumps(card, indent=2) + "\n")
    readme = target.with_suffix(".md")
    readme.write_text(model_card(read_json(file), target.name), encoding="utf-8")
    return Exported(target, file, tensors, readme, card.get(MUST, {}))


def load_names(weights: Path) -> list[str]:
    """Names of the tensors in a file."""
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as stored:
        return list(stored.keys())


def provenance(card: dict[str, Any]) -> dict[str, Any]:
    """What of a card stays true in another form."""
    dropped = {"format", "kind", "swin", "resenc", "weights", "weights_sha256"}
    return {key: value for key, value in card.items() if key not in dropped}


def plain_vit(run: str | Path, card: dict[str, Any], form: str) -> ViT3D:
    """The encoder, which must be the transformer that MONAI has; ConfigError for another."""
    if card["kind"] == "primus":
        raise ConfigError(
            f"{run} holds a Primus, whose rotary positions and gated MLPs MONAI's networks have "
            "not: export it as nnunet or safetensors"
        )
    if card["kind"] == "resenc":
        raise ConfigError(
            f"{run} holds a U-Net's encoder, and {form} is a plain ViT's: export it as nnunet or "
            "safetensors"
        )
    return load_encoder(run)


def vit_form(
    run: str | Path, card: dict[str, Any], axes: Axes
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of MONAI's ViT and the arguments that build it."""
    encoder = plain_vit(run, card, "monai-vit")
    config = encoder.config
    patch = config.patch_size if axes == "zyx" else config.patch_size[::-1]
    arguments = {
        **vit_arguments(config, axes),
        "patch_size": patch,
        "num_layers": config.depth,
        "classification": False,
    }
    described = {
        "loads_into": "monai.networks.nets.ViT",
        "arguments": arguments,
        MUST: {"qkv_bias": True, "proj_type": "conv"},
        "expected_missing": ["blocks.*cross_attn*"],
    }
    return monai_vit(encoder, axes), described


def vit_arguments(config: ViTConfig, axes: Axes) -> dict[str, Any]:
    """What MONAI's ViT and UNETR take alike."""
    return {
        "in_channels": config.channels,
        "img_size": config.crop_size if axes == "zyx" else config.crop_size[::-1],
        "hidden_size": config.width,
        "mlp_dim": int(config.width * config.mlp_ratio),
        "num_heads": config.heads,
        "proj_type": "conv",
        "qkv_bias": True,
    }


def unetr_form(
    run: str | Path, card: dict[str, Any], axes: Axes
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors for UNETR's `vit` and the arguments that build it."""
    encoder = plain_vit(run, card, "monai-unetr")
    config = encoder.config
    if config.patch_size != UNETR_PATCH or config.depth != UNETR_DEPTH:
        raise ConfigError(
            f"{run} has vit.patch_size {config.patch_size} and vit.depth {config.depth}; MONAI's "
            f"UNETR is built for {UNETR_PATCH} and {UNETR_DEPTH}. Export as monai-vit, or "
            "fine-tune with `mim3d finetune`, whose decoder takes any"
        )
    tensors = {f"vit.{name}": tensor for name, tensor in monai_vit(encoder, axes).items()}
    described = {
        "loads_into": "monai.networks.nets.UNETR",
        "arguments": vit_arguments(config, axes),
        MUST: {"qkv_bias": True, "proj_type": "conv"},
        "expected_missing": ["encoder*", "decoder*", "out*", "vit.blocks.*cross_attn*"],
    }
    return tensors, described


def monai_vit(encoder: ViT3D, axes: Axes) -> dict[str, Tensor]:
    """State of monai.networks.nets.ViT (proj_type conv, qkv_bias) with the same function."""
    names = {
        "attn.proj.": "attn.out_proj.",
        "mlp.fc1.": "mlp.linear1.",
        "mlp.fc2.": "mlp.linear2.",
    }
    state: dict[str, Tensor] = {}
    for name, tensor in encoder.state_dict().items():
        if not name.startswith(("blocks.", "norm.")):
            continue
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)  # noqa: PLW2901  at most one applies
        state[name] = tensor.clone()
    kernel = patch_kernel(encoder)
    grid = encoder.positions().detach().reshape(*encoder.config.grid, -1)
    if axes == "xyz":
        kernel, grid = kernel.permute(0, 1, 4, 3, 2), grid.permute(2, 1, 0, 3)
    state["patch_embedding.patch_embeddings.weight"] = kernel.contiguous()
    state["patch_embedding.patch_embeddings.bias"] = encoder.patch_embed.bias.detach().clone()
    state["patch_embedding.position_embeddings"] = grid.flatten(0, 2)[None].contiguous()
    return state


def swinunetr_form(
    run: str | Path, card: dict[str, Any], axes: Axes
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors for SwinUNETR's `swinViT` and the arguments that build it."""
    if axes != "zyx":
        raise ConfigError(
            "a Swin encoder's merging and relative positions know their axes: export it with "
            "--axes zyx, and give the network volumes in that order"
        )
    encoder = load_swin(run)
    shape = card_shape(card)
    config: SwinConfig = shape.backbone
    arguments = {
        "in_channels": shape.vit.channels,
        "feature_size": config.feature_size,
        "depths": config.depths,
        "num_heads": config.heads,
        "window_size": config.window,
    }
    state = encoder.swin.state_dict()
    tensors = {f"swinViT.{name}": tensor.clone() for name, tensor in state.items()}
    described = {
        "loads_into": "monai.networks.nets.SwinUNETR",
        "arguments": arguments,
        "expected_missing": ["encoder*", "decoder*", "out*"],
    }
    return tensors, described


def load_exported(network: torch.nn.Module, weights: str | Path) -> None:
    """Load an exported file into `network`, checking what is missing against the card."""
    from fnmatch import fnmatch

    from safetensors.torch import load_file

    weights = Path(weights)
    card = read_json(weights.with_suffix(".json"))
    result = network.load_state_dict(load_file(weights), strict=False)
    unexpected = list(result.unexpected_keys)
    missing = [
        name
        for name in result.missing_keys
        if not any(fnmatch(name, pattern) for pattern in card["expected_missing"])
    ]
    if unexpected or missing:
        raise ConfigError(
            f"{weights} does not fit the network: missing {missing[:5]}, foreign {unexpected[:5]}; "
            f"build {card['loads_into']} with {card['arguments']}"
        )
