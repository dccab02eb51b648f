"""An encoder's features of scans: a vector each, or all tokens.

    run_embed(run, source, destination) -> EmbedReport

Windows of the encoder's crop cover a volume side by side, the last ones moved inwards; `pooled` is
the mean over the tokens of all of them. Arithmetic is float32.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

from mim3d.dataio.errors import Rejection
from mim3d.dataio.progress import progress
from mim3d.dataio.reader.corpus import opened_corpus
from mim3d.engine.distributed.process_group import local_device
from mim3d.engine.errors import CheckpointError
from mim3d.engine.finetune.sliding_window import WINDOWS_AT_ONCE, Slabs, Windows
from mim3d.engine.finetune.trained import TRAINED, load_network, read_trained
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.predict.config import EmbedConfig
from mim3d.engine.predict.ledger import Ledger
from mim3d.engine.predict.loop import Done, each_scan
from mim3d.engine.predict.scans import OpenVolume, opened_scans, refuse_inside
from mim3d.engine.runs.address import local_run
from mim3d.engine.runs.encoder_file import card_vit, read_card, with_weights
from mim3d.engine.runs.files import file_sha256, refuse_address
from mim3d.engine.runs.folder_lock import sole_writer
from mim3d.engine.runs.scan_recipe import ScanRecipe, read_scan_recipe, scan_recipe
from mim3d.engine.runs.tensor_files import save_safetensors

NAME, TABLE = "embed", "pooled.npz"


@dataclass(frozen=True)
class EmbedReport:
    """What became of the scans: done now, done before, and those that could not be."""

    destination: Path
    n_done: int
    n_kept: int
    failed: tuple[Rejection, ...]
    doubts: tuple[str, ...]
    width: int
    leftovers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoder:
    """An encoder with what a scan must go through, and the hash of its weights."""

    module: nn.Module
    vit: ViTConfig
    width: int
    scans: ScanRecipe
    sha256: str


def run_embed(
    run: str | Path,
    source: str | Path,
    destination: str | Path,
    config: EmbedConfig | None = None,
    *,
    corpus: str = "",
) -> EmbedReport:
    """Write ID.safetensors for every scan of `source`, going on where an earlier call stopped.

    `run` is of `mim3d pretrain` or `mim3d finetune`, or an encoder's file; `corpus` is what one of
    an earlier version was trained on. A scan that is broken is listed and takes no other along.
    """
    config = config or EmbedConfig()
    destination = Path(destination)
    refuse_address(destination, "DST")
    refuse_inside(destination, str(source))
    encoder = read_encoder(local_run(run), corpus)
    with ExitStack() as stack:
        stack.enter_context(sole_writer(destination))
        work = Embedding(encoder, config, destination)
        ledger = work.ledger
        scans = stack.enter_context(
            opened_scans(
                str(source), encoder.scans, config.scans, destination, config.ids, ledger.sources
            )
        )
        tables = [TABLE] if config.what == "pooled" else []
        ledger.refuse_foreign(tables)
        ledger.refuse_taken(scans.scans, lambda id: [f"{id}.safetensors"])
        ledger.begin()
        with progress(NAME, len(scans.scans), "scans") as shown:
            crop = encoder.vit.crop_size
            done = each_scan(scans, ledger, encoder.scans, crop, shown, work.do)
        ledger.claim(tables)
        if config.what == "pooled":
            write_pooled(destination, done)
        ledger.seal(tables)
    return EmbedReport(
        destination,
        done.n_now,
        done.n_kept,
        tuple(done.failed),
        done.doubts(scans),
        encoder.width,
        tuple(ledger.leftovers(scans.all, scans.scans, done.entries)),
    )


def read_encoder(run: Path, corpus: str) -> Encoder:
    """The encoder of a run or file; CheckpointError where nothing tells how its scans were read."""
    if (run / TRAINED).is_file():
        trained = read_trained(run)
        encoder: Any = load_network(run, trained).get_submodule("encoder")
        vit, sha256 = trained.config.vit, trained.model_sha256
        return Encoder(encoder, vit, encoder.config.width, trained.scans, sha256)
    weights, card = read_card(run)
    module: Any = with_weights(card, weights)
    vit, scans = card_vit(card), scans_of(card, weights, corpus)
    return Encoder(module.eval(), vit, module.config.width, scans, file_sha256(weights))


def scans_of(card: dict[str, Any], weights: Path, corpus: str) -> ScanRecipe:
    """How an encoder's scans were read, from its card or, of an earlier version, its corpus."""
    if card.get("scans"):
        return read_scan_recipe(card["scans"], str(weights.with_suffix(".json")))
    if not corpus:
        raise CheckpointError(
            f"{weights.with_suffix('.json')} does not tell how scans were read, as cards of "
            "earlier versions: name the corpus it was pretrained on by --corpus"
        )
    with opened_corpus(corpus) as (opened, _):
        return scan_recipe(opened, card.get("normalise", "zscore"), card_vit(card).channels)


