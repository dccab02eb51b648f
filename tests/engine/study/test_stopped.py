"""A study told to stop: it ends there, what is done is kept, and the same command goes on."""

import shlex
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from small_finetune import make_labelled_corpus
from small_study import small_simclr, small_study

from mim3d.engine.commands.cli import main
from mim3d.engine.errors import StoppedError
from mim3d.engine.runs.files import read_json, read_jsonl
from mim3d.engine.study.config import StudyConfig
from mim3d.engine.study.origin import ORIGIN
from mim3d.engine.study.pool import InProcess, PoolTask
from mim3d.engine.study.run import run_study
from mim3d.engine.training.trainer import Trainer


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    plain = small_study(make_labelled_corpus(tmp_path_factory.mktemp("phantom")))
    return replace(
        plain,
        arms=("scratch", "simclr", "mae"),
        pretrain=replace(plain.pretrain, crops=16, simclr=small_simclr(), per_seed=False),
        finetune=replace(plain.finetune, steps=2, eval_every=2),
    )


def signal_at(patch: pytest.MonkeyPatch, nth: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Tell this process to stop when it is about to do its nth step."""
    plain, done = Trainer.one_step, []

    def one_step(self: Trainer) -> None:
        done.append(1)
        if len(done) == nth:
            signal.raise_signal(number)
        plain(self)

    patch.setattr(Trainer, "one_step", one_step)


def arms(out: Path) -> set[str]:
    return {row["arm"] for row in read_jsonl(out / "results.jsonl")}


def test_a_signal_ends_the_study_and_not_only_its_run(
    config: StudyConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tmp_path /= "a study with spaces"
    with monkeypatch.context() as patch, pytest.raises(StoppedError, match="same command"):
        signal_at(patch, 1)  # of SimCLR's two
        run_study(config, tmp_path)
    assert "pretraining simclr" in (said := capsys.readouterr().out)
    assert "pretraining mae" not in said
    assert not (tmp_path / "cells").exists()

    with monkeypatch.context() as patch, pytest.raises(StoppedError) as told:
        signal_at(patch, 6)  # SimCLR's second, MAE's two, scratch's two; then SimCLR's first
        run_study(config, tmp_path)
    words = shlex.split(str(told.value).partition("`mim3d ")[2].partition("`")[0])
    assert words == ["compare", "--report", "--out", str(tmp_path)]
    assert main(words) == 0
    assert arms(tmp_path) == {"scratch"}
    assert run_study(config, tmp_path).failed == {}
    assert arms(tmp_path) == set(config.arms)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_runs_last_step_or_between_two_ends_the_study_too(
    config: StudyConfig, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretrained(name: str) -> bool:
        return (tmp_path / "pretrain" / name / "pretext.json").exists()

    with monkeypatch.context() as patch, pytest.raises(StoppedError, match="same command"):
        signal_at(patch, 2, number)  # SimCLR's last
        run_study(config, tmp_path)
    assert not pretrained("mae")
    assert not (tmp_path / "cells").exists()

    done = []

    def between(*arguments: object) -> None:
        done.append(arguments)
        signal.raise_signal(number)

    tasks = [PoolTask(name, between, (name,)) for name in "ab"]
    with pytest.raises(StoppedError, match="same command"):
        InProcess().run(tasks, "")
    assert done == [("a",)]
    assert run_study(config, tmp_path).failed == {}
    assert arms(tmp_path) == set(config.arms)


def test_the_command_ends_as_a_run_that_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(name: str, words: list[str]) -> None:
        raise StoppedError("mae was told to stop: run the same command to go on")

    monkeypatch.setattr("mim3d.engine.commands.cli.run_command", stopped)
    assert main(["compare", "demo"]) == 0
    assert "told to stop: run the same command" in capsys.readouterr().out


def test_no_cell_starts_from_a_pretraining_under_way(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was told to stop leaves checkpoints, each with an encoder of its own."""
    monkeypatch.setattr("mim3d.engine.study.pool.StoppedError", ZeroDivisionError)
    monkeypatch.setattr("mim3d.engine.study.pool.signals_set", lambda *_: nullcontext())
    with monkeypatch.context() as patch:
        signal_at(patch, 1)
        result = run_study(config, tmp_path)
    assert (tmp_path / "pretrain" / "simclr" / "checkpoints").is_dir()
    (cell,) = [key for key in result.failed if not key.startswith("pretraining")]
    assert "pretrain/simclr is not finished" in result.failed[cell]
    assert not (tmp_path / "cells" / cell / ORIGIN).exists()
    assert arms(tmp_path) == {"scratch", "mae"}
    assert [row["arm"] for row in read_json(tmp_path / "study.json")["failed"]] == ["simclr"]
    assert run_study(config, tmp_path).failed == {}
    assert arms(tmp_path) == set(config.arms)
