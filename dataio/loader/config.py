"""Everything a loader can be told, checked once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal, get_args

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.finite import (
    MOST_SEED,
    MOST_SIZE,
    MOST_WORKERS,
    refuse_not_finite,
    refuse_outside,
)
from mim3d.dataio.geometry import Triple
from mim3d.dataio.loader.sampler import WEIGHTINGS, Weighting
from mim3d.dataio.reader.datasets import check_where, parsed_shares
from mim3d.dataio.reader.normalisation import parse_mode
from mim3d.dataio.reader.voxel_weights import check_ignore
from mim3d.dataio.remote.limits import RemoteLimits
from mim3d.dataio.transforms.artefacts import parsed_artefacts
from mim3d.dataio.transforms.augment import AUTOMATIC, Augmentation, augmentation

Dtype = Literal["float32", "float16", "bfloat16"]
CACHES = ("auto", "none", "host", "device")
DISK = "disk:"
DeviceKeeps = Literal["auto", "voxels", "chunks"]
CachePolicy = Literal["keep", "lru"]
OnError = Literal["raise", "replace"]
COUNTS = (
    *("micro_batch", "snap", "nodes", "threads", "prefetch"),
    *("cache_bytes", "remote_requests", "remote_bytes"),
)


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
    """1, or 2 views of every crop, each augmented on its own (contrastive learning)."""
    label: str | None = None
    """Name of the label array to load with the image; volumes without it are left out."""
    seed: int = 0
    """Seed of sampling and augmentation."""
    snap: int = 16
    """Align crop starts to multiples of so many voxels; 1 turns it off."""
    weighting: Weighting = "uniform"
    """uniform (each volume once per epoch), voxels, or foreground (its box)."""
    shares: tuple[str, ...] = ()
    """DATASET=SHARE of the samples, such as openmind=0.7 ours=0.3, however many volumes each has:
    data sets as `mim3d merge` calls the corpora it joined, or --dataset of the conversion."""
    where: tuple[str, ...] = ()
    """Draw from volumes of which all is true: dataset=, modality=, session=, split= or
    subject=VALUE[,VALUE...], as in modality=T1w,FLAIR."""
    foreground_fraction: float = 0.0
    """Share of crops centred on a voxel of a foreground class; needs `label`."""
    ignore: tuple[str, ...] = ()
    """What a batch's `weight` is 0 for: padding, air (not above the foreground's threshold; padding
    too), label:NAME (where a volume's label of that name is not 0)."""
    normalise: str = "zscore"
    """zscore: mean and deviation of the foreground, voxels above Otsu's threshold; clip-zscore: of
    the foreground clipped to its 0.5 to 99.5 percentiles; percentile: those of all voxels to -1..1;
    window:LOW:HIGH: real values to -1..1; none; a plugin's. Each channel by itself."""
    augment: str = "none"
    """none, mim, contrastive, segmentation, upright (segmentation without flips), a plugin's; auto
    is contrastive for two views and mim for one. spatial, spatial-segmentation and spatial-upright
    turn by up to 30 degrees about each axis, in millimetres, and zoom by 0.7 to 1.4, each for a
    fifth of the crops, and read all that a crop then needs of its volume: segmentation and upright
    repeat the crop's border."""
    artefacts: tuple[str, ...] = ()
    """NAME=CHANCE of artefacts of MRI: bias-field, ghosting, gibbs (k-space cut off),
    low-resolution (thick slices), gamma, as in bias-field=0.3 gamma=0.3. Images alone get them, on
    top of augment, as strong as TorchIO makes them."""
    dtype: Dtype = "float32"
    """Of the crops."""
    cache: str = "auto"
    """Where compressed chunks are kept: host (memory), device, disk:FOLDER (a local disk, for a
    corpus named by an address), or none. auto is host for a corpus named by an address; of a folder
    the system's page cache keeps what it can."""
    cache_bytes: int = 1 << 30
    """Budget of the cache per rank; of a GPU's free memory 40 % at most."""
    device_keeps: DeviceKeeps = "auto"
    """Of cache device: voxels (each chunk is decoded once, into memory for all of them), chunks
    (compressed, decoded for every batch), or auto, voxels where they fit: a line says which."""
    cache_policy: CachePolicy = "keep"
    """keep what came in first (a scan of a corpus too large hits its share), or lru."""
    on_error: OnError = "raise"
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
    remote_requests: int = RemoteLimits.requests
    """Requests in flight to the store of a corpus named by an address."""
    remote_bytes: int = RemoteLimits.nbytes
    """Compressed bytes asked of that store ahead of their batches."""

    def __post_init__(self) -> None:
        refuse_not_finite(self)
        refuse_outside(self, "crop_size snap", most=MOST_SIZE)
        refuse_outside(self, "threads prefetch", 1, MOST_WORKERS)
        refuse_outside(self, "seed", -MOST_SEED, MOST_SEED)
        for name in COUNTS:
            if not _is_whole(getattr(self, name)) or getattr(self, name) < 1:
                raise Mim3dError(f"{name}={getattr(self, name)!r} must be at least 1, and whole")
        if not _is_whole(self.seed):
            raise Mim3dError(f"seed={self.seed!r} must be a whole number")
        _check_crop_size(self.crop_size)
        _one_of("views", self.views, (1, 2))
        _one_of("dtype", self.dtype, get_args(Dtype))
        _one_of("cache", self.cache, (*CACHES, f"{DISK}FOLDER"), also=_names_folder(self.cache))
        _one_of("device_keeps", self.device_keeps, get_args(DeviceKeeps))
        _one_of("cache_policy", self.cache_policy, get_args(CachePolicy))
        _one_of("on_error", self.on_error, get_args(OnError))
        _one_of("weighting", self.weighting, WEIGHTINGS)
        if self.cache == "device" and self.cache_policy != "keep":
            raise Mim3dError("cache_policy='lru' is for cache='host'; on a device chunks are kept")
        if self.nodes > 1 and self.weighting != "uniform":
            raise Mim3dError(
                f"nodes={self.nodes} needs weighting='uniform': a split has no weights"
            )
        if self.nodes > 1 and self.shares:
            raise Mim3dError(f"nodes={self.nodes} goes with no shares: a split has no weights")
        parsed_shares(self.shares)
        check_where(self.where)
        if not 0 <= self.node_rotation <= 1:
            raise Mim3dError(f"node_rotation={self.node_rotation} must lie in [0, 1]")
        if self.node_rotation and self.nodes == 1:
            raise Mim3dError(f"node_rotation={self.node_rotation} needs `nodes` above 1")
        parse_mode(self.normalise)
        self._check_augmentation()
        self._check_ignore()
        if not 0 <= self.foreground_fraction <= 1:
            raise Mim3dError(f"foreground_fraction={self.foreground_fraction} must lie in [0, 1]")
        if self.foreground_fraction and self.label is None:
            raise Mim3dError("foreground_fraction needs `label`: whose foreground is meant?")

    def _check_augmentation(self) -> None:
        kind = self.augmentation
        if self.label is not None and self.views == 2:
            raise Mim3dError("views=2 has no aligned label: drop `label` or use one view")
        if self.views == 2 and not kind.per_view:
            raise Mim3dError(
                f"views=2 with augment={self.augment!r}: both views would be drawn as one; use "
                "augment='contrastive'"
            )

    def _check_ignore(self) -> None:
        check_ignore(self.ignore)
        if self.ignore and (self.label is not None or self.views == 2):
            raise Mim3dError(
                f"ignore={self.ignore!r} goes with one view and no label, whose place the weights "
                "have: drop one of them"
            )

    @property
    def limits(self) -> RemoteLimits:
        """What is asked of a store at a time."""
        return RemoteLimits(self.remote_requests, self.remote_bytes)

    @property
    def augmentation(self) -> Augmentation:
        """What `augment` and `artefacts` name."""
        automatic = "contrastive" if self.views == 2 else "mim"
        kind = augmentation(automatic if self.augment == AUTOMATIC else self.augment)
        if not self.artefacts:
            return kind
        return replace(kind, artefacts=parsed_artefacts(self.artefacts))


def _names_folder(cache: str) -> bool:
    return cache.startswith(DISK) and cache != DISK


def _one_of(name: str, value: object, allowed: tuple[object, ...], *, also: bool = False) -> None:
    if value not in allowed and not also:
        raise Mim3dError(f"{name}={value!r} is none of: {', '.join(map(str, allowed))}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral)


def _check_crop_size(size: Any) -> None:
    is_triple = isinstance(size, Sequence) and len(size) == 3
    if not is_triple or not all(_is_whole(n) and n >= 1 for n in size):
        raise Mim3dError(
            f"crop_size={size!r} must be three positive whole numbers (z, y, x), such as "
            "(96, 96, 96)"
        )
