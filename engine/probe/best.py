"""The encoder that a run's probe scored best, written beside the last one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim3d.engine.errors import CheckpointError
from mim3d.engine.models.registry import EncoderShape
from mim3d.engine.probe.probe import Course
from mim3d.engine.runs.checkpoint_files import step_folder
from mim3d.engine.runs.encoder_file import save_encoder
from mim3d.engine.runs.shelf import Shelf
from mim3d.engine.transfer.given_weights import from_checkpoint

BEST = "best"
"""Folder in a run's, which every command takes as it takes the run's."""
PART = "encoder."


def leave_best(
    out: Path, shelf: Shelf, shape: EncoderShape, course: Course, about: Mapping[str, Any]
) -> str:
    """Write out/best from the checkpoint of the best step; why it cannot be, empty where it is.

    `about` goes into the card.
    """
    if course.best is None:
        return "no probe gave a score: there is no best encoder"
    folder = step_folder(shelf.root, course.best_step)
    try:
        shelf.verified(folder)
        tensors = from_checkpoint(folder, out).tensors
    except (CheckpointError, OSError) as error:
        return (
            f"the checkpoint of step {course.best_step}, which the probe scored best, is not there "
            f"({error}): keep it by --checkpoint.keep-best"
        )
    weights = {k.removeprefix(PART): v for k, v in tensors.items() if k.startswith(PART)}
    (out / BEST).mkdir(exist_ok=True)
    save_encoder(
        out / BEST, shape.vit, weights, {**about, "step": course.best_step}, shape.backbone
    )
    return ""
