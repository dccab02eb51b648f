"""A checkpoint on disk: written beside its place, hashed, synced, then renamed into it.

checkpoints/step-00000600/           committed: complete and verified by its manifest
checkpoints/step-00000600/manifest.json
checkpoints/step-00000600/.metadata, __0_0.distcp, ...
checkpoints/tmp-00000700/            being written, or left by a crash; never read
"""

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mim3d.engine.errors import CheckpointError
from mim3d.engine.runs.files import file_sha256, json_sha256

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints."""
SEAL = "manifest.json"
FORMAT = 1
LOSS = "loss"
COMMITTED = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint's manifest says about it, besides its files."""

    step: int
    """Optimiser steps done."""
    config_sha256: str
    """Hash of the configuration that decides what is learned."""
    corpus_sha256: str
    """Hash of the corpus's manifest."""
    loader: dict[str, Any]
    """The loader's state."""
    world: int
    """Ranks that wrote it."""
    score: float | None = None
    """Mean loss since the checkpoint before, or the error of a probe; lower is better."""
    seconds: float = 0.0
    """Training time so far."""
    hooks: dict[str, Any] = field(default_factory=dict)
    """What hooks of the loop keep, by name: evaluations so far."""
    bad_in_row: int = 0
    """Steps up to this one whose gradient was not finite; healthy are those with none."""
    score_of: str = LOSS
    """What the score is; only equal ones are compared."""


def step_folder(root: Path, step: int) -> Path:
    """Place of a committed checkpoint."""
    return root / f"step-{step:08d}"


def tmp_folder(root: Path, step: int) -> Path:
    """Place of a checkpoint that is being written."""
    return root / f"tmp-{step:08d}"


def committed(root: Path) -> list[Path]:
    """Committed checkpoints, newest first."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if COMMITTED.fullmatch(path.name) and path.is_dir()]
    return sorted(found, reverse=True)


def newest_facts(root: Path) -> CheckpointFacts | None:
    """Of the newest checkpoint whose manifest can be read; None where there is none."""
    return next((facts for _, facts in readable(committed(root))), None)


def readable(folders: Iterable[Path]) -> Iterator[tuple[Path, CheckpointFacts]]:
    """Those whose manifest can be read, with their facts, in the same order."""
    for folder in folders:
        with suppress(CheckpointError):
            yield folder, read_facts(folder)[0]


def sweep(root: Path) -> None:
    """Remove what crashes left half written."""
    for path in root.glob("tmp-*"):
        shutil.rmtree(path)


def remove_quietly(folder: Path) -> None:
    """Remove a folder that nobody needs, as far as that goes."""
    shutil.rmtree(folder, ignore_errors=True)


def commit(root: Path, facts: CheckpointFacts) -> Path:
    """Hash, sync and rename the written folder; after a crash it is either whole or not there."""
    source, target = tmp_folder(root, facts.step), step_folder(root, facts.step)
    write_manifest(source, facts)
    sync(source / SEAL)
    sync(source)
    if target.exists():
        # The same step again: a run that was resumed before it and has come back to it.
        discard(target)
    source.rename(target)
    sync(root)
    return target


def write_manifest(folder: Path, facts: CheckpointFacts) -> None:
    """Write sizes and hashes of every file, and the hash of the manifest itself."""
    names = sorted(path.name for path in folder.iterdir() if path.name != SEAL)
    with ThreadPoolExecutor(4) as pool:
        hashes = list(pool.map(lambda name: file_sha256(folder / name), names))
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, hashes, strict=True)
    }
    (folder / SEAL).write_text(manifest_text(facts, files))


def manifest_text(facts: CheckpointFacts, files: Mapping[str, Mapping[str, Any]]) -> str:
    """A manifest: facts, `bytes` and `sha256` of each file, and the hash of all that."""
    body = {"format": FORMAT, **asdict(facts), "files": files}
    sealed = {"sha256": json_sha256(body), "body": body}
    return json.dumps(sealed, indent=1) + "\n"


def read_facts(folder: Path) -> tuple[CheckpointFacts, dict[str, Any]]:
    """Facts and file table of a checkpoint; a CheckpointError where the manifest is not whole."""
    path = folder / SEAL
    try:
        sealed = json.loads(path.read_bytes())
        body = sealed["body"]
        if sealed["sha256"] != json_sha256(body):
            raise CheckpointError(f"{path} does not match its own hash")
        if body.pop("format") != FORMAT:
            raise CheckpointError(f"{path} has another format than {FORMAT}: use that version")
        files = {name: dict(entry) for name, entry in body.pop("files").items()}
        if any(entry.keys() != {"bytes", "sha256"} for entry in files.values()):
            raise CheckpointError(f"{path} lists files without size and hash: it is foreign")
        return CheckpointFacts(**body), files
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def verify(folder: Path) -> CheckpointFacts:
    """Check every file against the manifest before anything in it is opened."""
    facts, files = read_facts(folder)
    if folder.name != step_folder(folder.parent, facts.step).name:
        raise CheckpointError(f"{folder} holds step {facts.step}: it was renamed or copied there")
    present = {path.name for path in folder.iterdir()} - {SEAL}
    if present != set(files):
        missing, foreign = sorted(set(files) - present), sorted(present - set(files))
        raise CheckpointError(f"{folder}: files missing {missing}, not in the manifest {foreign}")
    for name, entry in files.items():
        path = folder / name
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{path} has {size} bytes, its manifest says {entry['bytes']}")
        if file_sha256(path) != entry["sha256"]:
            raise CheckpointError(f"{path} does not match its hash: it was changed or damaged")
    return facts


def prune(root: Path, keep: int, keep_best: bool, step: int) -> None:
    """Remove all but the newest `keep` checkpoints up to `step` and the one with the lowest score.

    The newest healthy one always stays, to go back to. Later ones are damaged: the run was resumed
    before them. They take nobody's place, and are replaced when the run comes back to their steps.
    """
    folders = [folder for folder in committed(root) if folder <= step_folder(root, step)]
    healthy = {folder: facts for folder, facts in readable(folders) if not facts.bad_in_row}
    kept = {*folders[:keep], *list(healthy)[:1]}
    if keep_best:
        # No number is below a NaN.
        newest = next(iter(healthy.values())).score_of if healthy else LOSS
        scores = {
            folder: facts.score
            for folder, facts in healthy.items()
            if facts.score_of == newest and facts.score is not None and math.isfinite(facts.score)
        }
        # Of equals the first: a later one is no better.
        kept |= {min(scores, key=lambda folder: (scores[folder], folder))} if scores else set()
    for folder in folders:
        if folder not in kept:
            discard(folder)


def discard(folder: Path) -> None:
    """Remove a checkpoint so that a crash half-way leaves nothing that looks committed."""
    doomed = folder.with_name(f"tmp-old-{folder.name}")
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
