"""Runs that grow: more steps, more volumes; what may, what is refused, and every way out."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_run import make_corpus, signal_at, small_config

from mim3d.engine.errors import CheckpointError, TrainingError
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.runs.encoder_file import read_card
from mim3d.engine.training.metrics import read_rows


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def scheduled(corpus, kind, steps, **changes):
    config = small_config(corpus, **changes)
    schedule = dataclasses.replace(config.schedule, kind=kind, warmup_steps=1, decay_share=0.5)
    return dataclasses.replace(config, schedule=schedule, steps=steps)


def history(out):
    return json.loads((out / "config.json").read_text())["history"]


def assert_same_run(out, other):
    pairs = zip(read_rows(out / "metrics.jsonl"), read_rows(other / "metrics.jsonl"), strict=True)
    for mine, theirs in pairs:
        assert [mine[k] for k in ("step", "lr", "loss")] == [
            theirs[k] for k in ("step", "lr", "loss")
        ]
    one, two = (load_file(run / "encoder.safetensors") for run in (out, other))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_a_finished_constant_run_grows_into_the_longer_one(corpus, tmp_path):
    run_pretrain(scheduled(corpus, "constant", 3), tmp_path / "grown")
    result = run_pretrain(scheduled(corpus, "constant", 6), tmp_path / "grown")
    assert result.step == 6
    run_pretrain(scheduled(corpus, "constant", 6), tmp_path / "whole")
    assert_same_run(tmp_path / "grown", tmp_path / "whole")
    record = {"at_step": 3, "changed": "steps", "before": 3, "now": 6}
    assert history(tmp_path / "grown") == [record]
    assert read_card(tmp_path / "grown")[1]["history"] == [record]
    assert run_pretrain(scheduled(corpus, "constant", 6), tmp_path / "grown").step == 6
    with pytest.raises(CheckpointError, match=r"at step 6, past 4: go on with --steps 6"):
        run_pretrain(scheduled(corpus, "constant", 4), tmp_path / "grown")


def test_wsd_grows_before_its_decay_only_and_then_starts_anew(corpus, tmp_path, monkeypatch):
    out = tmp_path / "grown"
    with monkeypatch.context() as patch:
        signal_at(2, patch.setattr)
        run_pretrain(scheduled(corpus, "wsd", 4), out)
    run_pretrain(scheduled(corpus, "wsd", 6), out)
    run_pretrain(scheduled(corpus, "wsd", 6), tmp_path / "whole")
    assert_same_run(out, tmp_path / "whole")
    with pytest.raises(CheckpointError, match=r"has fallen since step 3.*--init .* --out"):
        run_pretrain(scheduled(corpus, "wsd", 9), out)
    assert run_pretrain(scheduled(corpus, "wsd", 6), out).step == 6
    anew = scheduled(corpus, "wsd", 2, init=str(out))
    assert run_pretrain(anew, tmp_path / "anew").step == 2


def test_cosine_does_not_grow(corpus, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(3, patch.setattr)
        run_pretrain(scheduled(corpus, "cosine", 4), out)
    with pytest.raises(CheckpointError, match=r"cosine rate has fallen since.*--init") as refused:
        run_pretrain(scheduled(corpus, "cosine", 8), out)
    assert "\n" not in str(refused.value)
    assert f"--init {out} with another --out" in str(refused.value)
    anew = scheduled(corpus, "cosine", 2, init=str(out))
    assert run_pretrain(anew, tmp_path / "anew").step == 2
    assert run_pretrain(scheduled(corpus, "cosine", 4), out).step == 4


def test_a_grown_corpus_goes_on_when_accepted(corpus, tmp_path, monkeypatch):
    """What was held out stays so, though the share of more subjects would deal others."""
    out, more = tmp_path / "run", make_corpus(tmp_path, 8)
    held = dataclasses.replace(small_config(corpus).data, held_out=0.25, held_out_crops=1)
    config = scheduled(corpus, "constant", 4, data=held)
    with monkeypatch.context() as patch:
        signal_at(2, patch.setattr)
        run_pretrain(config, out)
    dealt = json.loads((out / "config.json").read_text())["dealt"]
    grown = dataclasses.replace(config, data=dataclasses.replace(held, corpus=str(more)))
    with pytest.raises(TrainingError, match=r"has changed.*--accept-corpus.*--init .* --out"):
        run_pretrain(grown, out)
    accepted = dataclasses.replace(grown, accept_corpus=True)
    assert run_pretrain(accepted, out).step == 4
    (record,) = history(out)
    assert (record["at_step"], record["changed"]) == (2, "corpus")
    assert record["before"] != record["now"]
    assert json.loads((out / "config.json").read_text())["dealt"] == dealt
    assert read_card(out)[1]["history"] == [record]
    anew = dataclasses.replace(grown, init=str(out), steps=2)
    assert run_pretrain(anew, tmp_path / "anew").step == 2


def test_a_run_whose_checkpoints_are_gone_gives_its_encoder(corpus, tmp_path):
    out = tmp_path / "run"
    run_pretrain(scheduled(corpus, "constant", 2), out)
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(CheckpointError, match=r"without a checkpoint to lengthen.*--init .* --out"):
        run_pretrain(scheduled(corpus, "constant", 4), out)
    anew = scheduled(corpus, "constant", 2, init=str(out))
    assert run_pretrain(anew, tmp_path / "anew").step == 2


def test_settings_change_on_the_way_and_the_history_tells(corpus, tmp_path, monkeypatch, capsys):
    """Four sittings; what defines the model is refused, and a finished run takes nothing."""
    config = scheduled(corpus, "wsd", 8)
    out = tmp_path / "run"

    def sitting(config, until):
        with monkeypatch.context() as patch:
            signal_at(until, patch.setattr)
            return run_pretrain(config, out)

    sitting(config, 2)
    lower = dataclasses.replace(
        config,
        schedule=dataclasses.replace(config.schedule, lr=1e-5, kind="cosine"),
        checkpoint=dataclasses.replace(config.checkpoint, every=1),
        log=dataclasses.replace(config.log, every=2),
    )
    for wrong in (
        dataclasses.replace(lower, vit=dataclasses.replace(lower.vit, depth=3)),
        dataclasses.replace(lower, global_batch=8),
        dataclasses.replace(lower, optim=dataclasses.replace(lower.optim, beta2=0.9)),
    ):
        with pytest.raises(CheckpointError, match=r"of another configuration: (?!.*schedule)"):
            run_pretrain(wrong, out)
    sitting(lower, 4)
    assert "from step 2 on schedule.lr is 1e-05, it was 0.00" in capsys.readouterr().out
    sitting(config, 6)
    gentle = dataclasses.replace(
        lower, optim=dataclasses.replace(config.optim, clip_norm=0.1, weight_decay=0.0)
    )
    assert run_pretrain(gentle, out).step == 8
    changed = [(one["at_step"], one["changed"]) for one in history(out)]
    first = ["checkpoint.every", "log.every", "schedule.kind", "schedule.lr"]
    assert changed[:4] == [(2, name) for name in first]
    assert changed[4:8] == [(4, name) for name in first]
    assert (6, "optim.clip_norm") in changed[8:]
    assert read_card(out)[1]["history"] == history(out)
    rates = {row["step"]: row["lr"] for row in read_rows(out / "metrics.jsonl")}
    assert rates[2] == rates[5] == config.schedule.lr
    assert rates[4] < 1e-5
    with pytest.raises(CheckpointError, match=r"schedule\.lr was 1e-05 and is now 0\.0"):
        run_pretrain(config, out)
