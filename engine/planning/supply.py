"""What a run asks of loader, processor and disk, at the speed of its steps."""

import math
from dataclasses import dataclass

from mim3d.dataio.transforms.augment import Augmentation
from mim3d.engine.planning.corpus import CorpusFacts, item_bytes
from mim3d.engine.planning.machine import Machine
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.training.optim import MOMENTS


@dataclass(frozen=True)
class Supply:
    """Of one rank where not said otherwise."""

    gb_per_s: float
    """Decoded voxels, in the corpus's dtype or as int16."""
    cores: float
    """Processor cores that read, decode and augment."""
    stored_gb_per_s: float
    """Compressed bytes read by all ranks, while none are kept."""
    stored_tb: float
    """Compressed bytes of all crops of the run."""
    checkpoint_gb: float
    """A checkpoint of the whole model on disk."""
    checkpoints: int
    """Kept at a time, with the one being written."""


def supply_of(
    config: PretrainConfig,
    gpus: int,
    crops_per_s: float,
    parameters: int,
    machine: Machine,
    facts: CorpusFacts | None,
) -> Supply:
    """At so many crops a second of all ranks; a crop's two views are read once."""
    voxels = math.prod(config.vit.crop_size) * config.vit.channels
    rate = crops_per_s / gpus
    stored = facts.bytes_per_voxel if facts else machine.value("stored_bytes_per_voxel")
    keep = config.checkpoint
    return Supply(
        gb_per_s=item_bytes(facts) * voxels * rate * config.method.views / 1e9,
        cores=rate * core_seconds(config, machine),
        stored_gb_per_s=stored * voxels * crops_per_s / 1e9,
        stored_tb=stored * voxels * config.steps * config.global_batch / 1e12,
        checkpoint_gb=checkpoint_bytes(config, parameters) / 1e9,
        checkpoints=keep.keep + int(keep.keep_best) + 1,
    )


def core_seconds(config: PretrainConfig, machine: Machine) -> float:
    """Processor seconds of a crop: read and decoded, or its streams packed for the device; and
    turned, where that is the processor's task."""
    voxels = math.prod(config.vit.crop_size) * config.vit.channels
    loader = config.data.loader
    if loader.cache == "device":
        return machine.value("fetch_us_per_crop") * 1e-6
    seconds = voxels / (machine.value("read_gvoxels_per_core") * 1e9)
    if turns_on_host(config, machine):
        views = config.method.views
        seconds += views * voxels / (machine.value("turn_gvoxels_per_core") * 1e9)
    moved = moved_share(config)
    return seconds + moved * voxels / (machine.value("resample_gvoxels_per_core") * 1e9)


def moved_share(config: PretrainConfig) -> float:
    """How many crops are turned or zoomed within their volumes: read in larger boxes, resampled.

    With cache=device the GPU does it.
    """
    spatial = augmentation_of(config).spatial
    if spatial is None or config.data.loader.cache == "device":
        return 0.0
    return 1.0 - (1.0 - spatial.rotate) * (1.0 - spatial.zoom)


def augmentation_of(config: PretrainConfig) -> Augmentation:
    """What happens to a crop."""
    return config.data.loader_config(config.vit, config.method, 1, config.seed).augmentation


def turns_on_host(config: PretrainConfig, machine: Machine) -> bool:
    """Whether crops are turned, zoomed or blurred by the processor: on a GPU they are by it."""
    kind = augmentation_of(config)
    return machine.kind == "cpu" and bool(kind.rotate or kind.zoom or kind.blur)


def checkpoint_bytes(config: PretrainConfig, parameters: int) -> float:
    """Weights and moments, in float32."""
    return 4.0 * (1 + len(MOMENTS[config.optim.kind])) * parameters
