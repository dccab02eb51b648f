"""Which pretraining a cell started from, kept beside its result and held against what is asked.

`origin.json` in a cell's folder has `weights_sha256` of the encoder and `settings_sha256` of the
run that made it (None of an encoder given by path without its run). Cells of earlier versions
have none; of them only the pretraining that lies there now can be checked.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mim3d.dataio.corpus.names import MANIFEST, own_file
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.finetune.splits import Splits
from mim3d.engine.pretrain.config import PretrainConfig, config_identity, identity_of
from mim3d.engine.pretrain.run_folder import CONFIG, RESULT
from mim3d.engine.runs.checkpoint_files import CHECKPOINTS, newest_facts
from mim3d.engine.runs.encoder_file import read_card, refuse_changed_weights
from mim3d.engine.runs.files import (
    differences,
    file_sha256,
    json_sha256,
    local_sha256,
    read_json,
    write_json,
)
from mim3d.engine.study.arms import given_path
from mim3d.engine.study.config import Row, StudyConfig
from mim3d.engine.study.encoders import label_of
from mim3d.engine.study.plan import Cell, Pretraining, pretrain_config, pretraining_of
from mim3d.engine.transfer.given_weights import sha256_of

ORIGIN = "origin.json"
UNFINISHED = "an encoder that no finished pretraining left"
SHOWN = 16
"""Digits of a hash that rows carry."""


def wanted_settings(config: StudyConfig, pretraining: Pretraining, splits: Splits) -> str:
    """Hash of the settings that a pretraining is asked to have."""
    return json_sha256(config_identity(pretrain_config(config, pretraining, splits)))


def wanted_origin(config: StudyConfig, cell: Cell, splits: Splits) -> Row:
    """Where a cell's encoder is to come from, and by which settings; empty of scratch."""
    pretraining = pretraining_of(config, cell)
    if pretraining is not None:
        settings = wanted_settings(config, pretraining, splits)
        return {"pretraining": pretraining.key, "settings_sha256": settings}
    given = given_path(config, cell.arm, cell.encoder)
    return {"given": given} if given else {}


def source_of(wanted: Row, out: Path) -> Path:
    """Where the encoder lies that a cell of the study in `out` is to start from."""
    return Path(wanted["given"]) if "given" in wanted else out / "pretrain" / wanted["pretraining"]


def keep_origin(source: str, folder: Path) -> None:
    """Store what a cell is about to start from; ConfigError where it began from other weights."""
    if not source:
        return
    now, file = origin_of(source), folder / ORIGIN
    then = read_json(file) if file.exists() else now
    if then["weights_sha256"] != now["weights_sha256"]:
        raise ConfigError(
            f"{folder} began from another encoder than {source} holds now (sha256 "
            f"{then['weights_sha256'][:12]} then, {now['weights_sha256'][:12]} now): delete "
            f"{folder} to run it anew"
        )
    write_json(file, now)


def origin_of(source: str) -> Row:
    """Hashes of an encoder's weights and of the settings of its run, if it is one of ours."""
    try:
        weights, card = read_card(source)
    except CheckpointError:
        return {"weights_sha256": sha256_of(source), "settings_sha256": None}
    return {
        "weights_sha256": card.get("weights_sha256") or file_sha256(weights),
        "settings_sha256": settings_of(weights.parent),
    }


def settings_of(run: Path) -> str | None:
    """Hash of a run's settings, None where it does not tell them."""
    try:
        return json_sha256(identity_of(read_json(run / "config.json")))
    except (OSError, KeyError, TypeError, ValueError):
        return None


def kept_origin(folder: Path) -> Row:
    """What a cell started from, empty where that was not kept."""
    return read_json(folder / ORIGIN) if (folder / ORIGIN).exists() else {}


def foreign_source(wanted: Row, out: Path) -> str:
    """Why the encoder that lies there is not the one asked for; empty where it is, or none does."""
    if not wanted.get("settings_sha256"):
        return ""
    folder = source_of(wanted, out)
    made = settings_of(folder)
    if made is None or made == wanted["settings_sha256"]:
        return ""
    return f"{folder} holds a pretraining of other settings"


