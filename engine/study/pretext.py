"""What a study keeps of each pretraining: cost, loss curve, verdict, picture."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.errors import CheckpointError
from mim3d.engine.finetune.splits import Splits
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.registry import EncoderShape
from mim3d.engine.pretrain.run_folder import CONFIG, RESULT
from mim3d.engine.runs.checkpoint_files import CHECKPOINTS, newest_facts
from mim3d.engine.runs.encoder_file import CARD, WEIGHTS
from mim3d.engine.runs.files import read_json, read_jsonl
from mim3d.engine.study.arms import arms_of, encoder_of
from mim3d.engine.study.config import Row, StudyConfig, Variant
from mim3d.engine.study.costs import cpu_seconds
from mim3d.engine.study.encoders import parted
from mim3d.engine.study.plan import slug
from mim3d.engine.transfer.given_weights import sha256_of
from mim3d.engine.transfer.intensities import intensity_mismatch
from mim3d.engine.transfer.seen import Volume, seen_among, seen_lines, trained_on
from mim3d.engine.transfer.shape import encoder_shape

CURVE_POINTS = 80
HELD_OUT = ("validation", "test")
DEAL_OTHERS = "deal others by --data.split.seed N"


def pretraining_row(wanted: Row, out: Path) -> Row:
    """The entry of a pretraining that the study ran, from plan.json's arm, variant, seed and key.

    Its last picture is copied beside.
    """
    folder = out / "pretrain" / wanted["key"]
    try:
        row = run_row(folder) | cpu_seconds(folder)
    except (CheckpointError, OSError) as error:
        raise CheckpointError(
            f"{folder} does not tell what its pretraining was ({error}): restore the file, or "
            f"delete {folder} to pretrain anew"
        ) from error
    return {
        "arm": wanted["arm"],
        "encoder": wanted.get("encoder", ""),
        "variant": wanted["variant"],
        "seed": wanted["seed"],
        **row,
        "sha256": weights_sha256(folder),
        "picture": keep_picture(folder, out / "pictures" / f"{wanted['key']}.png", out),
    }


@dataclass(frozen=True)
class Given:
    """What is known of weights given by path: held-out subjects that they were trained on, by the
    files of these subjects (None: not kept with the weights), what is doubtful about them, and what
    of their shape is the study's, for they do not tell it."""

    seen: list[str] | None
    doubts: list[str]
    guesses: tuple[str, ...]


def given_arms(config: StudyConfig, corpus: Corpus, splits: Splits) -> dict[str, Given]:
    """By label, what is known of every arm given by path whose weights are there."""
    held_out = {name: getattr(splits, name) for name in HELD_OUT}
    return {
        arm.label: about_given(
            arm.path,
            encoder_of(config, arm.encoder, Variant()),
            config.data.normalise,
            corpus.records,
            held_out,
        )
        for arm in arms_of(config)
        if arm.path and is_encoder(arm.path)
    }


def is_encoder(path: str) -> bool:
    """Whether there is an encoder to read at a path; without one the arm's cells say why."""
    try:
        sha256_of(path)
    except (CheckpointError, OSError):
        return False
    return True


def about_given(
    path: str,
    shape: EncoderShape,
    normalise: str,
    volumes: Sequence[Volume],
    held_out: Mapping[str, Collection[str]],
) -> Given:
    """What is known of weights, held against the arm's encoder, its intensities and the splits."""
    subjects = {subject for part in held_out.values() for subject in part}
    seen, _ = seen_among(path, volumes, subjects)
    lines = [
        line
        for split, part in held_out.items()
        for line in seen_lines(path, volumes, part, split, DEAL_OTHERS)
    ]
    doubts = [*under_way(Path(path)), *intensity_mismatch(path, normalise), *lines]
    known = None if trained_on(path) is None else sorted(seen)
    return Given(known, doubts, guesses_of(path, shape.vit, shape.backbone))


def under_way(run: Path) -> list[str]:
    """That a run is not finished, of which the newest checkpoint is taken."""
    if not (run / CONFIG).is_file() or (run / RESULT).is_file():
        return []
    facts = newest_facts(run / CHECKPOINTS)
    if facts is None:
        return []
    return [
        f"{run} is a run that is not finished: its encoder of step {facts.step} is taken, and a "
        "later one by cells that begin once it has another; let it end first"
    ]


@lru_cache
def guesses_of(path: str, vit: ViTConfig, backbone: Any) -> tuple[str, ...]:
    """What of an encoder its weights do not tell; read once, for it may take the weights."""
    try:
        return encoder_shape(path, vit, backbone).guesses
    except CheckpointError:
        return ()  # told by the run that takes them


