"""The configuration of a pretraining run: typed, checked, and stored with the run as JSON."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from mim3d.dataio.loader_config import LoaderConfig
from mim3d.engine.errors import ConfigError
from mim3d.engine.mae import MAEConfig
from mim3d.engine.schedule import ScheduleConfig
from mim3d.engine.simclr import SimCLRConfig
from mim3d.engine.simmim import SimMIMConfig
from mim3d.engine.swin import SwinConfig
from mim3d.engine.vit import ViTConfig

MethodConfig = MAEConfig | SimMIMConfig | SimCLRConfig
Precision = Literal["auto", "fp32", "bf16", "fp16"]
SEED_MARGIN = 1 << 32
"""Seeds derived from a run's own lie above it."""


@dataclass(frozen=True)
class DataConfig:
    """Which crops are drawn, and how they arrive."""

    corpus: str = ""
    """Folder or address (s3://BUCKET/KEY) of the corpus that `mim3d convert` wrote."""
    subjects: tuple[str, ...] | None = None
    """Train on these subjects only; all where not given."""
    held_out: float = 0.0
    """Share of the subjects kept out of training, on which the pretext is scored."""
    held_out_subjects: tuple[str, ...] = ()
    """Or these subjects, by name."""
    held_out_crops: int = 64
    """Crops of held-out subjects that a score is the mean of, always the same: whole batches of
    the run, so as many or the next more (a row's held_out_crops)."""
    weighting: Literal["uniform", "voxels", "foreground"] = "uniform"
    """How often a volume is drawn."""
    normalise: str = "zscore"
    """none, zscore, clip-zscore, percentile or window:LOW:HIGH."""
    augment: Literal["auto", "none", "mim", "contrastive"] = "auto"
    """auto is contrastive for SimCLR and mim for the others."""
    snap: int = 16
    """Crops start at multiples of this many voxels: fewer chunks are read."""
    cache: Literal["none", "host", "device"] = "host"
    """Where compressed chunks stay."""
    cache_bytes: int = 4 << 30
    """Budget of that cache."""
    on_error: Literal["raise", "replace"] = "raise"
    """A damaged chunk stops the run, or is replaced and counted."""
    threads: int = 2
    """Reading and decoding threads of a rank."""
    prefetch: int = 2
    """Batches made ahead."""

    def __post_init__(self) -> None:
        """A share below one, told once."""
        if not 0.0 <= self.held_out < 1.0 or self.held_out_crops < 1:
            raise ConfigError(
                f"data.held_out {self.held_out} must lie in [0, 1) and data.held_out_crops "
                f"{self.held_out_crops} must be at least 1"
            )
        both = set(self.subjects or ()) & set(self.held_out_subjects)
        if both or (self.held_out and self.held_out_subjects):
            raise ConfigError(
                f"data.held_out {self.held_out} and data.held_out_subjects exclude one another, "
                f"and data.subjects: {sorted(both)[:3]} stand in both lists"
            )

    def loader_config(
        self, vit: ViTConfig, method: MethodConfig, micro_batch: int, seed: int
    ) -> LoaderConfig:
        """The loader's configuration for one rank."""
        contrastive = isinstance(method, SimCLRConfig)
        automatic = "contrastive" if contrastive else "mim"
        return LoaderConfig(
            crop_size=vit.crop_size,
            micro_batch=micro_batch,
            views=2 if contrastive else 1,
            seed=seed,
            snap=self.snap,
            weighting=self.weighting,
            normalise=self.normalise,
            augment=automatic if self.augment == "auto" else self.augment,
            cache=self.cache,
            cache_bytes=self.cache_bytes,
            on_error=self.on_error,
            threads=self.threads,
            prefetch=self.prefetch,
        )


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser; the rate's course is in `schedule`."""

    impl: Literal["torch", "apex"] = "torch"
    """torch.optim.AdamW(fused=True) and LAMB in torch, or NVIDIA apex's fused kernels."""
    kind: Literal["adamw", "lamb"] = "adamw"
    """lamb scales each matrix's update to its norm, for very large batches."""
    weight_decay: float = 0.05
    """Decoupled decay of matrices; vectors (norms, biases, tokens) have none."""
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
        if not (0.0 <= self.beta1 < 1.0 and 0.0 <= self.beta2 < 1.0):
            raise ConfigError(
                f"optim.beta1 {self.beta1} and optim.beta2 {self.beta2} must lie in [0, 1)"
            )
        least = min(self.weight_decay, self.clip_norm)
        if not (least >= 0.0 and self.eps > 0.0 and math.isfinite(self.weight_decay)):
            raise ConfigError(
                f"optim.weight_decay {self.weight_decay} and optim.clip_norm {self.clip_norm} must "
                f"not be negative, optim.eps {self.eps} must be positive"
            )


