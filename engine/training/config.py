"""What every training run can be told of its optimiser, rate and measurement; imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mim3d.dataio.finite import refuse_not_finite
from mim3d.engine.errors import ConfigError


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser; the rate's course is in `schedule`."""

    impl: Literal["torch", "apex"] = "torch"
    """torch.optim.AdamW(fused=True) and LAMB in torch, or NVIDIA apex's fused kernels."""
    kind: Literal["adamw", "lamb", "sgd"] = "adamw"
    """lamb scales each matrix's update to its norm, for very large batches; sgd has Nesterov's
    momentum, as nnU-Net's, and its weight decay is added to the gradient."""
    momentum: float = 0.99
    """Share of the last update that sgd keeps."""
    decays: Literal["matrices", "all"] = "matrices"
    """Which parameters decay: all but vectors and positions; or all, as in nnssl and nnU-Net."""
    weight_decay: float = 0.05
    """Decoupled decay of matrices; vectors (norms, biases, tokens) have none, see decays."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    clip_norm: float = 1.0
    """Largest norm of the global gradient; 0 turns clipping off."""

    def __post_init__(self) -> None:
        """Refuse what would diverge, or quietly do something else."""
        refuse_not_finite(self, "optim", ConfigError)
        shares = (self.beta1, self.beta2, self.momentum)
        if not all(0.0 <= share < 1.0 for share in shares):
            raise ConfigError(
                f"optim.beta1 {self.beta1}, optim.beta2 {self.beta2} and optim.momentum "
                f"{self.momentum} must lie in [0, 1)"
            )
        if self.kind == "sgd" and (self.impl == "apex" or not self.momentum):
            raise ConfigError(
                f"optim.kind sgd with optim.impl {self.impl} and optim.momentum {self.momentum}: "
                "it has Nesterov's momentum, above 0, and runs on --optim.impl torch"
            )
        least = min(self.weight_decay, self.clip_norm)
        if not (least >= 0.0 and self.eps > 0.0):
            raise ConfigError(
                f"optim.weight_decay {self.weight_decay} and optim.clip_norm {self.clip_norm} must "
                f"not be negative, optim.eps {self.eps} must be positive"
            )


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then a cosine or polynomial to a share of the peak, constant, or constant and
    a decay."""

    lr: float = 1.5e-4
    """Peak learning rate."""
    kind: Literal["cosine", "constant", "wsd", "poly"] = "cosine"
    """Course after the warm-up; wsd (warm-up, stable, decay) is constant and falls at the end; poly
    is nnU-Net's (1 - t)^0.9."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    epoch_steps: int = 1
    """Steps that share a rate, that of their first; nnU-Net's epochs have 250."""
    final_share: float = 0.0
    """Share of the peak that all but constant fall to, where a step more would begin."""
    decay_share: float = 0.2
    """Share of all steps over which wsd falls, as 1 - sqrt."""

    def __post_init__(self) -> None:
        """Refuse rates that cannot train."""
        refuse_not_finite(self, "schedule", ConfigError)
        if self.epoch_steps < 1 or self.warmup_steps % self.epoch_steps:
            raise ConfigError(
                f"schedule.epoch_steps {self.epoch_steps} must be at least 1 and divide "
                f"schedule.warmup_steps {self.warmup_steps}"
            )
        if not 0.0 <= self.decay_share <= 1.0:
            raise ConfigError(f"schedule.decay_share {self.decay_share} must lie in [0, 1]")
        if not self.lr > 0.0 or not 0.0 <= self.final_share <= 1.0 or self.warmup_steps < 0:
            raise ConfigError(
                f"schedule.lr {self.lr} must be positive, schedule.final_share {self.final_share} "
                f"in [0, 1] and schedule.warmup_steps {self.warmup_steps} not negative"
            )

    def decay_start(self, steps: int) -> int:
        """The first step out of `steps` whose rate falls; that of a constant one is past the last.

        Up to there a run is the same however many steps it has.
        """
        starts = {
            "cosine": 0,
            "poly": 0,
            "constant": steps,
            "wsd": steps - round(self.decay_share * steps),
        }
        return max(min(self.warmup_steps, steps), starts[self.kind])


def schedule_identity(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule's plain values without those that its kind does not heed."""
    later = {"decay_share"} if plain.get("kind") != "wsd" else set()
    if plain.get("epoch_steps", 1) == 1:  # runs of before have none
        later |= {"epoch_steps"}
    return {key: value for key, value in plain.items() if key not in later}


def optim_identity(plain: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser's plain values without those that its kind does not heed, or that came later."""
    later = {"momentum"} if plain.get("kind") != "sgd" else set()
    if plain.get("decays", "matrices") == "matrices":
        later |= {"decays"}
    return {key: value for key, value in plain.items() if key not in later}


@dataclass(frozen=True)
class DivergenceConfig:
    """What becomes of a run whose gradients stay non-finite for `log.max_bad_steps` steps."""

    on_divergence: Literal["stop", "rewind"] = "stop"
    """stop; or rewind: go back to the last checkpoint from before the first such step, skip the
    samples since, and lower the rate."""
    max_rewinds: int = 3
    """Times that a run goes back before it stops after all."""
    rewind_rate: float = 0.5
    """Share of the rate that is left after each time."""

    def __post_init__(self) -> None:
        """A rate that is left, and a number of times."""
        refuse_not_finite(self, kind=ConfigError)
        if self.max_rewinds < 1 or not 0.0 < self.rewind_rate <= 1.0:
            raise ConfigError(
                f"max_rewinds {self.max_rewinds} must be at least 1 and rewind_rate "
                f"{self.rewind_rate} in (0, 1]"
            )


@dataclass(frozen=True)
class LogConfig:
    """What is measured and where it goes; metrics.jsonl is always written."""

    every: int = 20
    """Steps between rows; only these steps wait for the device."""
    tensorboard: bool = True
    """Also write TensorBoard events."""
    wandb: bool = False
    """Also log to Weights & Biases (pip install wandb)."""
    profile_step: int = 0
    """First step of a torch.profiler window; 0 takes no trace."""
    profile_steps: int = 3
    """Length of that window."""
    max_bad_steps: int = 10
    """Stop after this many steps in a row with non-finite gradients."""

    def __post_init__(self) -> None:
        """Intervals are at least one step."""
        if min(self.every, self.profile_steps, self.max_bad_steps) < 1:
            raise ConfigError("log.every, log.profile_steps and log.max_bad_steps: at least 1")
        if self.profile_step < 0:
            raise ConfigError(
                f"log.profile_step {self.profile_step} must not be negative; 0 turns it off"
            )
