"""Weights to start from, opened: a run, one of its checkpoints, or a file of any library.

Nothing that is opened can run code: checkpoints go through the safe reader, pickles through
`weights_only`.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mim3d.engine.errors import CheckpointError
from mim3d.engine.runs.address import local_run
from mim3d.engine.runs.checkpoint_files import SEAL, committed
from mim3d.engine.runs.checkpoint_reader import (
    SafeReader,
    TensorPlanner,
    failure_line,
    verified,
)
from mim3d.engine.runs.encoder_file import CARD, WEIGHTS, read_card, refuse_changed_weights
from mim3d.engine.runs.files import file_sha256
from mim3d.engine.transfer.nnssl_plan import nnssl_card

NESTED = ("state_dict", "model", "model_state_dict", "network_weights", "teacher", "encoder")
"""Entries under which other libraries keep their weights, the likelier first."""
PICKLED = (".pt", ".pth", ".bin", ".ckpt")
MODEL = "model.pt"
"""The network of a fine-tuning run's folder."""


@dataclass(frozen=True)
class GivenWeights:
    """Tensors by their names there, where they lie, and what is told about them."""

    place: Path
    tensors: dict[str, Tensor]
    sha256: str
    """Of the file, or of the checkpoint's manifest, which holds the hashes of its files."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """A card's content, or `vit`, `swin` and `normalise` of a run's configuration; may be empty."""


def open_weights(source: str | Path) -> GivenWeights:
    """The weights of a run's folder (its newest whole checkpoint, or its encoder), or a file."""
    place = local_run(source, checkpoint=True)
    if place.is_dir():
        return from_folder(place)
    if not place.is_file():
        raise CheckpointError(
            f"{place} is not there: give a run's folder, a .safetensors file, or a file that "
            "torch.save wrote"
        )
    if place.suffix == ".safetensors":
        return from_safetensors(place)
    if place.suffix in PICKLED:
        return GivenWeights(place, read_pickled(place), file_sha256(place), nnssl_card(place))
    raise CheckpointError(
        f"{place} ends in {place.suffix or 'nothing'}: weights are read from .safetensors, "
        f"{', '.join(PICKLED)} and folders of runs"
    )


def has_card(folder: Path) -> bool:
    """Whether a folder holds an encoder with its card."""
    return (folder / WEIGHTS).is_file() and (folder / CARD).is_file()


def open_encoder(source: str | Path) -> GivenWeights:
    """The same, but of a finished run's folder the encoder that it left."""
    place = local_run(source)
    return from_safetensors(place / WEIGHTS) if has_card(place) else open_weights(source)


def card_of(source: str | Path) -> dict[str, Any]:
    """What is told of an encoder beside its weights; may be empty."""
    place = local_run(source)
    if has_card(place):
        return read_card(place)[1]
    if place.is_dir():
        return encoder_facts(place.parent.parent if (place / SEAL).is_file() else place)
    if place.suffix == ".safetensors":
        return card_beside(place)
    return nnssl_card(place) if place.suffix in PICKLED and place.is_file() else {}


def sha256_of(source: str | Path) -> str:
    """Hash by which weights are known again: as their card tells, else of what is read."""
    place = local_run(source)
    if has_card(place):
        return str(read_card(place)[1].get("weights_sha256", ""))
    if place.is_file():
        card = card_of(place)
        return str(card.get("weights_sha256") or ("" if "kind" in card else file_sha256(place)))
    return open_weights(source).sha256


def from_folder(folder: Path) -> GivenWeights:
    """A run's newest whole checkpoint, a checkpoint by itself, or the encoder or network kept."""
    if (folder / SEAL).is_file():
        verified(folder)
        return from_checkpoint(folder, folder.parent.parent)
    damaged: list[str] = []
    for checkpoint in committed(folder / "checkpoints"):
        try:
            verified(checkpoint)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        return from_checkpoint(checkpoint, folder)
    if has_card(folder):
        return from_safetensors(folder / WEIGHTS)
    if (folder / MODEL).is_file():
        tensors = read_pickled(folder / MODEL)
        return GivenWeights(
            folder / MODEL, tensors, file_sha256(folder / MODEL), encoder_facts(folder)
        )
    raise CheckpointError(
        f"{folder} holds no weights ({damaged[0] if damaged else 'no checkpoint, no encoder'}): "
        "give the folder of a run that has saved a checkpoint, or a file of weights"
    )


def encoder_facts(run: Path) -> dict[str, Any]:
    """What a run's configuration tells of its encoder; nothing where it cannot be read."""
    try:
        stored = json.loads((run / "config.json").read_text(encoding="utf-8"))
        normalise = stored["data"].get("normalise")
        kinds = {name: stored.get(name) for name in ("swin", "resenc")}
        return {"vit": stored["vit"], **kinds, "normalise": normalise}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def from_checkpoint(folder: Path, run: Path) -> GivenWeights:
    """The model's tensors of a verified checkpoint."""
    reader = SafeReader(folder)
    kinds = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(kind.size, dtype=kind.properties.dtype)
        for name, kind in kinds.items()
        if name.startswith("model.") and isinstance(kind, TensorStorageMetadata)
    }
    try:
        with warnings.catch_warnings():
            # Each rank reads for itself, which torch remarks on.
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            dcp.load(
                dict(tensors),
                storage_reader=SafeReader(folder),
                planner=TensorPlanner(),
                no_dist=True,
            )
    except dcp.api.CheckpointException as error:
        raise CheckpointError(f"{folder} cannot be loaded: {failure_line(error)}") from None
    plain = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    return GivenWeights(folder, plain, file_sha256(folder / SEAL), encoder_facts(run))


def card_beside(file: Path) -> dict[str, Any]:
    """The card that lies beside a file and speaks of it, empty where there is none."""
    beside = file.with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        card = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{beside} lies beside {file.name} and is no card ({error}): restore it, or remove "
            "it to take the weights as those of another library"
        ) from None
    card = read_card(file)[1] if "kind" in card else card
    refuse_changed_weights(file, card)
    return card


def from_safetensors(file: Path) -> GivenWeights:
    """A file with its card, where one lies beside it."""
    card = card_beside(file)
    try:
        # A card's hash was held against the file's.
        sha256 = card.get("weights_sha256") or file_sha256(file)
        return GivenWeights(file, load_file(file), sha256, card)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def read_pickled(file: Path) -> dict[str, Tensor]:
    """Tensors of a file that torch.save wrote, from wherever in it they lie."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{file} cannot be read as tensors alone ({failure_line(error)[:120]}): save its "
            "state_dict() with torch.save where its classes are known, and give that file"
        ) from None
    found = tensors_in(content)
    if not found:
        raise CheckpointError(
            f"{file} holds no tensors by name: save the model's state_dict() with torch.save"
        )
    return found


def tensors_in(content: object) -> dict[str, Tensor]:
    """The first dictionary with tensors in it, looked for under the names that libraries use."""
    if not isinstance(content, dict):
        return {}
    found = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if found:
        return found
    for name in (*(key for key in NESTED if key in content), *content):
        if found := tensors_in(content[name]):
            return found
    return {}