def external_row(
    label: str,
    given: Path,
    held_out: Collection[str],
    corpus_hash: str,
    out: Path,
    own: str = "",
    seen: list[str] | None = None,
) -> dict[str, Any]:
    """The entry of an arm given by path: its own verdict where it is a run, else none is known.

    `own` is what rows call the study's own encoder, which an arm without @ has.

    `leaked` names the held-out subjects that its pretraining saw: `seen` where that is known by
    their files, else by the names that its configuration tells; None where it is not known.
    """
    folder = run_of(given)
    arm, encoder = parted(label)
    row, picture = unknown_run(), ""
    if folder is not None:
        row = run_row(folder)
        picture = keep_picture(folder, out / "pictures" / f"{slug(arm, encoder)}.png", out)
    leaked = seen
    if seen is None and folder is not None:
        leaked = leaked_subjects(folder, held_out, corpus_hash)
    return {
        "arm": arm,
        "encoder": encoder or own,
        "variant": "",
        "seed": None,
        **row,
        "picture": picture,
        "given": str(given),
        "leaked": leaked,
    }


def weights_sha256(folder: Path) -> str:
    """The hash of a run's encoder as its card has it, empty where it has none."""
    card = folder / CARD
    return str(read_json(card).get("weights_sha256", "")) if card.is_file() else ""


def run_of(given: Path) -> Path | None:
    """The finished run that an encoder given by path belongs to, None where it is a lone file."""
    folder = given if given.is_dir() else given.parent
    if given.is_file() and given.name != WEIGHTS:
        return None
    needed = ("config.json", "pretext.json", "metrics.jsonl")
    return folder if all((folder / name).is_file() for name in needed) else None


def leaked_subjects(folder: Path, held_out: Collection[str], corpus_hash: str) -> list[str] | None:
    """Held-out subjects among those a run was pretrained on, by name; None where it cannot be told.

    A run that names no subjects saw its whole corpus, which is told by its hash.
    """
    data = read_json(folder / "config.json").get("data", {})
    spared = set(data.get("held_out_subjects") or ())
    if data.get("subjects") is not None:
        return sorted(set(data["subjects"]) & set(held_out) - spared)
    card = folder / CARD
    same = card.is_file() and read_json(card).get("corpus_sha256") == corpus_hash
    return sorted(set(held_out) - spared) if same else None


def run_row(folder: Path) -> dict[str, Any]:
    """Figures of a finished run's folder."""
    config, result = read_json(folder / "config.json"), read_json(folder / "pretext.json")
    metrics = read_jsonl(folder / "metrics.jsonl")
    verdict = result.get("pretext", result)
    batch, steps = config["global_batch"], result.get("step", config["steps"])
    loss, floor = verdict.get("loss"), verdict.get("floor")
    every = max(1, len(metrics) // CURVE_POINTS)
    rates = sorted(row["crops_per_s"] for row in metrics if row.get("crops_per_s"))
    stalls = [row["data_stall_share"] for row in metrics if "data_stall_share" in row]
    return {
        "method": config["method"].get("name", ""),
        "crops": batch * steps,
        "steps": steps,
        "batch": batch,
        "flops": result.get("flops", 0.0),
        "seconds": result.get("seconds", 0.0),
        "normalised": bool(config["method"].get("normalise_target")),
        # A plugin's method may tell no baseline: then nobody knows.
        "trained": None if loss is not None and floor is None else bool(verdict["learned"]),
        "loss": loss,
        "floor": floor,
        "floor_of": "patch_mean" if verdict.get("patch_mean") is not None else "chance",
        "behind": verdict.get("behind", []),
        "nearest_patch": verdict.get("nearest_patch"),
        "curve": [[row["step"], row["loss"]] for row in metrics[::every] if "loss" in row],
        "crops_per_s": rates[len(rates) // 2] if rates else None,
        "data_stall_share": sum(stalls) / len(stalls) if stalls else None,
    }


def unknown_run() -> dict[str, Any]:
    """Figures of an encoder file without its run: nothing is known of its cost or verdict.

    `trained` None says so; results of earlier versions have True beside method `given`.
    """
    return {
        "method": "given",
        "crops": 0,
        "steps": 0,
        "batch": 0,
        "flops": 0.0,
        "seconds": 0.0,
        "trained": None,
        "loss": None,
        "floor": None,
        "curve": [],
        "crops_per_s": None,
        "data_stall_share": None,
    }


def keep_picture(folder: Path, copy: Path, out: Path) -> str:
    """Copy the run's last picture; its path within the study, empty where there is none."""
    found = sorted((folder / "pictures").glob("*.png"))
    if not found:
        return ""
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(found[-1], copy)
    return str(copy.relative_to(out))
