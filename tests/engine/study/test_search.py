"""The search that chose the pretext tasks' settings, read back."""

from pathlib import Path

import pytest

from mim3d.engine.errors import ConfigError
from mim3d.engine.runs.files import write_json
from mim3d.engine.study.search import search_tried


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
