"""A study's folder and a command of other settings: nothing is mixed, and each remedy works."""

import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from small_finetune import make_labelled_corpus
from small_study import small_study

from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.errors import CheckpointError, ConfigError, StoppedError, TrainingError
from mim3d.engine.finetune.run_folder import CONFIG
from mim3d.engine.runs.encoder_file import WEIGHTS
from mim3d.engine.runs.files import read_json, read_jsonl, write_json
from mim3d.engine.study.config import StudyConfig
from mim3d.engine.study.pretext import under_way
from mim3d.engine.study.run import pretrain_tasks, run_study, splits_of
from mim3d.engine.training.trainer import Trainer

MAE = "pretraining mae"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    plain = small_study(make_labelled_corpus(tmp_path_factory.mktemp("phantom")))
    return replace(
        plain,
        arms=("mae",),
        pretrain=replace(plain.pretrain, crops=16, per_seed=False),
        finetune=replace(plain.finetune, steps=1),
    )


def with_rate(config: StudyConfig, lr: float) -> StudyConfig:
    return replace(
        config, pretrain=replace(config.pretrain, mae=replace(config.pretrain.mae, lr=lr))
    )


def stop_at(patch: pytest.MonkeyPatch, nth: int) -> None:
    plain, done = Trainer.one_step, []

    def one_step(self: Trainer) -> None:
        done.append(1)
        if len(done) == nth:
            signal.raise_signal(signal.SIGTERM)
        plain(self)

    patch.setattr(Trainer, "one_step", one_step)


def test_a_refused_command_leaves_plan_and_results_as_they_were(
    config: StudyConfig, tmp_path: Path
) -> None:
    """MAE alone: no cell of scratch is there to refuse before the pretrainings."""
    run_study(config, tmp_path)
    kept = {file: file.read_bytes() for file in tmp_path.glob("*.json*")}
    longer = replace(config, finetune=replace(config.finetune, steps=2))
    with pytest.raises(ConfigError, match="holds a run with steps 1, not 2"):
        run_study(longer, tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.glob("*.json*")} == kept
    (cell,) = (tmp_path / "cells").iterdir()
    shutil.rmtree(cell)  # as told
    assert run_study(longer, tmp_path).failed == {}
    assert max(row["step"] for row in read_jsonl(tmp_path / "results.jsonl")) == 2


