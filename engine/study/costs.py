"""What an encoder costs: its parameters and those of its decoder, and the CPU time of a run.

A run's CPU seconds are those of its process, its threads and evaluations included, summed over
the times it was started; they are kept beside its result.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.finetune.config import WHOLE_VOLUME, FinetuneConfig
from mim3d.engine.finetune.encoder import build_encoder
from mim3d.engine.finetune.network import build_segmentation
from mim3d.engine.finetune.segmentation import n_classes
from mim3d.engine.finetune.splits import Splits
from mim3d.engine.runs.files import read_json, write_json
from mim3d.engine.study.arms import own_encoder, shown_encoder
from mim3d.engine.study.config import Row, StudyConfig
from mim3d.engine.study.plan import finetune_config, scored_cells

if TYPE_CHECKING:
    from torch import nn

CLOCK = "clock.json"


@contextmanager
def clocked(folder: Path) -> Iterator[None]:
    """Add the CPU seconds of what runs within to those in the folder."""
    began = time.process_time()
    try:
        yield
    finally:
        spent = cpu_seconds(folder).get("cpu_seconds", 0.0) + time.process_time() - began
        if folder.is_dir():
            write_json(folder / CLOCK, {"cpu_seconds": round(spent, 3)})


def cpu_seconds(folder: Path) -> Row:
    """What was kept by `clocked`, empty of runs from before."""
    return read_json(folder / CLOCK) if (folder / CLOCK).exists() else {}


def network_sizes(config: StudyConfig, corpus: Corpus, splits: Splits) -> list[Row]:
    """Of each encoder and decoder in the first variant: crop and parameters."""
    found: dict[tuple[str, str], Row] = {}
    for cell in scored_cells(config, {}):
        key = shown_encoder(config, cell.encoder), cell.head
        if key not in found:
            made = replace(finetune_config(config, cell, splits, Path()), init="", labels=1.0)
            encoder, decoder = parameters(made, classes_of(config, corpus, made))
            found[key] = {
                "encoder": key[0],
                "kind": cell.encoder or own_encoder(config),
                "head": cell.head,
                "crop_size": list(made.vit.crop_size),
                "encoder_parameters": encoder,
                "decoder_parameters": decoder,
            }
    return list(found.values())


def classes_of(config: StudyConfig, corpus: Corpus, made: FinetuneConfig) -> int:
    """Classes of a segmentation, 0 where whole volumes are learned."""
    return 0 if made.head in WHOLE_VOLUME else n_classes(corpus.records, config.data.label)


@lru_cache
def parameters(config: FinetuneConfig, classes: int) -> tuple[int, int | None]:
    """Of the encoder and of its decoder (None of whole volumes), as it is built; dropped at once.

    Not on the meta device: MONAI's Swin asks its own tensors for numbers.
    """
    if not classes:
        return count(build_encoder(config)), None
    net = build_segmentation(config, classes)
    encoder = count(net.encoder)
    return encoder, count(net) - encoder


def count(module: "nn.Module") -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
