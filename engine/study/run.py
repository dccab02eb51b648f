"""The convergence study: pretrain each arm, fine-tune every cell, gather.

    run_study(config, out) -> StudyResult

A finished pretraining or cell is never repeated: each is a folder with a result written at once.
Results are gathered after every phase, and by `--report` at any time.
"""

import shlex
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from mim3d.dataio.reader.corpus import Corpus, opened_corpus
from mim3d.engine.distributed.config import DeviceKind
from mim3d.engine.distributed.process_group import local_device
from mim3d.engine.errors import CheckpointError, ConfigError, StoppedError, TrainingError
from mim3d.engine.finetune.config import FinetuneConfig
from mim3d.engine.finetune.finetune import run_finetune
from mim3d.engine.finetune.run_folder import CONFIG, RESULT, refuse_other_settings
from mim3d.engine.finetune.splits import Splits, make_splits
from mim3d.engine.finetune.targets import read_targets
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.runs.files import read_json
from mim3d.engine.runs.folder_lock import sole_writer
from mim3d.engine.study.arms import given_path
from mim3d.engine.study.config import EARLIER_SETTINGS, PLAN, StudyConfig, read_plan
from mim3d.engine.study.costs import clocked
from mim3d.engine.study.curves import Curve, area_under
from mim3d.engine.study.encoders import SCRATCH
from mim3d.engine.study.gather import gather, write_plan
from mim3d.engine.study.kept import (
    is_results_alone,
    keep_pretrainings,
    kept_pretraining,
    lay_out,
)
from mim3d.engine.study.origin import (
    foreign_origin,
    foreign_source,
    keep_origin,
    refuse_damaged,
    refuse_other_pretraining,
    unfinished_source,
    wanted_origin,
    wanted_settings,
)
from mim3d.engine.study.plan import (
    Cell,
    Pretraining,
    finetune_config,
    pretrain_config,
    pretraining_of,
    pretrainings,
    scored_cells,
    tuning_cells,
)
from mim3d.engine.study.pool import Failures, InProcess, Pool, PoolTask
from mim3d.engine.study.preflight import refuse_impossible
from mim3d.engine.study.pretext import given_arms, is_encoder
from mim3d.engine.study.processes import Processes, default_workers


@dataclass(frozen=True)
class StudyResult:
    """Where the results are, how long it took, and what could not be run (task: error)."""

    folder: Path
    seconds: float
    failed: dict[str, str]


def run_study(config: StudyConfig, out: str | Path, dask: str = "") -> StudyResult:
    """Run what is missing of the study in `out`, then write its results.

    Runs go to the Dask cluster at address `dask` where one is named; its workers see the same
    files. Results are the same to the byte, but for the seconds they took.
    """
    out, place = Path(out), named_corpus(config)
    workers = config.workers or default_workers(config.device)
    if config.device == "cuda" and not dask:
        refuse_no_gpu()
    with opened_corpus(place) as (corpus, _):
        refuse_run_folder(out)
        refuse_earlier_names(out)
        splits = splits_of(config, corpus)
        refuse_impossible(config, corpus, splits, out)  # before anything is written
        for note in splits.notes:
            print(note, flush=True)
        for label, given in given_arms(config, corpus, splits).items():
            lines = [f"{label}: {line}" for line in given.guesses]
            lines += [f"warning: {label}: {line}" for line in given.doubts]
            print(*lines, sep="\n", end="\n" * bool(lines), flush=True)
        with sole_writer(out), open_pool(workers, dask, out) as pool:
            if is_results_alone(out):
                for line in lay_out(config, corpus, splits, out):
                    print(line, flush=True)
            keep_pretrainings(out)
            return run_phases(config, corpus, splits, out, pool)


def refuse_no_gpu() -> None:
    """A ConfigError where no GPU is visible; where one is, this process does not open it."""
    import torch

    if not torch.cuda.is_available():
        local_device("cuda")


