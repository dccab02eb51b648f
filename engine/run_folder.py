"""A run's folder: its configuration, whether it may be continued, and what it came to."""

import hashlib
import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mim3d.dataio.corpus import Corpus
from mim3d.dataio.manifest import MANIFEST
from mim3d.engine.config import PretrainConfig, config_dict, config_identity
from mim3d.engine.errors import CheckpointError, TrainingError

CONFIG, RESULT, METRICS, CHECKPOINTS = "config.json", "pretext.json", "metrics.jsonl", "checkpoints"


@dataclass(frozen=True)
class PretrainResult:
    """How a run ended."""

    run: Path
    """Its folder."""
    step: int
    """Optimiser steps done."""
    figures: dict[str, Any]
    """The last row of metrics.jsonl, with the pretext's verdict when the run is finished."""
    interrupted: bool = False
    """Told to stop by a signal; the same command goes on."""


def open_run(out: Path, config: PretrainConfig) -> None:
    """Make the folder and store the configuration, unless another run lives there."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / CONFIG
    if file.exists() and any((out / CHECKPOINTS).glob("step-*")):
        refuse_other_config(file, config)
    described = {
        **config_dict(config),
        "environment": {
            "mim3d": version("mim3d"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    file.write_text(json.dumps(described, indent=2) + "\n")


def refuse_other_config(file: Path, config: PretrainConfig) -> None:
    """A CheckpointError naming the first fields that differ from the stored run's."""
    stored = json.loads(file.read_text())
    wanted = config_identity(config)
    different = [
        f"{name} was {before!r} and is now {now!r}"
        for name, before, now in differences(stored, wanted)
    ]
    if different:
        raise CheckpointError(
            f"{file.parent} holds a run of another configuration: {'; '.join(different[:3])}. "
            "Choose another --out, or the old settings to go on with it"
        )


def differences(stored: Any, wanted: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(field, stored, wanted) for every leaf of `wanted` that differs."""
    if isinstance(wanted, dict) and isinstance(stored, dict):
        found: list[tuple[str, Any, Any]] = []
        for key, value in wanted.items():
            found += differences(stored.get(key), value, f"{name}.{key}" if name else key)
        return found
    return [] if stored == wanted else [(name, stored, wanted)]


def corpus_sha256(corpus: Corpus) -> str:
    """Hash of an opened corpus's manifest, the truth of what is in it.

    `corpus.root` holds a copy of it where the corpus lies in an object store.
    """
    with (corpus.root / MANIFEST).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def refuse_changed_corpus(corpus: str, before: str, now: str, step: int) -> None:
    """A TrainingError where the corpus is not the one that the run began with."""
    if before != now:
        raise TrainingError(
            f"{corpus} has changed since step {step} of this run was saved (manifest {before[:12]}"
            f" then, {now[:12]} now): resumed, it would draw other crops. Restore that corpus, or "
            "start a new run with another --out"
        )


def finished_result(out: Path, config: PretrainConfig) -> PretrainResult | None:
    """The stored result of a run that is already complete, else None."""
    file = out / RESULT
    if not file.exists():
        return None
    refuse_other_config(out / CONFIG, config)
    figures = json.loads(file.read_text())
    return PretrainResult(out, config.steps, figures)
