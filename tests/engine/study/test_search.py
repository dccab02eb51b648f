"""The search that chose the pretext tasks' settings, and any study's plan, read back."""

from pathlib import Path

import pytest

from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.runs.files import read_json, read_jsonl, write_json, write_jsonl
from mim3d.engine.study.gather import gather
from mim3d.engine.study.run import refuse_earlier_names
from mim3d.engine.study.search import refuse_scored_seeds, search_notes, search_tried


def test_settings_are_counted_by_arm(tmp_path: Path) -> None:
    write_json(tmp_path / "study.json", {"config": {"seeds": [100]}})
    entries = [{"arm": "mae", "crops": 96000}] * 8 + [{"arm": "simclr", "crops": 16000}] * 4
    write_json(tmp_path / "pretraining.json", entries)
    assert search_tried(str(tmp_path)) == {
        "mae": {"settings": 8, "crops": 96000, "seeds": [100]},
        "simclr": {"settings": 4, "crops": 16000, "seeds": [100]},
    }
    assert search_tried("") == {}


def test_a_folder_without_a_search_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mim3d compare pretext"):
        search_tried(str(tmp_path))


def search(folder: Path, **study: object) -> Path:
    """Eight settings of MAE for two seeds each, by their variants, and a given encoder beside."""
    runs = [
        {"arm": "mae", "encoder": "", "variant": f"lr {rate}", "seed": seed}
        for rate in range(8)
        for seed in (100, 101)
    ]
    cells = {f"{i}": run | {"head": "unetr", "labels": 1.0} for i, run in enumerate(runs)}
    given = {"arm": "mine", "variant": "", "seed": None, "given": "runs/mine", "crops": 9}
    write_json(folder / "pretraining.json", [*(run | {"crops": 64} for run in runs), given])
    write_jsonl(folder / "results.jsonl", cells.values())
    about = {"config": {"seeds": [100, 101]}, "corpus": "5 volumes of 5 subjects", "failed": []}
    write_json(folder / "study.json", about | study)
    plan = {"about": {}, "cells": cells, "pretrainings": runs, "given": {}, "notes": []}
    write_json(folder / "plan.json", plan | {"corpus_sha256": "one"})
    return folder


def test_a_setting_of_several_seeds_is_one_and_a_given_encoder_none(tmp_path: Path) -> None:
    found = search_tried(str(search(tmp_path)))
    assert found == {"mae": {"settings": 8, "crops": 64, "seeds": [100, 101]}}


def test_a_search_that_is_half_done_is_refused(tmp_path: Path) -> None:
    folder = search(tmp_path)
    rows = read_jsonl(folder / "results.jsonl")
    write_jsonl(folder / "results.jsonl", rows[:-3])
    with pytest.raises(ConfigError, match="not finished, 3 of 16 fine-tuning runs are to come"):
        search_tried(str(folder))
    search(tmp_path, failed=rows[-3:])  # they ended, if badly
    write_jsonl(folder / "results.jsonl", rows[:-3])
    assert search_tried(str(folder))["mae"]["settings"] == 8
    search(tmp_path)
    write_json(folder / "pretraining.json", read_json(folder / "pretraining.json")[:4])
    with pytest.raises(ConfigError, match="not finished, 6 of 16 pretrainings are to come"):
        search_tried(str(folder))


def test_a_search_of_another_corpus_is_told_and_its_seeds_are_not_scored(tmp_path: Path) -> None:
    folder = str(search(tmp_path))
    assert search_notes(folder, "one") == search_notes("", "one") == []
    (note,) = search_notes(folder, "two")
    assert "chosen on another corpus (5 volumes of 5 subjects)" in note
    refuse_scored_seeds(folder, (0, 1))
    with pytest.raises(ConfigError, match=r"seeds 101 chose the settings .* name other --seeds"):
        refuse_scored_seeds(folder, (1, 101))


@pytest.mark.parametrize("text", ["{}", "[1]", '{"about": {}, "cells": {}}'])
def test_a_plan_that_is_none_is_told_in_one_line_with_what_mends_it(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "plan.json").write_text(text)
    for asked in (gather, refuse_earlier_names):
        with pytest.raises(CheckpointError, match=r"plan\.json is no plan .*: delete it") as told:
            asked(tmp_path)
        assert "\n" not in str(told.value)
    (tmp_path / "plan.json").unlink()
    assert not gather(tmp_path)
    refuse_earlier_names(tmp_path)
