"""A study's results, gathered from its finished parts at any time, also while others still run.

`plan.json` names the parts, so that the results of a study that was killed can be gathered by
`mim3d compare --report` without its corpus or its configuration.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine import environment
from mim3d.engine.errors import DivergedError
from mim3d.engine.finetune.classification import absent_targets
from mim3d.engine.finetune.run_folder import PICTURES, RESULT, read_result
from mim3d.engine.finetune.segmentation import absent_classes
from mim3d.engine.finetune.splits import Splits
from mim3d.engine.finetune.targets import read_targets
from mim3d.engine.runs.files import write_json, write_jsonl
from mim3d.engine.study.arms import arm_names, arms_of, encoder_arms, refuse_arms, shown_encoder
from mim3d.engine.study.config import (
    CASES,
    PLAN,
    PRETRAINING,
    RESULTS,
    STUDY,
    Row,
    StudyConfig,
    Variant,
    labels_in_words,
    plain,
    read_plan,
    settings_in_words,
)
from mim3d.engine.study.costs import cpu_seconds, network_sizes
from mim3d.engine.study.encoders import label_of
from mim3d.engine.study.kept import kept_pretraining, kept_remarks, vanished
from mim3d.engine.study.origin import (
    SHOWN,
    foreign_source,
    kept_origin,
    own_cells,
    wanted_origin,
    wanted_settings,
)
from mim3d.engine.study.plan import Cell, pretraining_key, pretrainings
from mim3d.engine.study.pretext import (
    HELD_OUT,
    external_row,
    given_arms,
    is_encoder,
    pretraining_row,
)
from mim3d.engine.study.search import search_notes, search_tried
from mim3d.engine.training.corpus import corpus_sha256

AREA = "area under the validation curve"
"""What an ablation compares settings by."""
FEW_PARTS = 3
SETTING = ("head", "labels", "variant", "encoder")
"""What cells that are compared with each other have in common."""


def headline_settings(settings: Row, config: Row) -> Row:
    """What the headline hangs on: target, smoothing, seeds, arms, encoders, first decoder, labels.

    JSON values. Seeds, arms and encoders added once results were seen are a choice too. Of an
    ablation also its outcome and its settings in their order, for the first is the others' rival.
    """
    found = {name: settings.get(name) for name in ("targets", "primary", "smoothing")}
    if "outcome" in settings:
        names = list(map(settings_in_words, variant_settings(config)))
        found |= {"outcome": settings["outcome"], "settings": names}
    found |= {name: config[name][0] for name in ("heads", "labels") if config.get(name)}
    return found | {name: config[name] for name in ("seeds", "arms", "encoders") if name in config}


def variant_settings(config: Row) -> list[Row]:
    """Of each variant in their order, the settings that are set; JSON keeps the others as None."""
    variants = config.get("variants", ())
    return [{k: v for k, v in variant.items() if v is not None} for variant in variants]


def write_plan(
    config: StudyConfig,
    corpus: Corpus,
    splits: Splits,
    cells: Iterable[Cell],
    failed: Mapping[str, Exception],
    out: Path,
) -> None:
    """Write plan.json: every cell and pretraining that may leave results, and what is known."""
    notes = [*splits.notes, *held_out_notes(config, corpus, splits), *refuse_arms(config)]
    notes += search_notes(config.pretext_search, corpus_sha256(corpus))
    notes += [f"{name} was not run: {error}" for name, error in failed.items()]
    cells = list(cells)
    about = about_study(config, corpus, splits)
    known = {
        "asked_first": asked_first(about, out),
        "began_with": began_with(about, out),
        "failed": failed_rows(config, cells, failed),
    }
    given = given_arms(config, corpus, splits)
    notes += [f"{label}: {line}" for label, found in given.items() for line in found.guesses]
    plan = {
        "about": about | known,
        "cells": {cell.key: cell_fields(config, cell) for cell in cells},
        "pretrainings": [
            {
                "arm": p.arm,
                "encoder": shown_encoder(config, p.encoder),
                "variant": p.variant.name,
                "seed": p.seed,
                "key": p.key,
                "settings_sha256": wanted_settings(config, p, splits),
            }
            for p in pretrainings(config)
        ],
        "origins": {cell.key: wanted_origin(config, cell, splits) for cell in cells},
        "given": {arm.label: arm.path for arm in arms_of(config) if arm.path},
        "seen": {label: found.seen for label, found in given.items()},
        "doubts": [f"{label}: {line}" for label, found in given.items() for line in found.doubts],
        "corpus_sha256": corpus_sha256(corpus),
        "notes": notes,
    }
    write_json(out / PLAN, plan)


def asked_first(about: Row, out: Path) -> Row | None:
    """What the headline hung on when the study began; None where runs were there before a plan."""
    if (out / PLAN).exists():
        return read_plan(out, ["about"])["about"].get("asked_first")
    if any((out / "cells").glob(f"*/{RESULT}")):
        return None
    return headline_settings(about["settings"], about["config"])


def began_with(about: Row, out: Path) -> Row:
    """The decoders and numbers of labels of the first plan: others were added after looking."""
    if (out / PLAN).exists() and any((out / "cells").glob(f"*/{RESULT}")):
        return read_plan(out, ["about"])["about"].get("began_with", {})
    return {name: about["config"][name] for name in ("heads", "labels")}


def failed_rows(
    config: StudyConfig, cells: Iterable[Cell], failed: Mapping[str, Exception]
) -> list[Row]:
    """Cells that ended in an error; one whose loss diverged never reaches a target."""
    return [
        {
            **cell_fields(config, c),
            "error": str(failed[c.key]),
            "diverged": isinstance(failed[c.key], DivergedError),
        }
        for c in cells
        if c.key in failed
    ]


def gather(out: Path) -> bool:
    """Write the four files of results from what is finished by now; False where no cell is.

    Then, and where there is no plan (results alone), nothing is written.
    """
    if not (out / PLAN).exists():
        return False
    plan = read_plan(out)
    finished = [key for key in plan["cells"] if result_file(out, key).exists()]
    own, left_out = own_cells(plan, finished, out)
    done = {key: plan["cells"][key] for key in own}
    if not done:
        return False
    rows: list[Row] = []
    cases: list[Row] = []
    remarks: dict[str, list[Row]] = {}
    doubts: list[str] = list(plan.get("doubts", []))
    for key, fields in done.items():
        result = read_result(result_file(out, key).parent)
        about = fields | {"n_labelled": len(result.subjects["train"])} | origin_fields(out, key)
        about |= cpu_seconds(out / "cells" / key)
        pictures = Path("cells") / key / PICTURES
        shown = {"pictures": str(pictures)} if (out / pictures).exists() else {}
        rows += [{**about, **row, **shown} for row in result.rows]
        cases += [{**about, **case} for case in result.cases]
        in_part = unlike(fields, result.doubts)
        doubts += in_part
        for note in [*result.notes, *in_part]:
            remarks.setdefault(note, []).append(fields)
    left_out += vanished(plan, finished, out)
    doubts += kept_remarks(out, "doubts")
    notes = [*plan["notes"], *left_out, *kept_remarks(out, "notes")]
    notes += cell_notes(remarks, list(done.values()), plan["notes"])
    write_jsonl(out / RESULTS, rows)
    write_jsonl(out / CASES, cases)
    write_json(out / PRETRAINING, pretraining_rows(plan, out))
    remarks_of_all = {
        "to_come": to_come(plan, done),
        "left_out": left_out,
        "doubts": list(dict.fromkeys(doubts)),
        "notes": list(dict.fromkeys(notes)),
    }
    write_json(out / STUDY, plan["about"] | remarks_of_all)
    return True


def to_come(plan: Row, done: Mapping[str, Row]) -> list[Row]:
    """Planned settings of which runs have neither ended nor failed, how many, and of how many."""
    failed = [scored_as(row) for row in plan["about"].get("failed", [])]
    planned: dict[tuple[Any, ...], list[bool]] = {}
    for key, fields in plan["cells"].items():
        if not fields["tuning"]:
            ended = key in done or scored_as(fields) in failed
            place = tuple(fields.get(name, "") for name in SETTING)
            planned.setdefault(place, []).append(ended)
    return [
        dict(zip(SETTING, place, strict=True)) | {"runs": ends.count(False), "planned": len(ends)}
        for place, ends in planned.items()
        if not all(ends)
    ]


def scored_as(row: Row) -> tuple[Any, ...]:
    """What a row of results or of failures is about."""
    return tuple(row.get(name, "") for name in (*SETTING, "arm", "seed", "tuning"))


def unlike(cell: Row, doubts: Sequence[str]) -> list[str]:
    """That a cell's encoder is only in part that of its weights."""
    if not doubts:
        return []
    label, more = label_of(cell["arm"], cell["encoder"]), len(doubts) - FEW_PARTS
    parts = ", ".join(doubts[:FEW_PARTS]) + f" and {more} more" * (more > 0)
    return [f"{label}: the encoder is only in part that of its weights: {parts}"]


