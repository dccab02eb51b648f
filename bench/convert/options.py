"""What `mim3d bench convert` is asked for."""

from dataclasses import dataclass
from pathlib import Path

from mim3d.dataio.finite import refuse_not_finite, refuse_outside


@dataclass(frozen=True)
class ConvertBench:
    """The converter beside a plain script, its peers and the unavoidable work.

    Every job runs in a process of its own, rounds interleaved; figures are the best round of each,
    and what counts are the ratios within one run. CPU seconds are those of all threads and
    children. Start-up counts in them; told apart as well, as it is fixed and a corpus has thousands
    of volumes.
    """

    peers: bool = False
    """Also run what others would use: zarrs, tensorstore, blosc2, nifti-zarr."""
    volumes: int = 16
    """Generated int16 volumes of 256 x 256 x 192, gzip level 6."""
    source: Path | None = None
    """A folder of .nii.gz files to use instead of generated ones."""
    chunk: int = 16
    """Side of a chunk, for everyone who writes chunks of a given side."""
    rounds: int = 3
    """Repetitions; the best of each job counts."""
    copies: int = 16
    """How often the files are repeated to compare one worker with two, so that a process's start
    (0.2 s) is small beside the work; 0 leaves that out."""
    entries: int = 100_000
    """Entries of the synthetic chunk table; 0 leaves that part out."""

    def __post_init__(self) -> None:
        """Counts that can be."""
        refuse_not_finite(self)
        refuse_outside(self, "volumes rounds", 1)
        refuse_outside(self, "chunk", 4, 256)
        refuse_outside(self, "copies entries", 0)
