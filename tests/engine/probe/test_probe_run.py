"""A run that probes: it learns what it would, its scores are in its rows, it resumes exactly."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from small_run import small_config

from mim3d.engine.models.objective import Objective
from mim3d.engine.pretrain.config import config_identity
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.probe.probe import Probe
from mim3d.engine.runs.checkpoint_files import committed, read_facts
from mim3d.engine.runs.encoder_file import read_card
from mim3d.engine.runs.export import export_encoder
from mim3d.engine.training.metrics import read_rows
from mim3d.engine.training.trainer import Trainer

NAMES = ("probe_linear", "probe_knn", "probe_linear_accuracy", "probe_knn_accuracy")


def scores(out):
    """Steps and scores of the rows that have some."""
    rows = [row for row in read_rows(out / "metrics.jsonl") if "probe_linear" in row]
    return [(row["step"], *(row[name] for name in NAMES)) for row in rows]


def scripted(monkeypatch, course):
    """Have probes come to these scores, the first of them before the first step."""
    left = list(course)

    def scores(self, frozen):
        value = left.pop(0)
        return dict.fromkeys(("linear", "linear_accuracy", "knn", "knn_accuracy", "chance"), value)

    monkeypatch.setattr(Probe, "scores", scores)


@pytest.mark.parametrize("method", ["mae", "simclr", "resenc"])
def test_probing_does_not_touch_training(probed, labelled, tmp_path, method):
    run_pretrain(probed(method), tmp_path / "probed")
    run_pretrain(small_config(labelled, method), tmp_path / "plain")
    runs = [tmp_path / "probed", tmp_path / "plain"]
    with_it, without = (read_rows(run / "metrics.jsonl") for run in runs)
    assert [row["loss"] for row in with_it] == [row["loss"] for row in without]
    mine, theirs = (load_file(run / "encoder.safetensors") for run in runs)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert [step for step, *_ in scores(tmp_path / "probed")] == [2, 4, 6, 8]


def test_modes_and_random_numbers_are_left_alone(probed, tmp_path, monkeypatch):
    """A part that was put into evaluation mode stays in it; draws do not shift."""
    seen = []
    plain = Objective.encoder_tokens

    def drawing(self, crops):
        assert not any(part.training for part in self.modules())
        torch.rand(3)
        return plain(self, crops)

    def figures(self, trainer):
        self.module.encoder.norm.eval()
        before = torch.get_rng_state()
        found = whole(self, trainer)
        assert torch.equal(torch.get_rng_state(), before)
        assert not self.module.encoder.norm.training
        assert self.module.encoder.blocks.training
        seen.append(found)
        return found

    whole = Probe.figures
    monkeypatch.setattr(Objective, "encoder_tokens", drawing)
    monkeypatch.setattr(Probe, "figures", figures)
    run_pretrain(probed(), tmp_path / "run")
    assert len(seen) == 5


def test_classes_of_volumes(probed, classes, tmp_path):
    result = run_pretrain(probed(targets=str(classes), test=0.5), tmp_path / "run")
    found = scores(tmp_path / "run")
    assert len(found) == 4
    assert {round(4 * value) / 4 for _, *values in found for value in values} >= {
        value for _, *values in found for value in values
    }  # four volumes are scored
    assert result.figures["probe_chance"] == 0.5
    assert result.figures["probe_linear_start"] is not None
    assert 0 < result.figures["probe_share"] < 1


def test_the_same_seed_asks_the_same_and_another_something_else(probed, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        run_pretrain(probed(seed=seed), tmp_path / name)
    assert scores(tmp_path / "one") == scores(tmp_path / "two") != scores(tmp_path / "other")


def test_a_probe_is_no_part_of_what_a_run_is(probed, labelled):
    assert config_identity(probed()) == config_identity(small_config(labelled))


def test_rows_reach_tensorboard(probed, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = probed()
    config = dataclasses.replace(config, log=dataclasses.replace(config.log, tensorboard=True))
    run_pretrain(config, tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    points = {event.step: event.value for event in events.Scalars("probe_knn")}
    assert points == pytest.approx({step: knn for step, _, knn, *_ in scores(tmp_path / "run")})


def test_the_best_checkpoint_stays_and_its_encoder_leaves(probed, tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, [0.1, 0.2, 0.9, 0.5, 0.6])
    out = tmp_path / "run"
    config = probed()
    config = dataclasses.replace(
        config, checkpoint=dataclasses.replace(config.checkpoint, every=3, keep=1)
    )
    result = run_pretrain(config, out)
    assert [folder.name for folder in committed(out / "checkpoints")] == [
        "step-00000008",
        "step-00000004",
    ]
    facts, _ = read_facts(out / "checkpoints" / "step-00000004")
    assert facts.score == pytest.approx(0.1)
    assert result.figures["probe"]["best_step"] == 4
    assert read_card(out / "best")[1]["step"] == 4
    monkeypatch.undo()
    half = dataclasses.replace(
        config,
        steps=4,
        schedule=dataclasses.replace(config.schedule, kind="constant"),
        probe=dataclasses.replace(config.probe, corpus=""),
    )
    whole = dataclasses.replace(config, schedule=half.schedule)
    scripted(monkeypatch, [0.1, 0.2, 0.9, 0.5, 0.6])
    run_pretrain(whole, tmp_path / "constant")
    run_pretrain(half, tmp_path / "half")
    best = load_file(tmp_path / "constant" / "best" / "encoder.safetensors")
    wanted = load_file(tmp_path / "half" / "encoder.safetensors")
    assert best.keys() == wanted.keys()
    assert all(torch.equal(best[name], wanted[name]) for name in wanted)
    done = export_encoder(out / "best", "safetensors", tmp_path / "best.safetensors", "zyx")
    assert done.tensors == len(wanted)


def stopping(config, patience):
    return dataclasses.replace(
        config, probe=dataclasses.replace(config.probe, patience=patience, every=1)
    )


def test_a_run_stops_early_and_goes_on_when_told_to(probed, tmp_path, monkeypatch, capsys):
    course = [0.1, 0.5, 0.6, 0.6, 0.3, 0.2, 0.9, 0.1, 0.1]
    scripted(monkeypatch, course)
    out, config = tmp_path / "run", stopping(probed(), 2)
    result = run_pretrain(config, out)
    assert (result.step, result.interrupted) == (4, False)
    assert result.figures["stopped_early"] == 2
    assert "--probe.patience 0 goes on" in capsys.readouterr().out.replace("\n", " ")
    assert read_card(out)[1]["step"] == 4
    assert read_card(out / "best")[1]["step"] == 2
    assert run_pretrain(config, out).step == 4  # answered from disk
    scripted(monkeypatch, course[5:])
    result = run_pretrain(stopping(config, 0), out)
    assert result.step == 8
    assert "stopped_early" not in result.figures
    assert read_card(out / "best")[1]["step"] == 6
    history = json.loads((out / "config.json").read_text())["history"]
    assert [(one["changed"], one["before"], one["now"]) for one in history] == [
        ("probe.patience", 2, 0)
    ]


def test_an_interrupted_run_goes_on_exactly(probed, tmp_path, monkeypatch):
    """Patience, best and rows are those of a run that was never interrupted."""
    config = stopping(probed(), 3)
    whole = run_pretrain(config, tmp_path / "whole")
    plain = Trainer.one_step

    class Fault(Exception):
        pass

    def failing(self):
        if self.step == 4:
            raise Fault
        plain(self)

    monkeypatch.setattr(Trainer, "one_step", failing)
    with pytest.raises(Fault):
        run_pretrain(config, tmp_path / "run")
    monkeypatch.setattr(Trainer, "one_step", plain)
    result = run_pretrain(config, tmp_path / "run")
    assert scores(tmp_path / "run") == scores(tmp_path / "whole")
    assert result.step == whole.step
    assert result.figures["probe"] | {"encoder": ""} == whole.figures["probe"] | {"encoder": ""}
    first, second = (read_rows(tmp_path / run / "metrics.jsonl")[-1] for run in ("run", "whole"))
    assert first["probe_linear_start"] == second["probe_linear_start"]


def test_another_probe_begins_its_best_anew(probed, tmp_path, monkeypatch, capsys):
    config = probed(changes={"steps": 6})
    config = dataclasses.replace(
        config, schedule=dataclasses.replace(config.schedule, kind="constant")
    )
    scripted(monkeypatch, [0.1, 0.9, 0.2, 0.2])
    run_pretrain(config, tmp_path / "run")
    scripted(monkeypatch, [0.3])
    longer = dataclasses.replace(config, steps=8, probe=dataclasses.replace(config.probe, seed=1))
    result = run_pretrain(longer, tmp_path / "run")
    assert "asks something else than before" in capsys.readouterr().out
    assert result.figures["probe"]["best_step"] == 8
    assert result.figures["probe"]["best"] == 0.3


def test_without_keep_best_the_lack_is_told(probed, tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, [0.1, 0.9, 0.2, 0.2, 0.2])
    config = probed()
    config = dataclasses.replace(
        config, checkpoint=dataclasses.replace(config.checkpoint, keep=1, keep_best=False)
    )
    result = run_pretrain(config, tmp_path / "run")
    assert result.figures["probe"]["encoder"] == ""
    assert "keep it by --checkpoint.keep-best" in " ".join(capsys.readouterr().out.split())