def test_a_pretraining_under_way_is_of_one_rate(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_at(patch, 1)
        run_study(config, tmp_path)
    (doubt,) = under_way(tmp_path / "pretrain" / "mae")  # as an encoder given to another study
    assert "is not finished: its encoder of step 1 is taken" in doubt
    other = with_rate(replace(config, arms=("scratch", "mae")), 1e-3)
    failed = run_study(other, tmp_path).failed
    assert "schedule.lr 0.002, not 0.001: delete that folder" in failed[MAE]
    shutil.rmtree(tmp_path / "pretrain" / "mae")
    assert run_study(other, tmp_path).failed == {}
    assert {row["arm"] for row in read_jsonl(tmp_path / "results.jsonl")} == {"scratch", "mae"}
    assert under_way(tmp_path / "pretrain" / "mae") == []


def test_a_cell_under_way_is_of_one_setting(config: StudyConfig, tmp_path: Path) -> None:
    """A single run may go on with another decay; a cell that is compared may not."""
    config = replace(config, arms=("scratch",))
    run_study(config, tmp_path)
    (cell,) = (tmp_path / "cells").iterdir()
    (cell / "result.json").unlink()
    write_json(cell / CONFIG, read_json(cell / CONFIG) | {"weight_decay": 0.5})
    with pytest.raises(TrainingError, match=r"weight_decay 0\.5, not 0\.01: choose .* or delete"):
        run_study(config, tmp_path)
    shutil.rmtree(cell)
    assert run_study(config, tmp_path).failed == {}


@pytest.mark.filterwarnings("ignore::mim3d.dataio.errors.CorpusWarning")
def test_a_pretraining_on_another_corpus_is_told_with_what_a_study_can_do(
    config: StudyConfig, tmp_path: Path
) -> None:
    run_study(config, tmp_path / "study")
    shutil.rmtree(tmp_path / "study" / "cells")
    (tmp_path / "study" / "results.jsonl").unlink()
    other = make_labelled_corpus(tmp_path / "other")
    manifest = next(other.rglob("manifest.jsonl"))
    manifest.write_text(manifest.read_text() + "\n")
    config = replace(config, arms=("scratch", "mae"), data=replace(config.data, corpus=str(other)))
    failed = run_study(config, tmp_path / "study").failed
    assert "a corpus of sha256" in failed[MAE]
    assert "accept-corpus" not in failed[MAE]
    shutil.rmtree(tmp_path / "study" / "pretrain" / "mae")
    assert run_study(config, tmp_path / "study").failed == {}


@pytest.mark.parametrize("gone", [False, True])
def test_a_damaged_encoder_is_told_and_pretrained_anew(
    config: StudyConfig, tmp_path: Path, gone: bool
) -> None:
    run_study(config, tmp_path)
    weights = tmp_path / "pretrain" / "mae" / WEIGHTS
    if gone:
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    shutil.rmtree(tmp_path / "cells")
    (tmp_path / "results.jsonl").unlink()
    config = replace(config, arms=("scratch", "mae"))
    failed = run_study(config, tmp_path).failed
    assert len(failed) == 2
    for why in failed.values():
        assert f"delete {weights.parent} and run the same command" in why
    shutil.rmtree(weights.parent)
    assert run_study(config, tmp_path).failed == {}


def test_pretrainings_are_computed_where_the_study_is(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    splits = splits_of(config, Corpus.open(config.data.corpus))
    (task,) = pretrain_tasks(replace(config, device="cuda"), splits, tmp_path)
    with pytest.raises(ConfigError, match="device cuda, but no CUDA device is visible"):
        task.call(*task.arguments)


def test_results_whose_settings_are_lost_are_not_taken_for_those_asked_for(
    config: StudyConfig, tmp_path: Path
) -> None:
    run_study(config, tmp_path)
    (cell,) = (tmp_path / "cells").iterdir()
    made = tmp_path / "pretrain" / "mae"
    for text in ("{", ""):
        for folder in (cell, made):
            kept = (folder / CONFIG).read_bytes()
            (folder / CONFIG).write_text(text)
            if not text:
                (folder / CONFIG).unlink()  # as other files are made anew
            with pytest.raises(CheckpointError, match="delete") as told:
                run_study(config, tmp_path)
            assert str(folder) in str(told.value)
            (folder / CONFIG).write_bytes(kept)
    (made / CONFIG).unlink()
    shutil.rmtree(made)
    assert run_study(config, tmp_path).failed == {}


def test_a_finished_cell_stands_without_what_it_began_with(
    config: StudyConfig, tmp_path: Path
) -> None:
    """Whose pretraining was deleted, to save space or as a remedy told, and whose given weights."""
    run_study(config, tmp_path / "first")
    given = tmp_path / "first" / "pretrain" / "mae"
    other = replace(config, arms=("mine=" + str(given),))
    run_study(other, tmp_path / "second")
    kept = (tmp_path / "second" / "results.jsonl").read_bytes()
    shutil.rmtree(given)
    assert run_study(other, tmp_path / "second").failed == {}
    assert (tmp_path / "second" / "results.jsonl").read_bytes() == kept
    longer = replace(other, finetune=replace(other.finetune, steps=2))
    with pytest.raises(ConfigError, match="steps 1, not 2"):
        run_study(longer, tmp_path / "second")
    assert run_study(config, tmp_path / "first").failed == {}  # it pretrains anew


def test_the_folder_of_a_single_run_is_no_studys(config: StudyConfig, tmp_path: Path) -> None:
    write_json(tmp_path / "run" / CONFIG, {})
    with pytest.raises(ConfigError, match=r"holds a single run .*: choose another --out"):
        run_study(config, tmp_path / "run")
