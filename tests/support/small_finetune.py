"""A fine-tuning run of seconds, for tests; run as a script it is one rank, told to stop on request.

python small_finetune.py CORPUS OUT [HEAD [ACCUM [STOP_AT]]]
"""

import csv
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from small_run import before_step

from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.phantom import make_cohort
from mim3d.engine.distributed.config import ParallelConfig
from mim3d.engine.finetune.config import FinetuneConfig, LabelledData
from mim3d.engine.finetune.finetune import run_finetune
from mim3d.engine.finetune.splits import SplitConfig
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.training.config import LogConfig

VIT = ViTConfig((16, 16, 16), (8, 8, 8), width=12, depth=2, heads=2)


def make_labelled_corpus(folder: Path) -> Path:
    """A corpus of eight labelled phantoms, and a table of classes beside it."""
    make_cohort(folder / "nifti", n_subjects=8, seed=0)
    sources = discover(str(folder / "nifti")).sources
    convert(sources, folder / "corpus.zarr", Conversion(), workers=1)
    subjects = sorted({record.subject for record in Corpus.open(folder / "corpus.zarr").records})
    with (folder / "targets.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["subject", "target"])
        writer.writerows((s, "even" if i % 2 == 0 else "odd") for i, s in enumerate(subjects[1:]))
    return folder / "corpus.zarr"


def small_finetune(corpus: Path, **changes: Any) -> FinetuneConfig:
    """Four steps, scored at every second; head classify takes the table beside the corpus."""
    data = LabelledData(corpus=str(corpus), split=SplitConfig(0.15, 0.15))
    if changes.get("head") == "classify":
        targets = str(corpus.parent / "targets.csv")
        data = replace(data, targets=targets, split=SplitConfig(0.3, 0.2))
    base = FinetuneConfig(
        data=data,
        head=changes.get("head", "unetr"),
        vit=VIT,
        feature_size=4,
        steps=4,
        global_batch=2,
        eval_every=2,
        overlap=0.0,
        device="cpu",
        log=LogConfig(every=1, tensorboard=False),
    )
    return replace(base, **changes)


def main(corpus: str, out: str, head: str = "unetr", accum: str = "1", stop_at: str = "") -> None:
    """Run one rank."""
    torch.set_num_threads(1)
    if stop_at:
        last = int(os.environ.get("WORLD_SIZE", "1")) - 1
        before_step(int(stop_at), last, lambda _: signal.raise_signal(signal.SIGTERM))
    parallel = ParallelConfig(min_block_parameters=100, timeout_s=120.0, grad_accum=int(accum))
    config = small_finetune(Path(corpus), head=head, global_batch=4, steps=6, parallel=parallel)
    result = run_finetune(config, out)
    print(f"rank {os.environ.get('RANK', '0')} rows {len(result.rows)} {result.interrupted}")


if __name__ == "__main__":
    main(*sys.argv[1:])
