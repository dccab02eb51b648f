"""A pretext task of one's own, in one file: by how many quarter turns was the crop turned?

    mim3d pretrain demo-turns --plugin examples/turns_plugin.py --data.corpus C --out RUN

RotNet (Gidaris et al. 2018) in the axial plane. Checkpoints, ranks, precision and exports are the
engine's; what is written here is the task.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mim3d import recipe, register_method, register_recipe
from mim3d.dataio.loader import Batch
from mim3d.engine.models import EncoderShape, MethodConfig, Objective, StepOutput

TURNS = 4


@dataclass(frozen=True)
class TurnsConfig(MethodConfig):
    """What the task can be told: every field is an option, --method.hidden and so on."""

    name: ClassVar[str] = "turns"
    hidden: int = 192
    """Hidden features of the classifier."""


class Turns(Objective):
    """The encoder, the mean of its tokens, and a classifier of the turn."""

    def __init__(self, config: TurnsConfig, shape: EncoderShape, seed: int) -> None:
        super().__init__()
        self.encoder = shape.make()
        self.head = nn.Sequential(
            nn.Linear(shape.width, config.hidden), nn.GELU(), nn.Linear(config.hidden, TURNS)
        )

    def forward(self, batch: Batch, share: float = 1.0, measure: bool = False) -> StepOutput:
        """Cross-entropy; a crop's turn follows from its number, so that a resume repeats it."""
        turns = (batch.sample * 2654435761 // 65536 % TURNS).to(batch.image.device)
        crops = [torch.rot90(c, int(k), (-2, -1)) for c, k in zip(batch.image, turns, strict=True)]
        logits = self.head(self.encoder(torch.stack(crops)).mean(1))
        loss = cross_entropy(logits.float(), turns) * share
        return StepOutput(loss, self.baselines(batch) if measure else {})

    def baselines(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of a guess: what the run's verdict holds the task against."""
        return {"chance": torch.tensor(math.log(TURNS), device=batch.image.device)}


register_method(TurnsConfig, Turns)
register_recipe("demo-turns", lambda: replace(recipe("demo-mae"), method=TurnsConfig()))
