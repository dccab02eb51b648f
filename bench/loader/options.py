"""What `mim3d bench loader` and `mim3d bench views` are asked for."""

from dataclasses import dataclass
from pathlib import Path

from mim3d.dataio.finite import MOST_SIZE, refuse_not_finite, refuse_outside


@dataclass(frozen=True)
class LoaderBench:
    """Compare reading of random 96^3 crops, page cache warm and cold.

    One thread each; a rate is the median of `rounds` interleaved rounds with their range, per
    second of CPU time (all threads of the process) and of wall clock. Ratios are to mim3d's reader
    at snap 16; one that the rounds do not resolve is called unresolved. With
    --remote crops are read from a store that takes its time; `mim3d bench loader --remote --help`
    tells its options.
    """

    peers: bool = False
    """Also time blosc2, tensorstore, zarr-python, a memory map and MONAI's CacheDataset."""
    volumes: int = 64
    """Generated int16 volumes of 128 x 192 x 192 voxels (18 % of them air). With few, caches hold
    them and crops of a batch share chunks."""
    crops: int = 192
    """Crops per round: a reader takes 0.1 s for them, of which a loader's start is a small part."""
    rounds: int = 5
    """Interleaved rounds."""
    data: Path | None = None
    """Folder with .npy (z, y, x) or NIfTI volumes instead of generated ones; label maps and volumes
    with a side below 96 are left out."""
    work: Path | None = None
    """Where to put the stores (a temporary folder otherwise, deleted afterwards)."""

    def __post_init__(self) -> None:
        """Counts that can be."""
        refuse_not_finite(self)
        refuse_outside(self, "volumes crops rounds", 1)


@dataclass(frozen=True)
class ViewsBench:
    """Pairs of views a CPU-second: our loops, with --peers DALI's graph and MONAI's transforms.

    Each pair: a random box stretched to the crop, flips, a rotation (3 of 10), a blur (5 of 10),
    gain, bias, and noise (3 of 10). One thread; contestants take turns.
    """

    crop: int = 96
    """Voxels of a side."""
    batch: int = 4
    """Crops of a batch."""
    batches: int = 4
    """Batches of a round."""
    rounds: int = 7
    """Interleaved rounds."""
    peers: bool = False
    """Time DALI and MONAI too."""

    def __post_init__(self) -> None:
        """Counts that can be."""
        refuse_outside(self, "batch batches rounds", 1)
        refuse_outside(self, "crop", 1, MOST_SIZE)


@dataclass(frozen=True)
class SpatialBench:
    """Crops a CPU-second, turned and zoomed at nnssl's chances; with --peers by nnssl's way too.

    A fifth of the crops is turned by up to 30 degrees about each axis, a fifth zoomed by 0.7 to
    1.4, every axis flipped one time in two. nnssl's way reads, for every crop, the larger patch
    that its widest turn needs (257^3 for 160^3) from blosc2, and moves it by scipy's
    map_coordinates of order 3; it is given the same crops, turns and flips. One thread; contestants
    take turns.
    """

    crop: int = 160
    """Voxels of a side."""
    volumes: int = 3
    """Generated volumes of 192 x 224 x 192 voxels."""
    crops: int = 8
    """Crops of a round, the same for all."""
    rounds: int = 3
    """Interleaved rounds."""
    side: int = 0
    """Voxels of a side of the volumes instead; 0: as above."""
    peers: bool = False
    """Time nnssl's way too, at order 3 and at order 1, the order of ours."""

    def __post_init__(self) -> None:
        """Counts that can be."""
        refuse_outside(self, "volumes crops rounds", 1)
        refuse_outside(self, "crop", 1, MOST_SIZE)
        refuse_outside(self, "side", 0, MOST_SIZE)
