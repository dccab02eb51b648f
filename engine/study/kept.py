"""A study that goes on from its results alone: the folders of its finished runs, laid out anew.

Of a study that was moved or put away often its results are left (`results.jsonl`, also packed as
.gz, `pretraining.json`, `plan.json`, `study.json`), not `cells/` and `pretrain/`. A row tells all
of its run but the settings, which the plan tells, and the encoder, of which it has the hash: a
pretraining that further runs need is made again, and has to come out as the same weights.
"""

import gzip
import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.finetune.config import FinetuneConfig
from mim3d.engine.finetune.run_folder import CONFIG, RESULT, claim
from mim3d.engine.finetune.splits import Splits, labelled_subset
from mim3d.engine.runs.files import differences, json_sha256, read_json, read_jsonl, write_json
from mim3d.engine.study.arms import arms_of
from mim3d.engine.study.config import (
    CASES,
    PLAN,
    PRETRAINING,
    RESULTS,
    STUDY,
    Row,
    StudyConfig,
    plain,
    read_plan,
)
from mim3d.engine.study.costs import CLOCK
from mim3d.engine.study.origin import ORIGIN, SHOWN, few, origin_of, wanted_origin
from mim3d.engine.study.plan import Cell, finetune_config, scored_cells, tuning_cells
from mim3d.engine.training.corpus import corpus_sha256

KEPT = "kept.json"
"""In the study's folder: what is known of the results it went on from. In a pretraining's: its row
of them."""
SETTINGS = ("data", "vit", "swin", "shapes", "pretrain", "finetune", "score_test")
"""What of a study's configuration a run hangs on, besides what names its cell."""
ABOUT_CELL = ("arm", "encoder", "variant", "head", "labels", "seed", "lr", "encoder_lr_scale")
BESIDE = {*ABOUT_CELL, "tuning", "n_labelled", "pretraining_sha256", "cpu_seconds", "pictures"}
"""Columns of a row that gathering added to the run's own."""
CUT_SHORT = f"not all their rows are in {RESULTS}"
NO_ENCODER = (
    f"nothing tells with which encoder they began ({PRETRAINING} of then, or the weights given)"
)


def as_kept(file: Path) -> Path:
    """The file, or its packed form where only that is there."""
    packed = file.with_name(f"{file.name}.gz")
    return packed if packed.exists() and not file.exists() else file


