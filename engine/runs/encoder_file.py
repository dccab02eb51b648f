"""Encoder weights as safetensors beside a JSON card; the form every other command reads."""

import dataclasses
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mim3d.dataio.plugins import load_known
from mim3d.engine.errors import CheckpointError
from mim3d.engine.models.config import SwinConfig, ViTConfig
from mim3d.engine.models.registry import ENCODERS, EncoderShape
from mim3d.engine.models.resenc.config import Backbone, ResEncConfig
from mim3d.engine.models.resenc.encoder import ResEncEncoder
from mim3d.engine.models.swin import SwinEncoder
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.runs.address import local_run
from mim3d.engine.runs.files import file_sha256, read_utf8, write_json
from mim3d.engine.runs.tensor_files import save_safetensors

WEIGHTS, CARD = "encoder.safetensors", "encoder.json"
STATISTICS = 2
"""What is told as `statistics` in the card of an encoder: 2 since channels are normalised one by
one and clip-zscore takes the moments of clipped voxels; those before have none."""


def save_encoder(
    path: Path,
    vit: ViTConfig,
    weights: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
    backbone: Backbone | None = None,
) -> None:
    """Write `path`/encoder.safetensors and encoder.json; `provenance` goes into the card."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    partial = path / f".{WEIGHTS}.{os.getpid()}.part"
    save_safetensors(tensors, partial)
    partial.replace(path / WEIGHTS)
    card = {
        "format": 1,
        "mim3d": version("mim3d"),
        "kind": EncoderShape(vit, backbone).kind,
        "vit": dataclasses.asdict(vit),
        "swin": dataclasses.asdict(backbone) if isinstance(backbone, SwinConfig) else None,
        "weights": WEIGHTS,
        "weights_sha256": file_sha256(path / WEIGHTS),
        **provenance,
    }
    if isinstance(backbone, ResEncConfig):
        card["resenc"] = dataclasses.asdict(backbone)
    write_json(path / CARD, card)


def read_card(run_or_file: str | Path) -> tuple[Path, dict[str, Any]]:
    """Weights file and card of a run's folder, or of a .safetensors file beside its card.

    Of what lies in a bucket they come to this machine.
    """
    given = local_run(run_or_file)
    weights = given / WEIGHTS if given.is_dir() else given
    card = weights.with_suffix(".json")
    for path in (weights, card):
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing: give a run folder of a finished `mim3d pretrain`, or a "
                ".safetensors file with its .json card beside it"
            )
    try:
        content = json.loads(read_utf8(card))
        kind = content["kind"]
        if not isinstance(kind, str) or not isinstance(content["vit"], dict):
            raise CheckpointError(
                f"{card} tells of no {', '.join(ENCODERS)}: is it an encoder's card?"
            )
        if kind not in ENCODERS:
            load_known()
        if kind not in ENCODERS:
            raise CheckpointError(
                f"{card} tells of a {kind} encoder, none of {', '.join(ENCODERS)}: it is a "
                f"plugin's, so add --plugin {plugin_of(content)}"
            )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{card} is not an encoder's card: {error}") from error
    return weights, content


def plugin_of(card: Mapping[str, Any]) -> str:
    """Where the plugin of a card's encoder was, or what stands for that."""
    parts = [part for part in card.get("plugins", ()) if part["kind"] == ENCODERS.kind]
    return str(parts[0]["file"] or parts[0]["module"]) if parts else "FILE"


def card_vit(card: Mapping[str, Any]) -> ViTConfig:
    """The encoder's shape that a card tells."""
    vit = card["vit"]
    entry = ENCODERS.find(card.get("kind") or ("primus" if "registers" in vit else "vit"))
    return (ViTConfig if entry.beside else entry.config)(**tuples(vit))


def tuples(plain: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists back to tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}


def card_shape(card: Mapping[str, Any]) -> EncoderShape:
    """The encoder that a card, or a run's configuration, tells."""
    for kind, config in (("swin", SwinConfig), ("resenc", ResEncConfig)):
        if card.get(kind):
            return EncoderShape(card_vit(card), config(**tuples(card[kind])))
    return EncoderShape(card_vit(card))


def load_encoder(run_or_file: str | Path) -> ViT3D:
    """A transformer, or a plugin's encoder, with a run's weights, on the CPU in float32."""
    weights, card = read_card(run_or_file)
    if ENCODERS[card["kind"]].beside:
        raise CheckpointError(
            f"{weights} holds a {card['kind']} encoder, a vit is needed: pretrain with a vit recipe"
        )
    return cast(ViT3D, with_weights(card, weights))


def load_swin(run_or_file: str | Path) -> SwinEncoder:
    """A Swin encoder with a run's pretrained weights, on the CPU in float32."""
    return cast(SwinEncoder, load_kind(run_or_file, "swin"))


def load_resenc(run_or_file: str | Path) -> ResEncEncoder:
    """A U-Net's encoder with a run's pretrained weights, on the CPU in float32."""
    return cast(ResEncEncoder, load_kind(run_or_file, "resenc"))


def load_kind(run_or_file: str | Path, kind: str) -> nn.Module:
    """The encoder of a run, which must be of that kind."""
    weights, card = read_card(run_or_file)
    if card["kind"] != kind:
        raise CheckpointError(
            f"{weights} holds a {card['kind']} encoder, a {kind} is needed: use a {kind} recipe"
        )
    return with_weights(card, weights)


def with_weights(card: Mapping[str, Any], weights: Path) -> nn.Module:
    """The encoder of a card with the weights that it speaks of."""
    encoder = card_shape(card).make()
    load_weights(encoder, weights)
    refuse_changed_weights(weights, card)
    return encoder


def refuse_changed_weights(weights: Path, card: Mapping[str, Any]) -> None:
    """A CheckpointError where a weights file is not the one that its card speaks of."""
    expected = card.get("weights_sha256")
    if not expected:
        return
    found = file_sha256(weights)
    if found != expected:
        raise CheckpointError(
            f"{weights} does not match its card: sha256 {found[:12]}, {weights.stem}.json says "
            f"{str(expected)[:12]}. It was changed or damaged: restore it, or end the run again by "
            "deleting its pretext.json and repeating `mim3d pretrain`"
        )


def load_weights(module: nn.Module, weights: Path) -> None:
    """Copy a file's tensors into `module`; every key and shape must match."""
    try:
        stored = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights} cannot be read: {error}") from error
    wanted = module.state_dict()
    missing, foreign = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    wrong = [
        f"{name} {tuple(stored[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in stored and stored[name].shape != tensor.shape
    ]
    if missing or foreign or wrong:
        raise CheckpointError(
            f"{weights} does not fit the model: missing {missing[:5]}, foreign {foreign[:5]}, "
            f"shapes {wrong[:5]}"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])
