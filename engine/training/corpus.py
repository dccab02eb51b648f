"""Whether a corpus suits a model, and whether it is still the one that a run began with."""

from dataclasses import dataclass

import numpy as np

from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.corpus.names import MANIFEST, own_file
from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.errors import ConfigError, TrainingError
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.runs.files import file_sha256


@dataclass(frozen=True)
class CorpusFit:
    """What there is to say before the first crop is read."""

    volumes: int
    """Volumes of the chosen subjects."""
    padded: int
    """Of these, smaller than the crop on some axis: what is missing is padding, and is learned."""
    lacking: int = 0
    """Of these, with a channel of several that is one value everywhere: a missing modality."""


def corpus_fit(table: ChunkTable, vit: ViTConfig, rows: np.ndarray) -> CorpusFit:
    """Count volumes (rows of the table); ConfigError where their channels are others."""
    images = np.asarray(table.volumes["image"])[rows].astype(np.int64)
    channels = np.unique(np.asarray(table.arrays["channels"])[images])
    if channels.tolist() != [vit.channels]:
        raise ConfigError(
            f"vit.channels is {vit.channels}, the volumes of {table.root} have "
            f"{', '.join(map(str, channels))}: set --vit.channels, or choose volumes that have it"
        )
    shapes = np.asarray(table.volumes["shape"])[rows]
    padded = int((shapes < np.array(vit.crop_size)).any(axis=1).sum())
    lacking = 0 if vit.channels == 1 else lacking_a_channel(table, rows, vit.channels)
    return CorpusFit(len(rows), padded, lacking)


def lacking_a_channel(table: ChunkTable, rows: np.ndarray, channels: int) -> int:
    """How many of these volumes, of so many channels each, have one that is constant."""
    places = table.first_channel[rows][:, None] + np.arange(channels)
    found = table.channels[places]
    return int((found["minimum"] == found["maximum"]).any(axis=1).sum())


def corpus_sha256(corpus: Corpus) -> str:
    """Hash of an opened corpus's manifest, the truth of what is in it.

    `corpus.root` holds a copy of it where the corpus lies in an object store.
    """
    return file_sha256(own_file(corpus.root, MANIFEST))


BEGIN_ANEW = "start a new run with another --out"


def refuse_changed_corpus(
    corpus: str, before: str, now: str, step: int, remedy: str = BEGIN_ANEW
) -> None:
    """A TrainingError where the corpus is not the one that the run began with.

    `remedy` is what can be done besides restoring it.
    """
    if before != now:
        raise TrainingError(
            f"{corpus} has changed since step {step} of this run was saved (manifest {before[:12]}"
            f" then, {now[:12]} now): resumed, it would draw other crops. Restore that corpus, or "
            f"{remedy}"
        )
