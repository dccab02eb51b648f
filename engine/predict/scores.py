"""Predicted label maps against true ones: Dice and HD95 per class and scan, in a table.

Scans are scored on their own grid from the files that were written, so scores can be asked for
later, and those of files that did not change are not computed again.
"""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mim3d.dataio.convert.known_sources import parts_of
from mim3d.dataio.convert.volume import trust_of
from mim3d.dataio.corpus.seen_files import stamp_of
from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.geometry import Grid
from mim3d.dataio.nifti.file import read_nifti
from mim3d.dataio.progress import progress
from mim3d.engine.finetune.dice import (
    CaseScore,
    class_means,
    dice_by_class,
    hd95_by_class,
    mean_of,
    mean_over_cases,
)
from mim3d.engine.finetune.trained import Trained
from mim3d.engine.predict.config import ScanOptions
from mim3d.engine.predict.dealt import Dealt, Whose
from mim3d.engine.predict.ledger import read_entries
from mim3d.engine.predict.scans import Scan, Scans
from mim3d.engine.predict.truth import OWN, OwnFile, Truth, known_classes, true_classes

TABLE, KEPT = "scores.csv", "scores.jsonl"
COLUMNS = ("id", "class", "name", "dice", "hd95_mm", "subject", "split", "label")


@dataclass(frozen=True)
class Written:
    """A label map in the folder of results, as the ledger has it."""

    scan: Scan
    volume: str
    file: Path
    frame: int
    n_frames: int


@dataclass(frozen=True)
class Scored:
    """A volume's scores, against which label file, and whose it is: of which split of the run."""

    case: CaseScore
    label: str
    whose: Whose


@dataclass(frozen=True)
class Scores:
    """Scores of volumes, and the scans that could not be scored."""

    scored: tuple[Scored, ...]
    classes: tuple[str, ...]
    unscored: tuple[Rejection, ...]
    dealt: Dealt

    @property
    def figures(self) -> dict[str, Any]:
        """Means over the volumes; apart those of subjects that were trained on, and of others."""
        cases = [each.case for each in self.scored]
        dice, hd95 = ([getattr(case, name) for case in cases] for name in ("dice", "hd95"))
        parts = self.dealt.parts([(each.whose, each.case) for each in self.scored])
        return {
            **{name: {**facts, "dice": mean_over_cases(of)} for name, (facts, of) in parts.items()},
            "scored": len(cases),
            "dice": mean_over_cases(cases),
            "dice_by_class": by_class(self.classes, dice),
            "hd95_mm": mean_of([case.mean_hd95 for case in cases]),
            "hd95_mm_by_class": by_class(self.classes, hd95),
            "unscored": [asdict(each) for each in self.unscored],
        }


def by_class(names: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, float]:
    """Mean of every class over the volumes; nothing of no volumes."""
    return dict(zip(names, class_means(rows), strict=True)) if rows else {}


class Scorer:
    """Scores written label maps by true ones."""

    def __init__(
        self,
        folder: Path,
        trained: Trained,
        truth: Truth,
        scans: Scans,
        options: ScanOptions,
        dealt: Dealt,
    ) -> None:
        self.folder, self.trained, self.truth, self.scans = folder, trained, truth, scans
        self.dealt = dealt
        self.conversion = options.applied_to(trained.scans.conversion)
        self.kept = read_entries(folder / KEPT)

    def scores(self, written: Sequence[Written]) -> Scores:
        """Score all, leave the table, and tell what could not be scored."""
        scored: list[Scored] = []
        unscored: list[Rejection] = []
        with progress("score", len(written), "scans") as shown:
            for each in written:
                try:
                    label = self.truth.path(each.scan)
                    case = self.score(each, label)
                    scored.append(Scored(case, label, self.dealt.whose(each.scan.subject)))
                except SourceError as error:
                    unscored.append(Rejection.of(error))
                shown.advance()
        names = self.trained.classes[1:]
        write_table(self.folder / TABLE, scored, names)
        return Scores(tuple(scored), names, tuple(unscored), self.dealt)

    def score(self, written: Written, path: str) -> CaseScore:
        """Of one label map; SourceError where its true one is broken or elsewhere."""
        stamps = [stamp_of((str(written.file),)), stamp_of(parts_of(path))]
        known = self.kept.get(written.volume)
        if known is not None and all(stamps) and known["stamps"] == stamps:
            return CaseScore(written.volume, floats(known["dice"]), floats(known["hd95"]))
        found = self._score(written, path)
        line = {"id": written.volume, "stamps": stamps, "dice": found.dice, "hd95": found.hd95}
        with (self.folder / KEPT).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        return found

    def _score(self, written: Written, path: str) -> CaseScore:
        classes = len(self.trained.classes)
        budget = self.conversion.byte_budget
        file = read_nifti(str(written.file), budget, trust_of(self.conversion))
        grid, found = file.header.grid, file.voxels[0]
        truth, untold = self._true(written, path, grid)
        if untold is not None:
            found = np.where(untold, 0, found)
        dice = dice_by_class(found, truth, classes)
        return CaseScore(
            written.volume, dice, hd95_by_class(found, truth, classes, grid.spacing_mm)
        )

    def _true(
        self, written: Written, path: str, grid: Grid
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The true classes; of a corpus whose label files are gone, those it keeps."""
        classes, ignore = len(self.trained.classes), self.trained.ignore
        if self.truth.place == OWN and not any(Path(part).is_file() for part in parts_of(path)):
            kept = self.scans.stored_label(written.scan, self.truth.label)
            if kept is not None:
                return known_classes(kept, path, classes, ignore)
        place = OwnFile(grid, written.frame, written.n_frames)
        return true_classes(path, place, written.scan, classes, ignore, self.conversion)


def floats(values: Sequence[float | None]) -> tuple[float, ...]:
    """Numbers as they were before JSON."""
    return tuple(math.nan if value is None else float(value) for value in values)


def write_table(file: Path, scored: Sequence[Scored], names: Sequence[str]) -> None:
    """One row per volume and class; empty where there is no score."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for each in scored:
            case, about = each.case, (each.whose.subject, each.whose.split, each.label)
            for number, name in enumerate(names, start=1):
                row = (case.dice[number - 1], case.hd95[number - 1])
                cells = [f"{value:.6g}" if math.isfinite(value) else "" for value in row]
                writer.writerow([case.volume, number, name, *cells, *about])


def ids_in(file: Path) -> set[str]:
    """The volumes of a table; none where there is no table yet."""
    if not file.is_file():
        return set()
    with file.open(newline="", encoding="utf-8") as stream:
        return {row.get("id") or "" for row in csv.DictReader(stream)} - {""}
