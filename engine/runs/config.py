"""When a run is saved, and in what form encoders leave and enter; imports no torch."""

import re
from dataclasses import dataclass
from typing import Literal

from mim3d.engine.errors import ConfigError

Format = Literal["safetensors", "monai-vit", "monai-unetr", "monai-swinunetr", "nnunet"]
Axes = Literal["xyz", "zyx"]
CHANNELS = re.compile(r"(\d+|-)(,(\d+|-))*")
"""A choice of a source's channel, or of their mean, for each of a run's."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved."""

    every: int = 1000
    """Steps between checkpoints; the last step and an interruption are saved anyway."""
    keep: int = 2
    """Newest checkpoints kept."""
    keep_best: bool = True
    """Also keep the one with the lowest mean loss since the one before; where there is a probe,
    the one that it scores best."""
    asynchronous: bool = True
    """Write while training goes on."""

    def __post_init__(self) -> None:
        """At least one must stay, two for a way back from damage."""
        if self.every < 1 or self.keep < 1:
            raise ConfigError(
                f"checkpoint.every {self.every} and checkpoint.keep {self.keep} must be at least 1"
            )


def check_channel_map(text: str) -> None:
    """A ConfigError where an option `init_channels` is none of its forms."""
    if text != "auto" and not CHANNELS.fullmatch(text):
        raise ConfigError(
            f"init_channels {text!r} must be auto, or for each channel of this run the number of "
            "the weights' channel (from 0) or - for their mean, such as 0,1,-"
        )
