"""What `mim3d bench step` is asked for, and the recipe that it steps."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mim3d.dataio.finite import refuse_not_finite, refuse_outside
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import MAEConfig
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.recipes import recipe

if TYPE_CHECKING:
    from mim3d.engine.distributed.process_group import Ranks  # loads torch

LR = 1e-4
"""Rate of every update that is timed."""


@dataclass(frozen=True)
class StepBench:
    """Time training steps in interleaved rounds; every figure is told with its range over them.

    `model` is forward and backward of the bare module, its blocks compiled if the engine's are;
    `in memory` the engine's step on a batch that is already there (FSDP, clipping, optimiser);
    `loader` the same fed by the real loader.
    """

    recipe: str = ""
    """Recipe to time; demo-mae on a CPU and mae-vit-b-96 on a GPU where not given."""
    corpus: Annotated[Path | None, tyro.conf.arg(name="data.corpus", aliases=("--corpus",))] = None
    """Corpus for the loader; 64 generated volumes where not given."""
    global_batch: int = 0
    """Crops a step; 0 keeps the recipe's."""
    steps: int = 10
    """Steps of a round."""
    rounds: int = 5
    """Interleaved rounds; a ratio that they do not resolve is called unresolved."""
    warmup: int = 3
    """Steps before the first round."""
    cache: Literal["recipe", "none", "host", "device"] = "recipe"
    """The loader's cache; "device" decompresses with nvCOMP."""
    loader: bool = True
    """Off: random batches stand in for the loader's, and neither DALI nor nvCOMP is needed."""
    peers: bool = False
    """Also time MAE as facebookresearch/mae, MIM-Med3D and nnssl write it, all else equal."""
    compiled: bool | None = None
    """With --peers, also a plain PyTorch step compiled whole. Default: on a GPU."""
    sweep: bool = False
    """Try micro-batches, threads, caches and batches read ahead instead, and end in the settings
    recommended for this machine and what bounds a run on it."""
    calibrate: Path | None = None
    """File to write what `mim3d plan --calibration` reads: how long this machine takes for the
    operations of a step, with small steps that it is checked against; --recipe adds that one."""
    profile: Path | None = None
    """Folder for profile.txt: where the device's time goes in three steps of each contestant."""

    def __post_init__(self) -> None:
        """Counts that can be."""
        refuse_not_finite(self)
        refuse_outside(self, "steps rounds", 1)
        refuse_outside(self, "global_batch warmup", 0)


def chosen_config(options: StepBench, ranks: "Ranks") -> PretrainConfig:
    """The recipe with the batch asked for."""
    config = recipe(options.recipe or default_recipe(ranks))
    if options.peers and not isinstance(config.method, MAEConfig):
        raise ConfigError(f"--peers times MAE's eager recipe; {options.recipe} is no MAE")
    data = config.data
    if options.cache != "recipe":
        loader = dataclasses.replace(data.loader, cache=options.cache)
        data = dataclasses.replace(data, loader=loader)
    batch = options.global_batch or config.global_batch
    return dataclasses.replace(config, global_batch=batch, data=data).for_ranks(ranks.world)


def default_recipe(ranks: "Ranks") -> str:
    """The recipe timed where none is asked for."""
    return "mae-vit-b-96" if ranks.device.type == "cuda" else "demo-mae"


@dataclass(frozen=True)
class OptimBench:
    """Time optimiser updates in interleaved rounds; the median round of each counts.

    "clipped" contestants also find the gradient's norm and clip by it, as a training step does.
    Ratios are by processor time on a CPU and by wall clock on a GPU; both are told.
    """

    recipe: str = ""
    """Recipe whose parameters are updated; demo-mae on a CPU and mae-vit-l-128 on a GPU."""
    steps: int = 10
    """Updates of a round."""
    rounds: int = 7
    """Interleaved rounds."""
    peers: bool = False
    """Accepted for the sake of `bench all`: the peers are always timed."""

    def __post_init__(self) -> None:
        """Counts that can be."""
        refuse_not_finite(self)
        refuse_outside(self, "steps rounds", 1)