def unfinished_source(wanted: Row, out: Path) -> str:
    """Why a cell's pretraining cannot be taken yet; empty where it can, or where there is none."""
    if "pretraining" not in wanted:
        return ""
    folder = source_of(wanted, out)
    return "" if (folder / RESULT).exists() else f"its pretraining in {folder} is not finished"


def refuse_other_pretraining(config: PretrainConfig, folder: Path) -> None:
    """ConfigError where a pretraining of other settings lies there, be it finished or under way.

    A single run may go on with another rate or length; an arm of a study is of one setting.
    """
    finished = (folder / RESULT).exists()
    if not finished and not (folder / CONFIG).exists():
        return
    try:
        stored = identity_of(read_json(folder / CONFIG))
    except (CheckpointError, OSError, KeyError, TypeError, ValueError) as error:
        if not finished:
            return  # the run itself tells what it cannot read
        raise CheckpointError(
            f"{folder / CONFIG} does not tell of what settings the pretraining there is "
            f"({error}): restore it, or delete {folder} to pretrain anew"
        ) from error
    differing = differences(stored, config_identity(config))
    differing += other_corpus(config.data.corpus, folder)
    for name, before, now in differing:
        raise ConfigError(
            f"{folder} holds a pretraining with {name} {before}, not {now}: delete that folder to "
            "pretrain anew, or choose another --out"
        )


def other_corpus(corpus: str, folder: Path) -> list[tuple[str, str, str]]:
    """The first digits of a corpus's hash then and now, where a pretraining began with another."""
    now = local_sha256(own_file(corpus, MANIFEST))
    if (folder / RESULT).exists():
        before = read_card(folder)[1].get("corpus_sha256")
    else:
        facts = newest_facts(folder / CHECKPOINTS)
        before = facts and facts.corpus_sha256
    if not now or not before or before == now:
        return []
    return [("a corpus of sha256", before[:SHOWN], now[:SHOWN])]


def refuse_damaged(folder: Path) -> None:
    """CheckpointError where a finished pretraining's encoder is gone or not what its card tells."""
    if not (folder / RESULT).exists():
        return
    try:
        refuse_changed_weights(*read_card(folder))
    except CheckpointError as error:
        found = str(error).partition(": ")[0]
        raise CheckpointError(
            f"{found}, though its pretraining is finished: restore it, or delete {folder} and run "
            "the same command, which pretrains it anew where a run still needs it"
        ) from error


def foreign_origin(wanted: Row, key: str, out: Path) -> str:
    """Why a cell's result is not of the pretraining asked for; empty where it may be."""
    kept = kept_origin(out / "cells" / key)
    if not wanted:
        return ""
    if not kept:
        return foreign_source(wanted, out)
    settings = wanted.get("settings_sha256")
    if settings and kept["settings_sha256"] != settings:
        known = kept["settings_sha256"] is not None
        return f"started from {'a pretraining of other settings' if known else UNFINISHED}"
    source = source_of(wanted, out)
    try:
        now = origin_of(str(source))
    except (CheckpointError, OSError):
        return ""  # the encoder is gone; the cell's own record agrees
    if now["weights_sha256"] != kept["weights_sha256"]:
        return f"started from another encoder than {source} holds now"
    return ""


def own_cells(plan: Row, keys: Iterable[str], out: Path) -> tuple[list[str], list[str]]:
    """Of finished cells those of the pretraining asked for, and notes on the others."""
    own: list[str] = []
    others: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        if why := foreign_origin(plan.get("origins", {}).get(key, {}), key, out):
            cell = plan["cells"][key]
            label = label_of(cell["arm"], cell.get("encoder", ""))
            others.setdefault((why, label), []).append(key)
        else:
            own.append(key)
    return own, [foreign_note(why, arm, found, out) for (why, arm), found in others.items()]


def foreign_note(why: str, arm: str, keys: list[str], out: Path) -> str:
    """What is left out of the results, why, and how to have it run."""
    shown = few([str(out / "cells" / key) for key in keys])
    runs = f"{len(keys)} result{'s' if len(keys) > 1 else ''}"
    return (
        f"{runs} of {arm} left out: {why}. Delete {shown}, and the pretraining where it is "
        "of other settings, to run them anew with the same command; or choose another --out"
    )


def few(names: Sequence[str]) -> str:
    """The first two, and how many more there are."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
