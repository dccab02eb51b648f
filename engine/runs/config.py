"""When a run is saved, and what an encoder is exported as; imports no torch."""

from dataclasses import dataclass
from typing import Literal

from mim3d.engine.errors import ConfigError

Format = Literal["safetensors", "monai-unetr", "monai-swinunetr", "nnunet"]
Axes = Literal["xyz", "zyx"]


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved."""

    every: int = 1000
    """Steps between checkpoints; the last step and an interruption are saved anyway."""
    keep: int = 2
    """Newest checkpoints kept."""
    keep_best: bool = True
    """Also keep the one with the lowest mean loss since the one before."""
    asynchronous: bool = True
    """Write while training goes on."""

    def __post_init__(self) -> None:
        """At least one must stay, two for a way back from damage."""
        if self.every < 1 or self.keep < 1:
            raise ConfigError(
                f"checkpoint.every {self.every} and checkpoint.keep {self.keep} must be at least 1"
            )
