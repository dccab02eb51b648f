"""How many settings each arm's pretext task was tried with, read from the search for them."""

from collections.abc import Collection, Iterable
from pathlib import Path

from mim3d.engine.errors import ConfigError
from mim3d.engine.runs.files import read_json, read_jsonl
from mim3d.engine.study.config import PLAN, PRETRAINING, RESULTS, STUDY, Row, read_plan

RUN = ("arm", "encoder", "variant", "seed")
CELL = (*RUN, "head", "labels")


def search_tried(folder: str) -> Row:
    """By arm: settings tried, crops of each, and the seeds; empty without a search.

    ConfigError where the folder holds no finished search.
    """
    if not folder:
        return {}
    place = Path(folder)
    if not (place / STUDY).is_file() or not (place / PRETRAINING).is_file():
        raise ConfigError(
            f"pretext_search {folder} holds no finished study ({STUDY}, {PRETRAINING}): run "
            "`mim3d compare pretext --data.corpus CORPUS --out DIR` and name DIR, or leave it out"
        )
    refuse_unfinished(place)
    seeds = read_json(place / STUDY).get("config", {}).get("seeds", [])
    tried: Row = {}
    settings: dict[str, set[str]] = {}
    for i_entry, entry in enumerate(read_json(place / PRETRAINING)):
        if "given" in entry:
            continue  # no setting of it was tried
        arm = tried.setdefault(
            entry["arm"], {"settings": 0, "crops": entry["crops"], "seeds": seeds}
        )
        # A setting that was pretrained for several seeds, or on several encoders, is one.
        found = settings.setdefault(entry["arm"], set())
        found.add(str(entry.get("variant", i_entry)))
        arm["settings"] = len(found)
        arm["crops"] = min(arm["crops"], entry["crops"])
    return tried


def refuse_unfinished(place: Path) -> None:
    """ConfigError where runs that the search's plan names are neither done nor failed."""
    if not (place / PLAN).is_file():
        return
    plan, failed = read_plan(place), read_json(place / STUDY).get("failed", [])
    if any(isinstance(run["variant"], dict) for run in plan["pretrainings"]):
        return  # of a version before 0.2, which named its runs otherwise
    open_runs = lacking(plan["pretrainings"], read_json(place / PRETRAINING), failed, RUN[:3])
    what, planned = "pretrainings", len(plan["pretrainings"])
    if not open_runs and (place / RESULTS).is_file():
        cells = plan["cells"].values()
        open_runs = lacking(cells, read_jsonl(place / RESULTS), failed, CELL)
        what, planned = "fine-tuning runs", len(cells)
    if open_runs:
        raise ConfigError(
            f"pretext_search {place} is not finished, {open_runs} of {planned} {what} are to come: "
            "repeat its own command until it is done, or leave it out"
        )


def lacking(
    wanted: Iterable[Row], done: Iterable[Row], failed: Iterable[Row], names: Collection[str]
) -> int:
    """How many of what is wanted are neither done nor failed, known by some of their columns."""

    def known(rows: Iterable[Row]) -> set[tuple[str, ...]]:
        return {tuple(str(row.get(name, "")) for name in names) for row in rows}

    return len(known(wanted) - known(done) - known(failed))


def refuse_scored_seeds(folder: str, seeds: Collection[int]) -> None:
    """ConfigError where a seed by which the search chose is one that the study scores."""
    chose = {seed for arm in search_tried(folder).values() for seed in arm["seeds"]}
    if both := sorted(chose & set(seeds)):
        raise ConfigError(
            f"seeds {', '.join(map(str, both))} chose the settings in pretext_search {folder} and "
            "would be scored: name other --seeds"
        )


def search_notes(folder: str, corpus_sha256: str) -> list[str]:
    """That the search was made on another corpus, as far as it tells."""
    file = Path(folder) / PLAN
    if not folder or not file.is_file() or read_plan(file.parent)["corpus_sha256"] == corpus_sha256:
        return []
    size = read_json(file.parent / STUDY).get("corpus", "")
    return [f"the settings of pretext_search {folder} were chosen on another corpus ({size})"]
