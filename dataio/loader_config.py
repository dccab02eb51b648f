"""Everything a loader can be told, checked once."""

from dataclasses import dataclass

from mim3d.dataio.augment import augmentation
from mim3d.dataio.chunk_boxes import Triple
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.normalisation import parse_mode
from mim3d.dataio.sampler import WEIGHTINGS

DTYPES = ("float32", "float16", "bfloat16")
CACHES = ("none", "host", "device")


@dataclass(frozen=True)
class LoaderConfig:
    """How crops are drawn, read, augmented and cached.

    The defaults suit masked image modelling on one GPU.
    """

    crop_size: Triple = (96, 96, 96)
    """Voxels along z, y, x."""
    micro_batch: int = 8
    """Crops per rank and step."""
    views: int = 1
    """1, or 2 augmented views of every crop (contrastive learning)."""
    label: str | None = None
    """Name of the label array to load with the image."""
    seed: int = 0
    """Seed of sampling and augmentation."""
    snap: int = 16
    """Align crop starts to multiples of so many voxels; 1 turns it off."""
    weighting: str = "uniform"
    """uniform (each volume once per epoch), voxels, or foreground (its box)."""
    foreground_fraction: float = 0.0
    """Share of crops centred on a voxel of a foreground class; needs `label`."""
    normalise: str = "zscore"
    """none, zscore, clip-zscore, percentile or window:LOW:HIGH."""
    augment: str = "none"
    """none, mim, contrastive or segmentation."""
    dtype: str = "float32"
    """float32, float16 or bfloat16."""
    cache: str = "none"
    """Keep compressed chunks: none, host or device."""
    cache_bytes: int = 1 << 30
    """Budget of the cache per rank."""
    cache_policy: str = "keep"
    """keep what came in first (a scan of a corpus too large hits its share), or lru."""
    on_error: str = "raise"
    """raise, or replace: a crop with a damaged chunk gives way to another, and is counted. A shard
    that vanished or may not be read raises always: one rank alone may have lost it."""
    nodes: int = 1
    """Give each of so many nodes a split of the volumes, for caches that hold a split."""
    node_rotation: float = 0.0
    """Share of each node's split that goes to the next node after every epoch."""
    threads: int = 1
    """Threads that read and decode, and DALI's own."""
    prefetch: int = 2
    """Batches read ahead."""

    def __post_init__(self) -> None:
        for name in ("micro_batch", "snap", "nodes", "threads", "prefetch", "cache_bytes"):
            if getattr(self, name) < 1:
                raise Mim3dError(f"{name}={getattr(self, name)} must be at least 1")
        if len(self.crop_size) != 3 or min(self.crop_size) < 1:
            raise Mim3dError(f"crop_size={self.crop_size} must be three positive numbers (z, y, x)")
        _one_of("views", self.views, (1, 2))
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("cache", self.cache, CACHES)
        _one_of("cache_policy", self.cache_policy, ("keep", "lru"))
        _one_of("on_error", self.on_error, ("raise", "replace"))
        _one_of("weighting", self.weighting, WEIGHTINGS)
        if self.cache == "device" and self.cache_policy != "keep":
            raise Mim3dError("cache_policy='lru' is for cache='host'; on a device chunks are kept")
        if self.nodes > 1 and self.weighting != "uniform":
            raise Mim3dError(
                f"nodes={self.nodes} needs weighting='uniform': a split has no weights"
            )
        if not 0 <= self.node_rotation <= 1:
            raise Mim3dError(f"node_rotation={self.node_rotation} must lie in [0, 1]")
        parse_mode(self.normalise)
        augmentation(self.augment)
        if not 0 <= self.foreground_fraction <= 1:
            raise Mim3dError(f"foreground_fraction={self.foreground_fraction} must lie in [0, 1]")
        if self.foreground_fraction and self.label is None:
            raise Mim3dError("foreground_fraction needs `label`: whose foreground is meant?")
        if self.label is not None and self.views == 2:
            raise Mim3dError("views=2 has no aligned label: drop `label` or use one view")


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise Mim3dError(f"{name}={value!r} is none of: {', '.join(map(str, allowed))}")