def result_file(out: Path, key: str) -> Path:
    """Where a cell leaves its result."""
    return out / "cells" / key / RESULT


def origin_fields(out: Path, key: str) -> Row:
    """The first digits of the hash of the encoder that a cell started from, where it is kept."""
    kept = kept_origin(out / "cells" / key)
    return {"pretraining_sha256": kept["weights_sha256"][:SHOWN]} if kept else {}


def cell_fields(config: StudyConfig, cell: Cell) -> Row:
    """A cell's settings as columns of its rows; `encoder` is empty where all arms have one."""
    return {
        "arm": cell.arm,
        "encoder": shown_encoder(config, cell.encoder),
        "variant": cell.variant.name,
        "head": cell.head,
        "labels": cell.labels,
        "seed": cell.seed,
        "lr": cell.lr,
        "encoder_lr_scale": cell.encoder_lr_scale,
        "tuning": cell.tuning,
    }


def pretraining_rows(plan: Row, out: Path) -> list[Row]:
    """One entry per pretraining that is finished, and per readable encoder given by path."""
    held_out = {s for name in HELD_OUT for s in plan["about"]["splits"][name]}
    rows: list[Row] = []
    for one in map(named, plan["pretrainings"]):
        folder = out / "pretrain" / one["key"]
        if (row := kept_pretraining(one, folder)) is not None:
            rows.append(row)
        elif (folder / "pretext.json").exists():
            foreign = foreign_source({"pretraining": one["key"], **one}, out)
            rows += [] if foreign else [pretraining_row(one, out)]
    own, seen = plan["about"].get("encoder", ""), plan.get("seen", {})
    return rows + [
        external_row(label, Path(path), held_out, plan["corpus_sha256"], out, own, seen.get(label))
        for label, path in plan["given"].items()
        if is_encoder(path)
    ]


