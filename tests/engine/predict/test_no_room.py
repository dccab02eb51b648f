"""Disks without room for results: one line that names the place, and no scan blamed for it."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from small_disk import small_disk
from small_trial import Trial

from mim3d.engine.commands.cli import main
from mim3d.engine.predict.embed import Embedding


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Room for a scan, and not for its probabilities."""
    with small_disk(tmp_path / "disk", "700k") as place:
        yield place


def refused(words: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(word) for word in words]) == 2
    shown = capsys.readouterr()
    assert "cannot be done" not in shown.out
    return shown.err.strip().splitlines()[-1]


def test_probabilities_that_find_no_room(
    trial: Trial, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", trial.run, trial.images[0], disk / "p", "--probabilities"]
    line = refused(words, capsys)
    assert line.startswith(f"mim3d predict: {disk / 'p'}")
    assert "cannot be written (No space left on device); make room there" in line
    assert main(["predict", str(trial.run), str(trial.images[0]), str(disk / "q")]) == 0


def test_features_that_find_no_room(
    trial: Trial, disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    about: Callable[..., dict[str, str]] = Embedding.about

    def filling(self: Embedding, volume: Any) -> dict[str, str]:
        """Called just before features are written."""
        with suppress(OSError), (disk / "filler").open("wb", buffering=0) as stream:
            while stream.write(b"x" * 4096):
                pass
        return about(self, volume)

    monkeypatch.setattr(Embedding, "about", filling)
    line = refused(["embed", trial.run, trial.images[0], disk / "e"], capsys)
    assert line.startswith(f"mim3d embed: {disk / 'e'}")
    assert "cannot be written (No space left on device); make room there" in line