def splits_of(config: StudyConfig, corpus: Corpus) -> Splits:
    """How the corpus's subjects are dealt, once for all cells."""
    classified = "classify" in config.heads
    refuse_no_targets(config)
    targets = read_targets(Path(config.data.targets)).by_subject if classified else None
    return make_splits(corpus.records, config.data.label, config.data.split, targets)


def refuse_no_targets(config: StudyConfig) -> None:
    """ConfigError where head classify has no table of targets, or a table has no such head."""
    if "classify" in config.heads and not config.data.targets:
        raise ConfigError("head classify needs --data.targets FILE.csv (columns subject,target)")
    if config.data.targets and "classify" not in config.heads:
        raise ConfigError(
            f"data.targets {config.data.targets} is what head classify learns, and heads are "
            f"{', '.join(config.heads)}: add --heads classify, or leave the table out"
        )


def open_pool(workers: int, dask: str, out: Path) -> Pool:
    """This process for one worker, else spawned ones; or the Dask cluster at address `dask`.

    `out` is the folder that the tasks write to.
    """
    if dask:
        from mim3d.engine.study.dask_pool import DaskPool

        return DaskPool(dask, out)
    return InProcess() if workers <= 1 else Processes(workers)


def refuse_run_folder(out: Path) -> None:
    """A ConfigError where the folder is that of one run: a study has runs in folders of theirs."""
    if (out / CONFIG).exists():
        raise ConfigError(
            f"{out} holds a single run ({CONFIG}), of `mim3d pretrain` or `finetune`: choose "
            "another --out"
        )


def refuse_earlier_names(out: Path) -> None:
    """A ConfigError where folders of the study bear names of settings from before 0.2."""
    plan = read_plan(out) if (out / PLAN).exists() else {"pretrainings": []}
    settings = [p["variant"] for p in plan["pretrainings"] if isinstance(p["variant"], dict)]
    varied = set(EARLIER_SETTINGS) & {name for variant in settings for name in variant}
    if varied:
        raise ConfigError(
            f"{out} holds a study of mim3d before 0.2 that varied {', '.join(sorted(varied))}, and "
            "its folders bear those names: run it into another --out; "
            f"`{report_command(out)}` still draws its report"
        )


def report_command(out: Path) -> str:
    """The command that draws a study's report again."""
    return shlex.join(["mim3d", "compare", "--report", "--out", str(out)])


def run_phases(
    config: StudyConfig, corpus: Corpus, splits: Splits, out: Path, pool: Pool
) -> StudyResult:
    """The same with the folder's lock held; StoppedError where a signal ended it."""
    began = time.monotonic()
    failed: Failures = {}
    try:
        run_missing(config, corpus, splits, failed, out, pool)
    except StoppedError as stop:
        if not keep_results(config, corpus, splits, failed, out):
            raise
        raise StoppedError(
            f"{stop}; `{report_command(out)}` draws the report of what is done"
        ) from None
    if not keep_results(config, corpus, splits, failed, out):
        first_failure = next(iter(failed.items()), ("", "no cell was run"))
        raise TrainingError(f"nothing to report: {first_failure[0]}: {first_failure[1]}")
    errors = {name: str(error) for name, error in failed.items()}
    return StudyResult(out, time.monotonic() - began, errors)


def run_missing(
    config: StudyConfig, corpus: Corpus, splits: Splits, failed: Failures, out: Path, pool: Pool
) -> None:
    """Pretrainings, runs that tune the rates, then those that are scored; adds what failed."""
    tuning = tuning_cells(config)
    refuse_other_cells(config, splits, out)  # before results are gathered under these settings
    # The headline's cells that wait for no pretraining and no tuning fill the cores beside the
    # pretrainings; other decoders and labels come after the headline of all arms.
    free = [] if tuning else [c for c in headline_cells(config) if waits_for_nothing(config, c)]
    free = of_their_pretraining(config, free, splits, out)
    first = [*pretrain_tasks(config, splits, out), *cell_tasks(config, free, splits, out)]
    keep_results(config, corpus, splits, failed, out)
    failed |= pool.run(first, "pretraining")
    keep_results(config, corpus, splits, failed, out)
    tuning = of_their_pretraining(config, tuning, splits, out)
    tuning = pretrained(config, tuning, splits, failed, out)
    failed |= pool.run(cell_tasks(config, tuning, splits, out), "tuning")
    keep_results(config, corpus, splits, failed, out)
    cells = [c for c in scored_cells(config, choose_lr(tuning, out)) if c.key not in failed]
    cells = of_their_pretraining(config, cells, splits, out)
    cells = pretrained(config, cells, splits, failed, out)
    failed |= pool.run(cell_tasks(config, cells, splits, out), "fine-tuning")


