"""Who learns how fast: the encoder's rate, layer by layer, and the head that begins alone.

Sawtooth: the head trains alone while its rate rises, then the encoder joins and the rate rises
again (Wald et al. 2024, "Revisiting MAE pre-training for 3D medical image segmentation", section
on fine-tuning; nnU-Net's PretrainedTrainer_sawtooth). Layer decay as in BEiT (Bao et al. 2022).
"""

import re

from mim3d.engine.finetune.config import FinetuneConfig
from mim3d.engine.training.trainer import Hook, Trainer

ENCODER = "net.encoder."
BLOCK = re.compile(r"net\.encoder\.blocks\.(\d+)\.")
SWIN_STAGE = re.compile(r"net\.encoder\.swin\.layers(\d)")
RESIDUAL_STAGE = re.compile(r"net\.encoder\.stages\.(\d+)\.")
SWIN_STAGES = 4


def lr_scale(config: FinetuneConfig, name: str) -> float:
    """A parameter's share of the rate: a scale for the encoder, less for its earlier layers."""
    if not name.startswith(ENCODER):
        return 1.0
    layers = config.vit.depth if config.swin is None else SWIN_STAGES
    if config.resenc is not None:
        layers = len(config.resenc.features)
    return config.encoder_lr_scale * config.layer_decay ** (layers + 1 - layer_of(name, layers))


def layer_of(name: str, layers: int) -> int:
    """Number of an encoder's layer from its input: 0 the embedding, the last one its norm."""
    if block := BLOCK.match(name) or RESIDUAL_STAGE.match(name):
        return int(block[1]) + 1
    if stage := SWIN_STAGE.match(name):
        return int(stage[1])
    return layers + 1 if name.startswith(f"{ENCODER}norm.") else 0


def is_held(config: FinetuneConfig, name: str) -> bool:
    """Whether a parameter waits while the head trains alone."""
    return config.head_steps > 0 and name.startswith(ENCODER)


class HeadFirst(Hook):
    """Holds the encoder for the first `head_steps` steps."""

    def __init__(self, head_steps: int) -> None:
        self.head_steps = head_steps

    def before_step(self, trainer: Trainer) -> None:
        """Held parameters get a rate of 0; their moments go on, so they know their gradients."""
        trainer.stepper.optimiser.holding = trainer.step < self.head_steps