class Embedding:
    """An encoder over volumes."""

    def __init__(self, encoder: Encoder, config: EmbedConfig, destination: Path) -> None:
        self.encoder, self.config, self.destination = encoder, config, destination
        self.device = local_device(config.device)
        self.module = encoder.module.to(self.device)
        self.ledger = Ledger(destination, NAME, self.identity())

    def identity(self) -> dict[str, Any]:
        """What decides the results."""
        return {"encoder_sha256": self.encoder.sha256, "what": self.config.what}

    @torch.no_grad()
    def do(self, volume: OpenVolume, advance: Callable[[float], None]) -> dict[str, Any]:
        """Write the features of one volume; what the ledger notes of it."""
        windows = Windows(volume.shape, self.encoder.vit.crop_size, 0.0)
        slabs, starts = Slabs(volume.planes, windows, self.device), windows.starts()
        tokens = []
        for first in range(0, len(starts), WINDOWS_AT_ONCE):
            batch = starts[first : first + WINDOWS_AT_ONCE]
            found = self.module(torch.cat([slabs.crop(start) for start in batch])).float()
            pooled = self.config.what == "pooled"
            tokens.append((found.mean(1) if pooled else found).cpu())
            advance(len(batch) / len(starts))
        features = torch.cat(tokens)
        name = f"{volume.record.id}.safetensors"
        tensors = {"pooled": features.mean(0)}
        if self.config.what == "tokens":
            first = torch.tensor(starts) - torch.tensor(windows.before)
            tensors = {"tokens": features, "starts": first}
        self.ledger.claim_for(volume.record.sources[0], [name])
        partial = self.destination / f".{name}.part"
        save_safetensors(tensors, partial, self.about(volume))
        partial.replace(self.destination / name)
        return {"volume": volume.record.id, "files": [name]}

    def about(self, volume: OpenVolume) -> dict[str, str]:
        """What the file tells beside its tensors; `starts` are voxels (z, y, x) of this affine."""
        record, vit = volume.record, self.encoder.vit
        facts = {
            "id": record.id,
            "subject": record.subject,
            "sources": list(record.sources),
            "crop_size": vit.crop_size,
            "patch_size": vit.patch_size,
            "affine": record.affine,
            "encoder_sha256": self.encoder.sha256,
        }
        return {name: json.dumps(value) for name, value in facts.items()}


def write_pooled(folder: Path, done: Done) -> None:
    """All vectors in one file: `features` (n, width), `ids` and `subjects` (n,)."""
    found = list(done.volumes())
    if not found:
        return
    features = [load_file(folder / note["files"][0])["pooled"] for _, note in found]
    partial = folder / f".{TABLE}.part"
    with partial.open("wb") as stream:
        np.savez(
            stream,
            features=np.stack(features),
            ids=np.array([note["volume"] for _, note in found]),
            subjects=np.array([entry["subject"] for entry, _ in found]),
            allow_pickle=False,
        )
    partial.replace(folder / TABLE)
