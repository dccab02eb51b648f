"""Errors of configuration, checkpoints and runs; each message tells both values and the remedy."""

from mim3d.dataio.errors import Mim3dError


class ConfigError(Mim3dError):
    """A field of a recipe, or two that do not go together."""


class CheckpointError(Mim3dError):
    """A checkpoint is missing, damaged, of another configuration, or not to be trusted."""


class TrainingError(Mim3dError):
    """A run cannot go on: gradients stay non-finite, the corpus changed, a disk is full."""


class StoppedError(TrainingError):
    """A run of a study that a signal told to stop; it is saved, and the same command goes on."""


class DivergedError(TrainingError):
    """Gradients stayed non-finite; the weights are those before the first such step."""


EXIT_OK, EXIT_USER_ERROR, EXIT_LOST = 0, 2, 3
