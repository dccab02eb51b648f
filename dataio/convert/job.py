"""The work on one source: what is asked for, and what became of it.

A job and its result are plain data, so a process pool or a Dask cluster can carry them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.corpus.seen_files import SeenFile
from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.sources.source import Source

Look = Literal["none", "small", "all"]
"""Nothing of a volume; sizes, metadata and indexes (see `arrays.damage`); or every byte."""


@dataclass(frozen=True)
class Job:
    """One source, the id it got, and the records the corpus already has of it.

    With `only_hash` it asks for the hashes of the images, and nothing is converted. A source that
    is not `listed` stands in the corpus alone: its volume is looked at, and the source only where
    the volume is damaged. `damage` is what is known to be wrong with the volume; `look` says how
    much of it is read to find out. `seen` are the source's files as an earlier run saw them.
    """

    source: Source
    id: str
    known: tuple[VolumeRecord, ...]
    destination: str
    conversion: Conversion
    only_hash: bool = False
    listed: bool = True
    damage: str = ""
    look: Look = "small"
    seen: Mapping[str, SeenFile] = field(default_factory=dict)


@dataclass(frozen=True)
class JobResult:
    """What became of a job: records to commit, or that nothing changed, or why it was rejected.

    An unchanged source may have records all the same: its files were moved, or its subject is told
    otherwise, while the volume stays as it is. `gone` are files of a source that was not listed
    and is no more; `mended` is what was wrong with a volume that was made anew, `damage` with one
    that could not be.
    """

    id: str
    records: tuple[VolumeRecord, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    unchanged: bool = False
    bytes_in: int = 0
    voxel_bytes: int = 0
    stale: tuple[str, ...] = field(default=())
    hashes: tuple[str, ...] = field(default=())
    gone: tuple[str, ...] = ()
    mended: str = ""
    damage: str = ""
    seen: Mapping[str, SeenFile] = field(default_factory=dict)


def label_rejection(job: Job, error: SourceError, outcome: str) -> Rejection:
    """A label left out, with its image and what became of that."""
    detail = f"{error.detail}; the image {job.source.images[0]} {outcome}"
    return Rejection(error.path, error.code, detail)
