"""Bytes that a rank needs, by what they are for.

P parameters, s ranks a shard group, e bytes of the compute dtype:
    weights, gradients, moments          4 (2 + m) P / s, exact from the sharding itself; m is 2 of
                                         AdamW and LAMB, 1 of SGD
    gathered weights                     e times the root's and the three largest blocks' parameters
    whole gradients                      4 P where micro-batches are accumulated
    activations                          e times the values of mim3d.engine.models.activations
    crops                                two batches in float32
    voxels, or compressed chunks         where data.cache is device: data.cache_bytes, at most the
                                         loader's share of a device on which nothing lies yet, for
                                         it is opened before the model is built
and in the host's memory the background checkpoint's copy, 4 (1 + m) P / s.
"""

import math
from dataclasses import dataclass

from mim3d.dataio.device.device_fit import DeviceRoom
from mim3d.dataio.loader.config import LoaderConfig
from mim3d.dataio.reader.corpus import is_address
from mim3d.dataio.registry import resolved
from mim3d.engine.distributed.parallel import stays_whole
from mim3d.engine.models.registry import way_of
from mim3d.engine.planning.corpus import CorpusFacts
from mim3d.engine.planning.sharding import ShardSizes
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.training.optim import MOMENTS

CROP_ITEM = 4
"""Bytes of a voxel of a batch, float32."""


def compute_bytes(config: PretrainConfig) -> int:
    """Bytes of a value in forward and backward: auto is a half type, for a plan is for GPUs."""
    return 4 if config.parallel.precision == "fp32" else 2


def state_bytes(config: PretrainConfig) -> int:
    """Bytes of a parameter with its gradient and moments, all float32."""
    return 4 * (2 + len(MOMENTS[config.optim.kind]))


def activation_values(config: PretrainConfig) -> float:
    """Values kept for backward by one crop."""
    shape = config.encoder
    count = resolved(way_of(config.method, shape).activations)
    return count(config.method, shape, config.parallel.recompute)


def accumulated_bytes(config: PretrainConfig, shards: ShardSizes, gpus: int) -> float:
    """Bytes of gradients that are summed whole, in fp32, before ranks exchange them."""
    if config.parallel.grad_accum == 1:
        return 0.0
    if is_left_whole(config, gpus):  # a micro-batch's in the half type, beside the sum
        return half_copy_bytes(config, shards, gpus) / 2
    return 4.0 * shards.parameters


def half_copy_bytes(config: PretrainConfig, shards: ShardSizes, gpus: int) -> float:
    """Bytes of the copy of whole weights that is computed with, and of its gradients."""
    width = compute_bytes(config)
    copies = is_left_whole(config, gpus) and width < 4
    return 2.0 * width * shards.parameters if copies else 0.0


def is_left_whole(config: PretrainConfig, gpus: int) -> bool:
    """Whether FSDP has nothing to do, as each rank has all weights."""
    return stays_whole(config.parallel, gpus)


@dataclass(frozen=True)
class Memory:
    """GB of a rank: what is on its device, and what in the host's memory."""

    state: float
    """Weights, gradients and the optimiser's moments, exact; of whole ones the half copy too."""
    gathered: float
    accumulated: float
    """Whole gradients kept from micro-batch to micro-batch."""
    activations: float
    crops: float
    """The batch that is computed on, and the next."""
    cache: float
    """What `data.cache device` keeps in the device's memory: decoded voxels, or chunks."""
    host_cache: float
    """Compressed chunks in the host's memory."""
    host_checkpoint: float
    """The copy that is written while training goes on."""

    @property
    def device(self) -> float:
        """All that is on the device."""
        return self.kept + self.activations

    @property
    def kept(self) -> float:
        """The same without what backward needs."""
        return self.state + self.gathered + self.accumulated + self.crops + self.cache

    @property
    def host(self) -> float:
        """All that is in the host's memory, but for what is read ahead."""
        return self.host_cache + self.host_checkpoint


def memory_of(
    config: PretrainConfig,
    gpus: int,
    shards: ShardSizes,
    micro_batch: int,
    facts: CorpusFacts | None = None,
    memory_gb: float | None = None,
) -> Memory:
    """A run's; where the corpus is known no cache is larger than it.

    `memory_gb` is the device's, None where that is no limit of a cache.
    """
    width, loader = compute_bytes(config), config.data.loader
    gathered = 0 if is_left_whole(config, gpus) else shards.gathered_parameters
    kept = loader.cache_bytes / 1e9
    if facts is not None:
        kept = min(kept, facts.stored_gb)
    voxels = math.prod(config.vit.crop_size) * config.vit.channels * config.method.views
    moments = len(MOMENTS[config.optim.kind])
    saved = 4.0 * (1 + moments) * shards.local_parameters
    return Memory(
        state=(
            state_bytes(config) * shards.local_parameters + half_copy_bytes(config, shards, gpus)
        )
        / 1e9,
        gathered=width * gathered / 1e9,
        accumulated=accumulated_bytes(config, shards, gpus) / 1e9,
        activations=width * activation_values(config) * micro_batch / 1e9,
        crops=2.0 * CROP_ITEM * voxels * micro_batch / 1e9,
        cache=device_cache_gb(loader, facts, memory_gb) if loader.cache == "device" else 0.0,
        host_cache=kept if keeps_on_host(config) else 0.0,
        host_checkpoint=saved / 1e9 if config.checkpoint.asynchronous else 0.0,
    )


def device_room(loader: LoaderConfig, memory_gb: float | None) -> DeviceRoom:
    """How much a cache on the device may take, by the loader's own rule: nothing lies there yet."""
    return DeviceRoom(loader.cache_bytes, None if memory_gb is None else int(memory_gb * 1e9))


def device_cache_gb(
    loader: LoaderConfig, facts: CorpusFacts | None, memory_gb: float | None = None
) -> float:
    """What a cache on the device takes of a corpus, or all that it may where none is known."""
    room = device_room(loader, memory_gb).nbytes / 1e9
    if facts is None:
        return room
    voxels = keeps_voxels(loader, facts, memory_gb)
    return facts.decoded_gb if voxels else min(room, facts.stored_gb)


def keeps_voxels(
    loader: LoaderConfig, facts: CorpusFacts | None, memory_gb: float | None = None
) -> bool:
    """Whether a device keeps decoded voxels, all of them, so that none is decoded twice.

    As the loader decides: where they are asked for a run keeps them or is refused.
    """
    if facts is None or loader.device_keeps != "auto":
        return loader.device_keeps == "voxels"
    return facts.decoded_gb <= device_room(loader, memory_gb).nbytes / 1e9


def keeps_on_host(config: PretrainConfig) -> bool:
    """Whether the loader keeps chunks itself; of a folder the page cache does, as far as it can."""
    cache = config.data.loader.cache
    return cache == "host" or (cache == "auto" and is_address(config.data.corpus))