@dataclass(frozen=True)
class ParallelConfig:
    """How the model is spread over ranks and how a step is computed."""

    replicate: int = 1
    """Groups of ranks that each hold the whole model (HSDP); 1 shards over all ranks (FSDP)."""
    grad_accum: int = 1
    """Micro-batches of a step."""
    precision: Precision = "auto"
    """auto is bf16 where the GPU has it, fp16 with a loss scaler where not, fp32 on a CPU."""
    recompute: bool = False
    """Rebuild activations of blocks in backward: less memory, a third more arithmetic."""
    compile: bool = False
    """torch.compile every block."""
    reshard_after_forward: bool = True
    """Free a block's gathered parameters after its forward pass."""
    min_block_parameters: int = 1_000_000
    """Smaller blocks are gathered with the root: a collective of their own would cost more."""
    one_rank: Literal["whole", "sharded"] = "whole"
    """A single rank in fp32: the model as it is, or FSDP all the same, copying it each step."""
    deterministic: bool = False
    """Deterministic kernels on a GPU, slower: there, bitwise repeats and resumes need it."""
    timeout_s: float = 600.0
    """A rank that waits this long for another ends the run."""

    def __post_init__(self) -> None:
        """Counts are at least one."""
        if min(self.replicate, self.grad_accum) < 1:
            raise ConfigError(
                f"parallel.replicate {self.replicate} and parallel.grad_accum {self.grad_accum} "
                "must be at least 1"
            )
        if not self.timeout_s > 0.0:
            raise ConfigError(f"parallel.timeout_s {self.timeout_s} must be positive")


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


@dataclass(frozen=True)
class LogConfig:
    """What is measured and where it goes; metrics.jsonl is always written."""

    every: int = 20
    """Steps between rows; only these steps wait for the device."""
    tensorboard: bool = True
    """Also write TensorBoard events."""
    wandb: bool = False
    """Also log to Weights & Biases (pip install wandb)."""
    picture_every: int = 0
    """Steps between reconstruction pictures; 0 draws at the end only."""
    held_out_every: int = 0
    """Steps between scores on held-out subjects; 0 scores at the end only."""
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
        if min(self.picture_every, self.held_out_every, self.profile_step) < 0:
            raise ConfigError(
                f"log.picture_every {self.picture_every}, log.held_out_every {self.held_out_every} "
                f"and log.profile_step {self.profile_step} must not be negative; 0 turns them off"
            )


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run, whole."""

    method: MethodConfig = field(default_factory=MAEConfig)
    vit: ViTConfig = field(default_factory=ViTConfig)
    swin: SwinConfig | None = None
    """A Swin encoder in the ViT's place (SimMIM and SimCLR); crop and channels stay vit's."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    global_batch: int = 64
    """Crops of a step over all ranks and micro-batches."""
    steps: int = 1000
    """Optimiser steps."""
    seed: int = 0
    """Of initial weights, crops, augmentation and masks."""

    def __post_init__(self) -> None:
        """Check what no part can see alone."""
        if min(self.global_batch, self.steps) < 1:
            raise ConfigError(
                f"global_batch {self.global_batch} and steps {self.steps} must be at least 1"
            )
        if not 0 <= self.seed < 2**63 - SEED_MARGIN:
            raise ConfigError(f"seed {self.seed} must lie in [0, 2^63 - {SEED_MARGIN})")
        if self.log.profile_step > self.steps:
            raise ConfigError(
                f"log.profile_step {self.log.profile_step} lies past the last of {self.steps} steps"
            )
        if (
            isinstance(self.method, SimCLRConfig)
            and self.global_batch // self.parallel.grad_accum < 2
        ):
            raise ConfigError(
                f"global_batch {self.global_batch} in parallel.grad_accum "
                f"{self.parallel.grad_accum} parts leaves SimCLR no negatives: two crops at least"
            )
        if self.swin is not None and isinstance(self.method, MAEConfig):
            raise ConfigError(
                "MAE drops tokens, which Swin's windows cannot: use a simmim or simclr recipe with "
                "swin, or MAE with the vit"
            )

    def micro_batch(self, world: int) -> int:
        """Crops of one rank's micro-batch."""
        parts = world * self.parallel.grad_accum
        if self.global_batch % parts:
            raise ConfigError(
                f"global_batch {self.global_batch} must be a multiple of {world} ranks x "
                f"grad_accum {self.parallel.grad_accum} = {parts}"
            )
        return self.global_batch // parts


def config_dict(config: object) -> dict[str, Any]:
    """Plain nested values of a configuration, with the method's name."""
    plain = json.loads(json.dumps(dataclasses.asdict(config), default=str))  # pyright: ignore
    if isinstance(config, PretrainConfig):
        plain["method"]["name"] = method_name(config.method)
    return plain


def method_name(method: MethodConfig) -> str:
    """mae, simmim or simclr."""
    return type(method).__name__.removesuffix("Config").lower()


NOT_IDENTITY = ("checkpoint", "log", "parallel", "dealt", "environment")
"""Parts that a resumed run may change: they do not decide what is learned (but for SimCLR's
gradient accumulation, see `identity_of`)."""


def config_identity(config: PretrainConfig) -> dict[str, Any]:
    """What must be equal for a run to be resumed; where the corpus lies does not matter."""
    return identity_of(config_dict(config))


def identity_of(stored: dict[str, Any]) -> dict[str, Any]:
    """The same of a configuration's plain values, as `config_dict` makes them."""
    plain = {key: value for key, value in stored.items() if key not in NOT_IDENTITY}
    plain["data"] = dict(plain["data"])
    for key in ("corpus", "cache", "cache_bytes", "threads", "prefetch", "held_out_crops"):
        plain["data"].pop(key, None)
    for key in ("held_out", "held_out_subjects"):
        if not plain["data"].get(key):  # runs from before these existed stay what they were
            plain["data"].pop(key, None)
    accum = stored.get("parallel", {}).get("grad_accum", 1)
    if plain["method"].get("name") == "simclr" and accum > 1:
        # Negatives come from one micro-batch of all ranks: another split is another task.
        plain["parallel"] = {"grad_accum": accum}
    return plain


def config_sha256(identity: dict[str, Any]) -> str:
    """Hash of a configuration's plain values."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
