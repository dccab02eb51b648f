"""What a plan can say once it knows the corpus: its size, passes over it, and what will not fit."""

from dataclasses import dataclass

import numpy as np

from mim3d.dataio.device.device_fit import unlike
from mim3d.dataio.reader.corpus import opened_corpus
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.training.corpus import corpus_fit

NO_CACHE = (
    "chunks will be kept on the host: `mim3d convert` with one --dtype, into a new folder, makes "
    "them alike"
)


@dataclass(frozen=True)
class CorpusFacts:
    """Volumes that are drawn from, bytes as stored, and crops for each volume in the whole run."""

    volumes: int
    stored_gb: float
    crops_per_volume: float
    doubts: tuple[str, ...]

    def row(self) -> str:
        """In words."""
        return (
            f"{self.volumes} volumes, {self.stored_gb:.3g} GB stored; {self.crops_per_volume:.4g} "
            "crops of each in the run"
        )


def corpus_facts(config: PretrainConfig) -> CorpusFacts:
    """Of the corpus that a configuration names; ConfigError where it cannot be trained on."""
    with opened_corpus(config.data.corpus) as (corpus, _):
        table = corpus.table
        rows = np.arange(table.n_volumes)
        fit = corpus_fit(table, config.vit, rows)
        stored = sum(record.shard_bytes for record in corpus.records) / 1e9
        doubts = []
        if fit.padded:
            doubts.append(
                f"{fit.padded} of {fit.volumes} volumes are smaller than the crop "
                f"{config.vit.crop_size} on some axis: padding is learned"
            )
        differing = unlike(table, rows)
        if config.data.loader.cache == "device" and differing:
            doubts.append(
                f"data.cache device needs all alike, and there are {differing}; {NO_CACHE}"
            )
    crops = config.steps * config.global_batch / max(fit.volumes, 1)
    return CorpusFacts(fit.volumes, stored, crops, tuple(doubts))