def named(pretraining: Row) -> Row:
    """An entry of plan.json; before 0.2 it had the variant's settings, and names came from them."""
    if isinstance(pretraining["variant"], str):
        return pretraining
    arm, seed = pretraining["arm"], pretraining["seed"]
    name = settings_in_words(pretraining["variant"])
    return pretraining | {"variant": name, "key": pretraining_key(arm, name, seed)}


def held_out_notes(config: StudyConfig, corpus: Corpus, splits: Splits) -> list[str]:
    """Classes that no validation or no test subject has: their scores cannot be told."""
    parts = [(name, getattr(splits, name)) for name in HELD_OUT if getattr(splits, name)]
    if "classify" in config.heads:
        targets = read_targets(Path(config.data.targets)).by_subject
        return [note for name, part in parts for note in absent_targets(targets, part, name)]
    records, label = corpus.records, config.data.label
    return [note for name, part in parts for note in absent_classes(records, label, part, name)]


def cell_notes(
    remarks: dict[str, list[Row]], everyone: Sequence[Row], known: Collection[str]
) -> list[str]:
    """Remarks of cells, each once, with the label counts and seeds it is about unless all are."""
    found = []
    for note, cells in remarks.items():
        if note not in known:
            where = "; ".join(places(cells, everyone))
            found.append(f"{where}: {note}" if where else note)
    return found


def places(cells: Sequence[Row], everyone: Sequence[Row]) -> list[str]:
    """`8 labelled subjects, seeds 0, 3` for each label count of some cells; none for all cells."""
    here, there = ({(c["labels"], c["seed"]) for c in part} for part in (cells, everyone))
    if here == there:
        return []
    found = []
    for labels in sorted({labels for labels, _ in here}):
        seeds = sorted(seed for one, seed in here if one == labels)
        words = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        if len(seeds) == len({seed for one, seed in there if one == labels}) > 1:
            words = "every seed"
        found.append(f"{'all labels' if labels == 1 else labels_in_words(labels)}, {words}")
    return found


def about_study(config: StudyConfig, corpus: Corpus, splits: Splits) -> Row:
    """study.json: what was asked for, on what data, on which machine."""
    machine = environment.machine()
    devices = [row["name"] for row in environment.devices()]
    line = ", ".join(devices) or f"{machine['processor']}, {machine['cores']} cores"
    subjects = {record.subject for record in corpus.records}
    return {
        "name": config.name,
        "version": version("mim3d"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "synthetic": config.synthetic,
        "metric": "balanced accuracy" if config.heads == ("classify",) else "Dice",
        "arms": arm_names(config),
        "encoder": shown_encoder(config, ""),
        "encoder_arms": encoder_arms(config),
        "networks": network_sizes(config, corpus, splits),
        "batch": config.finetune.global_batch,
        "crop_size": config.vit.crop_size,
        "corpus": f"{len(corpus.records)} volumes of {len(subjects)} subjects",
        "machine": {**machine, **environment.torch_build(), **environment.versions()},
        "machine_line": line,
        "settings": {
            "smoothing": config.smoothing,
            "targets": config.targets,
            "primary": config.primary,
            "tasks": config.tasks,
            **({"outcome": AREA} if config.ablation else {}),
        },
        "search": search_tried(config.pretext_search),
        "ablation": config.ablation,
        "ablation_axes": config.ablation_axes,
        "variants": {
            variant.of(arm).name: study_settings(config, variant.of(arm))
            for variant, arm in product(config.variants, arm_names(config))
        },
        "splits": {
            name: getattr(splits, name)
            for name in ("train", "validation", "test", "pretrain", "left_out")
        },
        "config": plain(config),
    }


def study_settings(config: StudyConfig, variant: Variant) -> Row:
    """A variant's settings with the study's own where it leaves them."""
    own = {
        "mask_ratio": config.pretrain.mae.method.mask_ratio,
        "patch": config.vit.patch_size[0],
        "crop": config.vit.crop_size[0],
        "decoder_depth": config.pretrain.mae.method.decoder_depth,
        "decoder_width": config.pretrain.mae.method.decoder_width,
        "decode_fraction": config.pretrain.mae.method.decode_fraction,
        "temperature": config.pretrain.simclr.method.temperature,
    }
    return own | variant.settings