def refuse_other_cells(config: StudyConfig, splits: Splits, out: Path) -> None:
    """ConfigError where a finished cell is of other settings or another corpus."""
    tuning = of_their_pretraining(config, tuning_cells(config), splits, out)
    for cells in (tuning, scored_cells(config, choose_lr(tuning, out))):
        cell_tasks(config, of_their_pretraining(config, cells, splits, out), splits, out)


def keep_results(
    config: StudyConfig, corpus: Corpus, splits: Splits, failed: Failures, out: Path
) -> bool:
    """Name all parts of the study and gather those that are done; whether there are any."""
    tuning = tuning_cells(config)
    chosen = choose_lr(of_their_pretraining(config, tuning, splits, out), out)
    cells = [*tuning, *scored_cells(config, chosen)]
    write_plan(config, corpus, splits, cells, failed, out)
    return gather(out)


def named_corpus(config: StudyConfig) -> str:
    """Where the corpus is, or a ConfigError that says which option names it."""
    if not config.data.corpus:
        raise ConfigError("no corpus: set --data.corpus to a folder that `mim3d convert` wrote")
    return config.data.corpus


def headline_cells(config: StudyConfig) -> list[Cell]:
    """Scored cells of the decoder and labels that come first, where rates need no tuning."""
    cells = scored_cells(config, {})
    return [c for c in cells if (c.head, c.labels) == (cells[0].head, cells[0].labels)]


def waits_for_nothing(config: StudyConfig, cell: Cell) -> bool:
    """Whether a cell can run before any pretraining is done."""
    return cell.arm == SCRATCH or bool(given_path(config, cell.arm, cell.encoder))


def pretrain_tasks(config: StudyConfig, splits: Splits, out: Path) -> list[PoolTask]:
    """Pretrainings as tasks; one that is gone, and all of whose cells are done, is not repeated."""
    needed = awaited(config, out)
    return [
        PoolTask(
            f"pretraining {wanted.key}",
            pretrain_one,
            (pretrain_config(config, wanted, splits), out / "pretrain" / wanted.key, config.device),
        )
        for wanted in pretrainings(config)
        if wanted in needed or not is_kept(config, wanted, splits, out)
    ]


def awaited(config: StudyConfig, out: Path) -> set[Pretraining | None]:
    """Pretrainings that a cell without a result starts from."""
    tuning = tuning_cells(config)
    cells = [*tuning, *scored_cells(config, choose_lr(tuning, out))]
    return {
        pretraining_of(config, cell)
        for cell in cells
        if not (out / "cells" / cell.key / RESULT).exists()
    }


def is_kept(config: StudyConfig, wanted: Pretraining, splits: Splits, out: Path) -> bool:
    """Whether of a pretraining, whose run is gone, the row is there."""
    folder = out / "pretrain" / wanted.key
    row = {"settings_sha256": wanted_settings(config, wanted, splits)}
    return not (folder / CONFIG).exists() and kept_pretraining(row, folder) is not None