def kept_rows(file: Path) -> list[Row]:
    """Rows of a file or of its packed form; none where there is neither."""
    found = as_kept(file)
    if found == file:
        return read_jsonl(file) if file.exists() else []
    try:
        with gzip.open(found, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except (OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{found} cannot be read ({error}): restore it") from error


def is_results_alone(out: Path) -> bool:
    """Whether a folder has a study's rows and no `cells/`, or not all that was laid out of them.

    An empty `cells/` is that of somebody who deleted runs to have them made anew.
    """
    found = as_kept(out / RESULTS).exists()
    half_way = (out / KEPT).exists() and not read_json(out / KEPT).get("complete")
    return found and (half_way or not (out / "cells").exists())


def lay_out(config: StudyConfig, corpus: Corpus, splits: Splits, out: Path) -> list[str]:
    """Lay out the finished runs of results alone; lines that tell what was, and what was not.

    ConfigError where the results are of other settings, subjects or files than are asked for:
    gathering would replace them.
    """
    rows = grouped(kept_rows(out / RESULTS))
    if not rows:
        return []
    plan = known_plan(config, corpus, splits, len(rows), out)
    found = {
        cell: rows.pop(name)
        for cell in possible_cells(config)
        if (name := name_of(plan["cells"].get(cell.key, {}))) in rows
    }
    refuse_not_asked(rows, out)
    write_json(out / KEPT, {"complete": False})
    cases, sources = grouped(kept_rows(out / CASES)), weights_of(out)
    anew: dict[str, list[str]] = {}
    for cell, own in found.items():
        made = finetune_config(config, cell, splits, out)
        began = origin_of_row(wanted_origin(config, cell, splits), own[0], sources)
        if not is_whole(made, own):
            anew.setdefault(CUT_SHORT, []).append(cell.key)
        elif began is None:
            anew.setdefault(NO_ENCODER, []).append(cell.key)
        else:
            write_run(made, cell.key, out, own, cases.get(name_of(own[0]), []), began)
    laid = len(found) - sum(map(len, anew.values()))
    keep_remarks(plan, laid, out)
    return lines_of(laid, anew, out)


def possible_cells(config: StudyConfig) -> list[Cell]:
    """Cells that may have results, whichever rates the tuning chose."""
    names = list(product((arm.label for arm in arms_of(config)), config.heads))
    scored = (
        cell
        for rates in config.finetune.lr_grid
        for cell in scored_cells(config, dict.fromkeys(names, rates))
    )
    return list(dict.fromkeys([*tuning_cells(config), *scored]))


def known_plan(config: StudyConfig, corpus: Corpus, splits: Splits, n: int, out: Path) -> Row:
    """The plan of the results of `n` runs; ConfigError where it is gone or of something else."""
    what = f"{out} has the results of {n} runs, and not their folders ({out / 'cells'})"
    plan = read_plan(out) if (out / PLAN).exists() else {}
    if "origins" not in plan:  # as before 0.2
        raise ConfigError(
            f"{what} nor a {PLAN} that tells of what settings they are: restore one of these, or "
            "choose another --out"
        )
    if config.data.targets:
        raise ConfigError(
            f"{what}, which tell of what table of targets they are: restore these, or choose "
            "another --out"
        )
    for name, then, now in unlike(plan, config, corpus, splits):
        raise ConfigError(
            f"{what}, with {name} {then}, not {now}: ask for the same, or choose another --out"
        )
    return plan


def unlike(
    plan: Row, config: StudyConfig, corpus: Corpus, splits: Splits
) -> list[tuple[str, object, object]]:
    """(name, then, now) of all that the runs of a plan hang on and that is another now."""
    then, now = settings_of(plan["about"].get("config", {})), settings_of(plain(config))
    found = differences(then, now)
    hashes = plan["corpus_sha256"][:SHOWN], corpus_sha256(corpus)[:SHOWN]
    pairs = [("a corpus of sha256", *hashes)]
    for name in ("train", "validation", "test"):
        dealt = plan["about"].get("splits", {}).get(name, ()), getattr(splits, name)
        pairs.append((f"{name} subjects", *map(people_in_words, dealt)))
    return found + [pair for pair in pairs if pair[1] != pair[2]]


def settings_of(config: Row) -> Row:
    """What of a study's configuration its runs hang on; the corpus is told by its hash."""
    found = {name: config.get(name) for name in SETTINGS}
    data = found["data"] or {}
    return found | {"data": {name: value for name, value in data.items() if name != "corpus"}}


def people_in_words(subjects: Sequence[str]) -> str:
    """How many subjects, and which as far as a hash tells them apart."""
    return f"{len(subjects)} (sha256 {json_sha256(sorted(subjects))[:6]})"


def grouped(rows: list[Row]) -> dict[tuple[object, ...], list[Row]]:
    """Rows by their cell."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(name_of(row), []).append(row)
    return found


def name_of(row: Row) -> tuple[object, ...]:
    """What tells a cell from all others, in a row or in the plan."""
    return (*(row.get(name) for name in ABOUT_CELL), bool(row.get("tuning")))


def pretraining_rows_of(out: Path) -> list[Row]:
    """Rows of pretraining.json that name their weights."""
    rows = read_json(out / PRETRAINING) if (out / PRETRAINING).exists() else []
    return [row for row in rows if row.get("sha256")]


def weights_of(out: Path) -> dict[str, str]:
    """Hashes of the weights that the pretrainings came to, by their first digits."""
    return {row["sha256"][:SHOWN]: row["sha256"] for row in pretraining_rows_of(out)}


def origin_of_row(wanted: Row, row: Row, sources: dict[str, str]) -> Row | None:
    """What a run began with, as its own record would tell: empty of scratch, None of no known one.

    Rows have the first digits of the weights' hash; the whole one is that of a pretraining of
    these results, or of the encoder that was given by path, if that is still there.
    """
    if not wanted:
        return {}
    digits = row.get("pretraining_sha256", "")
    if "given" not in wanted:
        known = {"weights_sha256": sources.get(digits)}
        return known | {"settings_sha256": wanted["settings_sha256"]} if digits in sources else None
    try:
        now = origin_of(wanted["given"])
    except (CheckpointError, OSError):
        return None
    return now if digits and now["weights_sha256"].startswith(digits) else None


def write_run(
    config: FinetuneConfig, key: str, out: Path, rows: list[Row], cases: list[Row], began: Row
) -> None:
    """The folder of a finished run, its result last."""
    folder = out / "cells" / key
    train = labelled_subset(config.train, config.labels, config.seed)
    if (n := rows[0].get("n_labelled")) != len(train):
        raise ConfigError(
            f"{out / RESULTS} tells of {n} labelled subjects in {key}, and there would be "
            f"{len(train)}: choose another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    claim(replace(config, init=""), folder)  # the encoder is not there, but for its hash
    if began:
        write_json(folder / CONFIG, read_json(folder / CONFIG) | {"init": began["weights_sha256"]})
        write_json(folder / ORIGIN, began)
    if "cpu_seconds" in rows[0]:
        write_json(folder / CLOCK, {"cpu_seconds": rows[0]["cpu_seconds"]})
    last = max(rows, key=lambda row: row["step"])
    result = {
        "rows": list(map(own_part, rows)),
        "cases": list(map(own_part, cases)),
        "step_flops": last["flops"] / max(last["step"], 1),
        "seconds": last["seconds"],
        "subjects": {"train": train, "validation": config.validation, "test": config.test},
    }
    write_json(folder / RESULT, result)


def is_whole(config: FinetuneConfig, rows: list[Row]) -> bool:
    """Whether rows are of a run from its first evaluation to its last, and scored as is asked."""
    steps = {row["step"] for row in rows if row["split"] == "validation"}
    return steps.issuperset(config.evaluation_steps) and (
        not config.test or any(row["split"] == "test" for row in rows)
    )


def own_part(row: Row) -> Row:
    """A row as the run wrote it."""
    return {name: value for name, value in row.items() if name not in BESIDE}


def refuse_not_asked(left: dict[tuple[object, ...], list[Row]], out: Path) -> None:
    """ConfigError where there are results of runs that are not asked for: they would be lost."""
    if left:
        first = dict(zip(ABOUT_CELL, next(iter(left)), strict=False))
        words = ", ".join(f"{name} {value}" for name, value in first.items() if value != "")
        raise ConfigError(
            f"{out} has results of {len(left)} runs that are not asked for ({words}), without "
            "their folders: ask for the same arms, seeds, heads, labels and settings, or choose "
            "another --out"
        )


def keep_pretrainings(out: Path) -> None:
    """Keep the row of every pretraining whose run is gone, where gathering finds it.

    To be called while plan.json is still that of the results.
    """
    if not (out / PLAN).exists():
        return
    rows = {name_of_pretraining(row): row for row in pretraining_rows_of(out)}
    for one in read_plan(out)["pretrainings"]:
        folder, row = out / "pretrain" / one.get("key", ""), rows.get(name_of_pretraining(one))
        if row and "settings_sha256" in one and not (folder / "pretext.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            kept = row | {"picture": ""}
            write_json(folder / KEPT, {"settings_sha256": one["settings_sha256"], "row": kept})


def kept_pretraining(wanted: Row, folder: Path) -> Row | None:
    """The row of a pretraining whose run is gone, None where there is none of these settings."""
    if not (folder / KEPT).exists() or (folder / "pretext.json").exists():
        return None
    kept = read_json(folder / KEPT)
    return kept["row"] if kept["settings_sha256"] == wanted.get("settings_sha256") else None


def name_of_pretraining(row: Row) -> tuple[object, ...]:
    """What tells a pretraining from the others, in its row or in the plan."""
    return tuple(row.get(name) for name in ("arm", "encoder", "variant", "seed"))


def keep_remarks(plan: Row, laid: int, out: Path) -> None:
    """What study.json said of the runs, for their folders say nothing; where they were made."""
    about = read_json(out / STUDY) if (out / STUDY).exists() else {}
    date, line = (plan["about"].get(name, "?") for name in ("date", "machine_line"))
    origin = f"{runs(laid)} taken from the results of {date} ({line}), without their folders"
    origin += "" if as_kept(out / CASES).exists() else f" and scores of single cases ({CASES})"
    found = {
        name: [note for note in about.get(name, []) if note not in plan.get(name, [])]
        for name in ("notes", "doubts")
    }
    found["notes"] = [note for note in found["notes"] if note not in about.get("left_out", [])]
    found["notes"] += [origin] * (laid > 0)
    write_json(out / KEPT, {**found, "complete": True})


def kept_remarks(out: Path, name: str) -> list[str]:
    """`notes` or `doubts` of the results that the study went on from."""
    return read_json(out / KEPT).get(name, []) if (out / KEPT).exists() else []


def vanished(plan: Row, finished: Collection[str], out: Path) -> list[str]:
    """That results of the last gathering are left out, for the folders of their runs are gone."""
    open_cells = {key: cell for key, cell in plan["cells"].items() if key not in finished}
    if not open_cells or not (out / RESULTS).exists():
        return []
    before = grouped(read_jsonl(out / RESULTS))
    gone = [key for key, cell in open_cells.items() if name_of(cell) in before]
    if not gone:
        return []
    return [
        f"{len(gone)} result{'s' * (len(gone) > 1)} left out: {few(gone)} "
        f"had one and no folder of theirs is in {out / 'cells'} any more; the study's own command "
        "runs them anew"
    ]


def runs(n: int) -> str:
    """`1 run is`, `3 runs are`."""
    return "1 run is" if n == 1 else f"{n} runs are"


def lines_of(laid: int, anew: dict[str, list[str]], out: Path) -> list[str]:
    """What the user is told; `anew` has by their reason the runs that are not taken."""
    lines = []
    if laid:
        lines.append(
            f"{runs(laid)} taken from {as_kept(out / RESULTS)}, for there is no {out / 'cells'} "
            "(delete both to run all anew)"
        )
    if laid and not as_kept(out / CASES).exists():
        lines.append(f"of these the scores of single cases are lost, for there is no {out / CASES}")
    for why, keys in anew.items():
        lines.append(f"{runs(len(keys))} made anew, for {why}: {few(keys)}")
    return lines
