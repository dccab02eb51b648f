"""A fine-tuned network over new scans.

    run_predict(run, source, destination) -> PredictReport

Every scan goes the way that the run's corpus came: the same conversion, the same normalisation, the
same windows as validation, so that the prediction of a volume of the corpus is validation's to the
bit. Label maps lie on each scan's own grid under its own header.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mim3d.dataio.errors import Rejection
from mim3d.dataio.progress import progress
from mim3d.dataio.transforms.augment import AUGMENTATIONS
from mim3d.engine.distributed.process_group import local_device
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import FinetuneConfig
from mim3d.engine.finetune.run_folder import MODEL
from mim3d.engine.finetune.sliding_window import Network, mirrored
from mim3d.engine.finetune.trained import Trained, load_network, read_trained
from mim3d.engine.finetune.validation import autocast
from mim3d.engine.predict.classes import (
    CLASSES,
    VALUES,
    VolumeRow,
    figures_of,
    row_scores,
    write_rows,
)
from mim3d.engine.predict.config import PredictConfig
from mim3d.engine.predict.dealt import Dealt
from mim3d.engine.predict.label_map import PROBABILITIES, predicted, write_label_map
from mim3d.engine.predict.ledger import Ledger
from mim3d.engine.predict.loop import Done, each_scan
from mim3d.engine.predict.scans import OpenVolume, Scans, opened_scans, refuse_inside
from mim3d.engine.predict.scores import KEPT, TABLE, Scorer, Written, ids_in
from mim3d.engine.predict.truth import Truth
from mim3d.engine.runs.address import local_run
from mim3d.engine.runs.files import file_sha256, refuse_address
from mim3d.engine.runs.folder_lock import sole_writer

NAME = "predict"
KEPT_SHARES = ".probabilities"


@dataclass(frozen=True)
class PredictReport:
    """What became of the scans: done now, done before, and those that could not be.

    `doubts` are for a person; `scores` are means where true labels were given, and `scored` says
    how many of them were trained on. `leftovers` tell of what else is in the folder.
    """

    destination: Path
    n_done: int
    n_kept: int
    failed: tuple[Rejection, ...]
    doubts: tuple[str, ...]
    table: Path | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    scored: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()


def run_predict(
    run: str | Path,
    source: str | Path,
    destination: str | Path,
    config: PredictConfig | None = None,
    *,
    labels: str = "",
    corpus: str = "",
) -> PredictReport:
    """Predict every scan of `source` into `destination`, going on where an earlier call stopped.

    `labels` scores them: a folder of label maps, or `own` for those that the source tells; of a
    classification a table of subject and target. `corpus` is what a run of an earlier version was
    trained on. A scan that is broken is listed and takes no other along.
    """
    config = config or PredictConfig()
    destination = Path(destination)
    refuse_address(destination, "DST")
    refuse_inside(destination, str(source))
    run = local_run(run)
    trained = read_trained(run, corpus)
    refuse_mirror(config, trained.config)
    if labels and not trained.segments and not Path(labels).is_file():
        raise ConfigError(
            f"--labels {labels}: no such file, and of a run that makes no label maps a table is "
            "asked for: name a CSV with columns subject,target"
        )
    truth = Truth(labels, trained.config.data.label) if labels and trained.segments else None
    with ExitStack() as stack:
        stack.enter_context(sole_writer(destination))
        work = Work(run, trained, config, destination)
        scans = stack.enter_context(
            opened_scans(
                str(source),
                trained.scans,
                config.scans,
                destination,
                config.ids,
                work.ledger.sources,
            )
        )
        work.ledger.refuse_foreign(work.tables(labels))
        work.ledger.refuse_taken(scans.scans, work.files)
        if truth is not None:
            truth.match(scans, destination)
            scans.doubts += truth.matches.doubts
            scans.notes += truth.notes(scans.scans)
        work.ledger.begin()
        with progress(NAME, len(scans.scans), "scans") as shown:
            crop = trained.config.vit.crop_size
            done = each_scan(scans, work.ledger, trained.scans, crop, shown, work.do)
        before = {id for name in work.tables(labels)[:1] for id in ids_in(destination / name)}
        table, scores = work.finish(scans, done, truth, labels)
        lost = sorted(before - ids_in(table)) if table is not None else []
        rows = [
            f"{table} had rows of other volumes (such as {id}, {len(lost)} in all): it has those "
            "of this call alone; leave --ids out for all"
            for id in lost[:1]
        ]
        work.ledger.seal([] if table is None else [table.name])
    return PredictReport(
        destination,
        done.n_now,
        done.n_kept,
        tuple(done.failed),
        done.doubts(scans),
        table,
        scores,
        trained.classes,
        work.dealt.in_words(scores, shown_figure(trained)),
        (*rows, *work.ledger.leftovers(scans.all, scans.scans, done.entries)),
    )


def shown_figure(trained: Trained) -> str:
    """The figure that is told of subjects that were trained on, and of others."""
    return "dice" if trained.segments else "balanced_accuracy" if trained.classes else "mae"


def refuse_mirror(config: PredictConfig, trained: FinetuneConfig) -> None:
    """A ConfigError where reflections are asked for that the network never saw."""
    known = trained.augment in AUGMENTATIONS
    if config.mirror and not (known and AUGMENTATIONS[trained.augment].flip):
        raise ConfigError(
            f"--mirror averages over reflections, and the run was trained without "
            f"(augment {trained.augment}): leave --mirror out"
        )


class Work:
    """A network and what it is to do with each scan."""

    def __init__(
        self, run: Path, trained: Trained, config: PredictConfig, destination: Path
    ) -> None:
        self.trained, self.config, self.destination = trained, config, destination
        self.device = local_device(config.device)
        self.dtype = getattr(torch, trained.precision)
        self.run, self._net, self.dealt = run, None, Dealt(run)
        self.overlap = trained.config.overlap if config.overlap < 0 else config.overlap
        self.ledger = Ledger(destination, NAME, self.identity())

    def identity(self) -> dict[str, Any]:
        """What decides the results."""
        return {
            "model_sha256": self.trained.model_sha256 or file_sha256(self.run / MODEL),
            "overlap": self.overlap,
            "mirror": self.config.mirror,
            "probabilities": self.config.probabilities and self.trained.segments,
        }

    def files(self, id: str) -> list[str]:
        """What is written of a volume."""
        if not self.trained.segments:
            return []
        name = f"{id}.nii.gz"
        return [name, f"{PROBABILITIES}/{name}"] if self.config.probabilities else [name]

    def tables(self, labels: str) -> list[str]:
        """What is written of all, where these are the true labels."""
        if not self.trained.segments:
            return [CLASSES if self.trained.classes else VALUES]
        return [TABLE, KEPT] if labels else []

    @property
    def net(self) -> nn.Module:
        """The network on its device, loaded when first needed."""
        if self._net is None:
            self._net = load_network(self.run, self.trained).to(self.device)
        return self._net

    def do(self, volume: OpenVolume, advance: Callable[[float], None]) -> dict[str, Any]:
        """Predict one volume; what the ledger notes of it."""
        if self.trained.segments:
            return self.label_map(volume, advance)
        return self.whole(volume, advance)

    def label_map(self, volume: OpenVolume, advance: Callable[[float], None]) -> dict[str, Any]:
        """Predict and write a volume's label map."""
        net: Network = mirrored(self.net) if self.config.mirror else self.net
        keep = self.destination / KEPT_SHARES if self.config.probabilities else None
        try:
            with autocast(self.device, self.dtype):
                found = predicted(
                    net,
                    volume,
                    self.trained.config.vit.crop_size,
                    self.overlap,
                    len(self.trained.classes),
                    self.device,
                    keep=keep,
                    advance=advance,
                )
            self.ledger.claim_for(volume.record.sources[0], self.files(volume.record.id))
            files = write_label_map(self.destination, volume, found)
        finally:
            if keep is not None:
                keep.unlink(missing_ok=True)
        record = volume.record
        return {
            "volume": record.id, "files": files, "frame": record.frame, "n_frames": record.n_frames
        }  # fmt: skip

    def whole(self, volume: OpenVolume, advance: Callable[[float], None]) -> dict[str, Any]:
        """The probabilities of a volume's classes, or its number."""
        size = self.trained.config.vit.crop_size
        with autocast(self.device, self.dtype):
            figures = figures_of(self.net, volume, size, self.device)
        advance(1.0)
        return {"volume": volume.record.id, "figures": figures}

    def finish(
        self, scans: Scans, done: Done, truth: Truth | None, labels: str
    ) -> tuple[Path | None, dict[str, Any]]:
        """The table and, where true labels are given, the scores."""
        self.ledger.claim(self.tables(labels))
        if not self.trained.segments:
            rows = [
                VolumeRow(
                    note["volume"], entry["subject"], entry["sources"][0], tuple(note["figures"])
                )
                for entry, note in done.volumes()
            ]
            names = self.trained.classes
            table = write_rows(self.destination, rows, names)
            return table, row_scores(rows, names, labels, self.dealt) if labels else {}
        if truth is None:
            return None, {}
        by_id = {scan.id: scan for scan in scans.scans}
        written = [
            Written(
                by_id[entry["id"]],
                note["volume"],
                self.destination / note["files"][0],
                note["frame"],
                note["n_frames"],
            )
            for entry, note in done.volumes()
        ]
        options = self.config.scans
        scorer = Scorer(self.destination, self.trained, truth, scans, options, self.dealt)
        return self.destination / TABLE, scorer.scores(written).figures
