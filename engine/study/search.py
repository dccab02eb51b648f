"""How many settings each arm's pretext task was tried with, read from the search for them."""

from pathlib import Path

from mim3d.engine.errors import ConfigError
from mim3d.engine.runs.files import read_json
from mim3d.engine.study.config import PRETRAINING, STUDY, Row


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
    seeds = read_json(place / STUDY).get("config", {}).get("seeds", [])
    tried: Row = {}
    for entry in read_json(place / PRETRAINING):
        arm = tried.setdefault(
            entry["arm"], {"settings": 0, "crops": entry["crops"], "seeds": seeds}
        )
        arm["settings"] += 1
        arm["crops"] = min(arm["crops"], entry["crops"])
    return tried