def pretrain_one(config: PretrainConfig, folder: Path, device: DeviceKind = "auto") -> None:
    """One pretraining; its checkpoints go once the encoder is there."""
    refuse_damaged(folder)
    refuse_other_pretraining(config, folder)
    with clocked(folder):
        result = run_pretrain(config, folder, device=device)
    if result.interrupted:
        raise StoppedError(f"{folder.name} was told to stop: run the same command to go on")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def of_their_pretraining(
    config: StudyConfig, cells: list[Cell], splits: Splits, out: Path
) -> list[Cell]:
    """Cells whose encoder is the one asked for; the others neither run nor choose rates.

    One that stopped half-way with another encoder is told as it is tried.
    """
    found = []
    for cell in cells:
        wanted = wanted_origin(config, cell, splits)
        finished = (out / "cells" / cell.key / RESULT).exists()
        why = foreign_source(wanted, out) or (finished and foreign_origin(wanted, cell.key, out))
        if not why:
            found.append(cell)
    return found


def pretrained(
    config: StudyConfig, cells: list[Cell], splits: Splits, failed: Failures, out: Path
) -> list[Cell]:
    """Cells whose pretraining is done and whole; the others are added to what failed.

    A run under way has an encoder in its newest checkpoint, which is not the one to compare.
    """
    ready = []
    for cell in cells:
        wanted = wanted_origin(config, cell, splits)
        damaged = failed.get(f"pretraining {wanted.get('pretraining')}", "")
        why = unfinished_source(wanted, out) or str(damaged)
        if why and not (out / "cells" / cell.key / RESULT).exists():
            failed[cell.key] = TrainingError(why)
        else:
            ready.append(cell)
    return ready


def cell_tasks(config: StudyConfig, cells: list[Cell], splits: Splits, out: Path) -> list[PoolTask]:
    """Cells without a result as tasks; ConfigError where a result is of other settings."""
    tasks = []
    for cell in cells:
        wanted, folder = finetune_config(config, cell, splits, out), out / "cells" / cell.key
        if (folder / RESULT).exists():
            refuse_other_result(wanted, folder)
        else:
            tasks.append(PoolTask(cell.key, run_cell, (wanted, out, cell.key)))
    return tasks


def refuse_other_result(wanted: FinetuneConfig, folder: Path) -> None:
    """ConfigError where a finished cell is of other settings, or of which is not known.

    What it began with may have gone since: then its own record of that stands.
    """
    if not (folder / CONFIG).exists():
        raise CheckpointError(
            f"{folder} has a result and no {CONFIG}, which would tell of what settings: delete "
            "that folder to run it anew, or restore the file"
        )
    if wanted.init and not is_encoder(wanted.init):
        refuse_other_settings(replace(wanted, init=""), folder, ("init",))
    else:
        refuse_other_settings(wanted, folder)


def run_cell(config: FinetuneConfig, out: Path, key: str) -> None:
    """One fine-tuning run, under the same settings from its first step to its last."""
    refuse_other_settings(config, out / "cells" / key)
    keep_origin(config.init, out / "cells" / key)
    with clocked(out / "cells" / key):
        result = run_finetune(config, out / "cells" / key, title=key, keep_model=False)
    if result.interrupted:
        raise StoppedError(f"{key} was told to stop: run the same command to go on")


def choose_lr(tuning: list[Cell], out: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """Of each arm's label and head, lr and encoder_lr_scale of the largest mean area."""
    areas: dict[tuple[str, str], dict[tuple[float, float], list[float]]] = {}
    for cell in tuning:
        file = out / "cells" / cell.key / RESULT
        if file.exists():
            by_lr = areas.setdefault((cell.label, cell.head), {})
            lr = cell.lr, cell.encoder_lr_scale
            by_lr.setdefault(lr, []).append(area_of(read_json(file)["rows"]))
    return {key: max(by_lr, key=lambda lr: fmean(by_lr[lr])) for key, by_lr in areas.items()}


def area_of(rows: list[dict[str, Any]]) -> float:
    """Area under the validation curve of one cell."""
    curve = [row for row in rows if row["split"] == "validation" and row["score"] is not None]
    if not curve:
        return 0.0  # no validation subject has a class to score
    return area_under(
        Curve(tuple(row["step"] for row in curve), tuple(row["score"] for row in curve))
    )
