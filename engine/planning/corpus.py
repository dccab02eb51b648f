"""What a plan can say once it knows the corpus: its size, passes over it, and what will not fit."""

import math
from dataclasses import dataclass

import numpy as np

from mim3d.dataio.device.device_fit import array_rows, makes_alike, unlike
from mim3d.dataio.device.holdings import voxel_places
from mim3d.dataio.loader.crop_spec import volumes_drawn
from mim3d.dataio.reader.corpus import opened_corpus
from mim3d.dataio.reader.voxel_weights import ignored_labels
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.data import choose_subjects
from mim3d.engine.training.corpus import corpus_fit


@dataclass(frozen=True)
class CorpusFacts:
    """Of the volumes that are drawn from."""

    volumes: int
    stored_gb: float
    crops_per_volume: float
    """In the whole run, the mean where some are drawn more often than others."""
    bytes_per_voxel: float
    """As stored."""
    item_bytes: float
    """Of a decoded voxel, the mean over voxels where dtypes differ."""
    decoded_gb: float
    """Of all chunks that are read, decoded: what a device keeps where it keeps voxels; 0 where none
    is asked to."""
    dtypes: tuple[str, ...]
    doubts: tuple[str, ...]
    unlike: str = ""
    """In what they differ, so that a device that is asked to cannot keep them."""
    of: int = 0
    """Volumes of the whole corpus; 0 where all are drawn from."""

    def row(self) -> str:
        """In words."""
        some = f" of {self.of}" if self.of else ""
        return (
            f"{self.volumes}{some} volumes of {' and '.join(self.dtypes)}, {self.stored_gb:.3g} GB "
            f"stored ({self.bytes_per_voxel:.2g} bytes a voxel); {self.crops_per_volume:.0f} "
            "crops of each in the run"
        )


def item_bytes(facts: CorpusFacts | None) -> float:
    """Of a decoded voxel; of int16 where no corpus is given."""
    return facts.item_bytes if facts else 2.0


def corpus_facts(config: PretrainConfig) -> CorpusFacts:
    """Of the corpus that a configuration names; ConfigError where it cannot be trained on."""
    with opened_corpus(config.data.corpus) as (corpus, _):
        table = corpus.table
        subjects = choose_subjects(config.data, config.seed).train
        loader = config.data.loader_config(config.vit, config.method, 1, config.seed)
        rows, _ = volumes_drawn(corpus, loader, subjects)
        fit = corpus_fit(table, config.vit, rows)
        by_id = {record.id: record for record in corpus.records}
        drawn = [by_id[table.volume_id(row)] for row in rows.tolist()]
        voxels = [float(math.prod(record.array_shape)) for record in drawn]
        decoded = sum(
            n * np.dtype(record.dtype).itemsize for n, record in zip(voxels, drawn, strict=True)
        )
        stored = float(sum(record.shard_bytes for record in drawn))
        doubts = []
        if fit.padded:
            doubts.append(
                f"{fit.padded} of {fit.volumes} volumes are smaller than the crop "
                f"{config.vit.crop_size} on some axis: padding is learned"
            )
        kept, differing = 0, ""
        if loader.cache == "device":
            labels = ignored_labels(loader.ignore)
            arrays = np.concatenate([*array_rows(table, rows, labels).values()])
            kept = voxel_places(table, arrays).nbytes
            differing = unlike(table, rows, labels)
        if differing:
            doubts.append(
                f"data.cache device needs all alike, and there are {differing}: chunks will be "
                f"kept on the host ({makes_alike(differing)})"
            )
    return CorpusFacts(
        volumes=fit.volumes,
        stored_gb=stored / 1e9,
        crops_per_volume=config.steps * config.global_batch / max(fit.volumes, 1),
        bytes_per_voxel=stored / sum(voxels),
        item_bytes=decoded / sum(voxels),
        decoded_gb=kept / 1e9,
        dtypes=tuple(sorted({record.dtype for record in drawn})),
        doubts=tuple(doubts),
        unlike=differing,
        of=table.n_volumes if table.n_volumes > fit.volumes else 0,
    )
