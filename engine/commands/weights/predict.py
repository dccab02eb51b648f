"""`mim3d predict RUN SRC DST`: a fine-tuned network over new scans."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.commands.weights.messages import (
    class_table,
    listed,
    number,
    tell_done,
    tell_doubts,
    tell_failed,
)
from mim3d.engine.commands.weights.scan_arguments import ScanArgs
from mim3d.engine.errors import ConfigError
from mim3d.engine.predict.config import PredictConfig

if TYPE_CHECKING:
    from mim3d.engine.predict.predict import PredictReport

DESCRIPTION = """Label maps of new scans (of a run that classifies or regresses, a table).

Scans are read as the run's corpus was converted: orientation, voxel size, window, normalisation.
DST gets ID.nii.gz on each scan's own grid, with its own affine and header; where voxels were
resampled, class probabilities go back by linear interpolation before the largest wins. A volume of
the run's corpus gets what validation gave it, to the bit.

Broken scans are listed in DST/failed.jsonl, and the exit code is 3; so it is where something is in
doubt. --labels writes DST/scores.csv: Dice and HD95 (mm) of every class and scan. A file of DST
that was not written here, or is of another scan, is never replaced.
"""


@dataclass(frozen=True, kw_only=True)
class PredictArgs(ScanArgs):
    """Whose network, which scans, where to, and how."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a finished `mim3d finetune`, or its s3://BUCKET/RUN."""
    config: Annotated[PredictConfig, tyro.conf.arg(name="")] = field(default_factory=PredictConfig)
    labels: str = ""
    """Score against these: a folder of label maps at the scans' paths or of their names, a file, or
    `own` for those that SRC tells; of classes or numbers a CSV with columns subject,target."""


def main(words: list[str]) -> Outcome:
    """Run the command."""
    args = parse(PredictArgs, words, "mim3d predict", DESCRIPTION, addresses=("run",))
    if "" in words[:3]:
        raise ConfigError("RUN, SRC or DST is empty; name all three")
    if not args.labels and any(word.split("=")[0] == "--labels" for word in words):
        raise ConfigError("--labels is empty: name a folder, a file or `own`, or leave it out")
    from mim3d.dataio.storage.store import writing
    from mim3d.engine.predict.ledger import FAILED
    from mim3d.engine.predict.predict import run_predict

    with writing(args.destination):
        report = run_predict(
            args.run,
            args.source,
            args.destination,
            args.config,
            labels=args.labels,
            corpus=args.corpus,
        )
    tell_failed(report.failed, args.destination / FAILED)
    tell_doubts(report.doubts)
    listed(report.leftovers, indent="")
    tell_scores(report)
    tell_done(report.n_done, report.n_kept, args.destination)
    unscored = report.scores.get("unscored", [])
    return Outcome(figures_of(report), len(report.failed) + len(report.doubts) + len(unscored))


def tell_scores(report: "PredictReport") -> None:
    """The scores by class, of whom they are, and what could not be scored."""
    scores = report.scores
    unscored = scores.get("unscored", [])
    listed([f"not scored: {each['path']}: {each['detail']}" for each in unscored], indent="")
    if not scores:
        return
    if not scores["scored"]:
        print(f"no volume was scored: {why_none(unscored)}")
        return
    if "dice_by_class" in scores:
        columns = {"Dice": scores["dice_by_class"], "HD95 mm": scores["hd95_mm_by_class"]}
        print(class_table(columns))
        named = f"none has {', '.join(report.classes[1:])}, in its label or its map"
        mean = f"mean Dice {number(scores['dice'])}"
        why = "" if math.isfinite(scores["dice"]) else f" ({named})"
        print(f"{mean}{why} of {scores['scored']} volumes; {report.table}")
    else:
        names = ("balanced_accuracy", "accuracy", "auroc", "r2", "mae")
        parts = [f"{n.replace('_', ' ')} {number(scores[n])}" for n in names if n in scores]
        print(f"{', '.join(parts)} of {scores['scored']} volumes; {report.table}")
    for line in report.scored:
        print(f"  {line}")


def why_none(unscored: Sequence[dict[str, Any]]) -> str:
    """Why there is no score at all."""
    if not unscored:
        return "no scan was done"
    first = unscored[0]
    n = f"{len(unscored)} scans have" if len(unscored) > 1 else "the one scan has"
    return f"{n} no true label that can be used ({first['path']}: {first['detail']})"


def figures_of(report: "PredictReport") -> dict[str, Any]:
    """What `--json` writes."""
    return {
        "destination": str(report.destination),
        "done": report.n_done,
        "kept": report.n_kept,
        "classes": list(report.classes),
        "failed": [asdict(each) for each in report.failed],
        "doubts": list(report.doubts),
        "leftovers": list(report.leftovers),
        **report.scores,
    }
