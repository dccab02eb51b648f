"""A run's folder: its configuration, whether it may be continued, and what it came to."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mim3d.dataio.corpus.names import MANIFEST, own_file
from mim3d.engine.arithmetic.precision import choose_precision
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.errors import CheckpointError
from mim3d.engine.pretrain.config import PretrainConfig, config_dict, identity_of
from mim3d.engine.pretrain.lengthening import (
    MAY_CHANGE,
    changes,
    corpus_remedy,
    refuse_other_length,
)
from mim3d.engine.runs.checkpoint_files import CHECKPOINTS, newest_facts
from mim3d.engine.runs.encoder_file import read_card
from mim3d.engine.runs.files import differences, local_sha256, read_json, value_at, write_json
from mim3d.engine.runs.folder_lock import refuse_store
from mim3d.engine.runs.history import stands_in
from mim3d.engine.runs.own_parts import own_parts
from mim3d.engine.training.corpus import refuse_changed_corpus
from mim3d.engine.transfer.start_report import Start

CONFIG, RESULT = "config.json", "pretext.json"


@dataclass(frozen=True)
class PretrainResult:
    """How a run ended."""

    run: Path | str
    """Its folder, or its address in a bucket."""
    step: int
    """Optimiser steps done."""
    figures: dict[str, Any]
    """The last row of metrics.jsonl, with the pretext's verdict when the run is finished."""
    interrupted: bool = False
    """Told to stop by a signal; the same command goes on."""


@dataclass(frozen=True)
class Opening:
    """What a run's configuration does not tell of a sitting."""

    held_out: Sequence[str]
    """Subjects that were dealt to be held out."""
    corpus_sha256: str
    start: Start | None = None
    """Weights that were loaded, where a run begins with some."""
    attention: str = ""
    """Kernels that compute it."""


def stored_config(out: Path) -> dict[str, Any]:
    """The configuration of a run that has checkpoints; empty where there is none to go on with."""
    file = out / CONFIG
    if not file.exists() or not any((out / CHECKPOINTS).glob("step-*")):
        return {}
    try:
        stored = json.loads(file.read_text())
    except ValueError:
        return {}  # told by refuse_other_config
    return stored if isinstance(stored, dict) else {}


def open_run(
    out: Path, config: PretrainConfig, ranks: Ranks, opening: Opening
) -> list[dict[str, Any]]:
    """Make the folder and store the configuration, unless another run lives there.

    Returns the records of what this sitting changes.

    What it leaves open stands beside it: who was dealt to be held out, on what it is computed, the
    weights it began with, and what later sittings changed.
    """
    refuse_store(out)
    out.mkdir(parents=True, exist_ok=True)
    file = out / CONFIG
    if file.exists() and any((out / CHECKPOINTS).glob("step-*")):
        refuse_other_config(file, config)
    stored = stored_config(out)
    facts = newest_facts(out / CHECKPOINTS)
    if facts is not None and not config.accept_corpus:
        # Before anything is written: who was held out must stay known.
        refuse_changed_corpus(
            config.data.corpus,
            facts.corpus_sha256,
            opening.corpus_sha256,
            facts.step,
            corpus_remedy(out),
        )
    changed = changes(stored, out, config, opening.corpus_sha256) if stored else []
    if (out / RESULT).exists() and not is_answered_by(stored, config, read_json(out / RESULT)):
        (out / RESULT).unlink()  # of the shorter run
    began = {
        name: stored[name]
        for name in ("init", "init_axes", "init_channels", "start")
        if name in stored
    }
    if opening.start is not None:
        began = {"start": asdict(opening.start)}
    on_gpu = ranks.device.type == "cuda"
    dtype = choose_precision(config.parallel.precision, ranks.device)
    fp8 = config.parallel.precision == "fp8"
    described = {
        **config_dict(config),
        **began,
        **({"plugins": parts} if (parts := parts_of(config)) else {}),
        "history": [*stored.get("history", []), *changed],
        "dealt": {"held_out": list(opening.held_out)},
        "environment": {
            "mim3d": version("mim3d"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name(ranks.device) if on_gpu else "cpu",
            "world": ranks.world,
            "precision": "float8" if fp8 else str(dtype).removeprefix("torch."),
            **({"attention": opening.attention} if opening.attention else {}),
        },
    }
    write_json(file, described)
    return changed


def parts_of(config: PretrainConfig) -> list[dict[str, Any]]:
    """A record of each part of the run that is a plugin's."""
    loader = config.data.loader
    return own_parts(config.encoder.kind, loader.augment, loader.normalise, config.method.name)


def refuse_other_config(file: Path, config: PretrainConfig) -> None:
    """A CheckpointError naming the first fields that differ from the stored run's."""
    wanted = config_dict(config)
    try:
        stored = json.loads(file.read_text())
        names = [name for name, *_ in differences(identity_of(stored), identity_of(wanted))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} does not tell what the run in {file.parent} is ({error}). Restore it from a "
            "backup; without one delete it: its checkpoints are held against the settings by a hash"
        ) from error
    finished = (file.parent / RESULT).exists()
    if "steps" in names or not finished:
        names = [name for name in names if not stands_in(name, MAY_CHANGE)]
    if names == ["steps"]:
        refuse_other_length(file.parent, stored["steps"], config)
        names = []
    refuse_other_start(file.parent, str(stored.get("init", "")), config.init)
    different = [
        f"{name} was {value_at(stored, name)!r} and is now {value_at(wanted, name)!r}"
        for name in names
    ]
    if different:
        raise CheckpointError(
            f"{file.parent} holds a run of another configuration: {'; '.join(different[:3])}. "
            "Choose another --out, or the old settings to go on with it"
        )


def refuse_other_start(out: Path, before: str, now: str) -> None:
    """A CheckpointError where a run that is under way should have begun with other weights."""
    if now and now != before and Path(now).resolve() != Path(before).resolve():
        raise CheckpointError(
            f"{out} holds a run that began {f'with {before}' if before else 'from scratch'}, not "
            f"with --init {now}: leave --init out to go on with it, or choose another --out"
        )


def finished_result(out: Path, config: PretrainConfig) -> PretrainResult | None:
    """The stored result of a run that is already complete, else None.

    Of another corpus it would be another run's; one that is gone or remote is taken for the same.
    """
    file = out / RESULT
    if not file.exists():
        return None
    refuse_other_config(out / CONFIG, config)
    figures = read_json(file)
    if not is_answered_by(read_json(out / CONFIG), config, figures):
        return None  # it is to be lengthened
    now = local_sha256(own_file(config.data.corpus, MANIFEST)) if config.data.corpus else None
    if now is not None and not config.accept_corpus:
        before = read_card(out)[1].get("corpus_sha256", now)
        refuse_changed_corpus(config.data.corpus, before, now, config.steps, corpus_remedy(out))
    return PretrainResult(out, figures.get("step", config.steps), figures)


def is_answered_by(
    stored: dict[str, Any], config: PretrainConfig, figures: Mapping[str, Any]
) -> bool:
    """Whether a finished run is what is asked for: as long, and stopped early as it may be now."""
    if stored.get("steps", config.steps) != config.steps:
        return False
    before = stored.get("probe", {}).get("patience")
    return "stopped_early" not in figures or before == config.probe.patience
