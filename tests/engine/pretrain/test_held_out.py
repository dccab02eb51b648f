"""Scores on subjects that did not train: who they are, that they repeat, and where they go."""

import dataclasses
import json

import pytest
from small_run import make_corpus, small_config

from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.errors import ConfigError
from mim3d.engine.pretrain import held_out
from mim3d.engine.pretrain.config import config_identity
from mim3d.engine.pretrain.data import DataConfig, choose_subjects, share_of
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.training.metrics import read_rows


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def names(corpus):
    table = Corpus.open(corpus).table
    return {table.subjects[i] for i in range(len(table.subjects))}


def scored(corpus, method="mae", every=4, **data):
    config = small_config(corpus, method)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, **{"held_out": 0.25, "held_out_crops": 6, **data}),
        log=dataclasses.replace(config.log, held_out_every=every),
    )


def test_a_share_is_dealt_and_nobody_is_on_both_sides(corpus):
    chosen = choose_subjects(DataConfig(str(corpus), held_out=0.5), seed=0)
    assert len(chosen.held_out) == 2
    assert set(chosen.held_out) | set(chosen.train or ()) == names(corpus)
    assert not set(chosen.held_out) & set(chosen.train or ())
    assert choose_subjects(DataConfig(str(corpus), held_out=0.5), seed=0) == chosen
    many = [f"s{i}" for i in range(40)]
    assert share_of(many, 0.25, 0) != share_of(many, 0.25, 1)
    assert len(share_of(many, 0.001, 0)) == 1


def test_named_subjects(corpus):
    one, two, *rest = sorted(names(corpus))
    chosen = choose_subjects(DataConfig(str(corpus), held_out_subjects=(one,)), seed=0)
    assert chosen.held_out == (one,)
    assert chosen.train == (two, *rest)
    among = DataConfig(str(corpus), subjects=(two,), held_out_subjects=(one,))
    assert choose_subjects(among, seed=0).train == (two,)
    assert choose_subjects(DataConfig(str(corpus), subjects=(two,)), seed=0).held_out == ()


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({"held_out_subjects": ("nobody",)}, "'nobody'.*are not in"),
        ({"held_out": 0.99}, "leaves 0 to train"),
    ],
)
def test_what_cannot_be_dealt_is_refused(corpus, data, wanted):
    with pytest.raises(ConfigError, match=wanted):
        choose_subjects(DataConfig(str(corpus), **data), seed=0)


def test_contradictions_are_refused():
    with pytest.raises(ConfigError, match=r"held_out 1\.5"):
        DataConfig(held_out=1.5)
    with pytest.raises(ConfigError, match="stand in both lists"):
        DataConfig(subjects=("a",), held_out_subjects=("a",))
    with pytest.raises(ConfigError, match="exclude one another"):
        DataConfig(held_out=0.1, held_out_subjects=("a",))


def test_a_run_without_stays_what_it_was(corpus):
    assert "held_out" not in config_identity(small_config(corpus))["data"]
    assert config_identity(scored(corpus))["data"]["held_out"] == 0.25


@pytest.mark.parametrize("method", ["mae", "simmim", "simclr"])
def test_scores_stand_in_rows_and_verdict(corpus, tmp_path, method):
    result = run_pretrain(scored(corpus, method), tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "held_out_loss" in row] == [4, 8]
    assert rows[-1]["held_out_crops"] == 8  # two batches of 4 for the 6 that were asked for
    verdict = json.loads((tmp_path / "run" / "pretext.json").read_text())["pretext"]["held_out"]
    assert verdict == result.figures["pretext"]["held_out"]
    assert verdict["loss"] == rows[-1]["held_out_loss"] > 0
    floor = "chance" if method == "simclr" else "patch_mean"
    assert verdict["loss_over_floor"] == pytest.approx(verdict["loss"] / verdict[floor])
    if method != "simclr":
        assert (tmp_path / "run" / "pictures" / "held-out-00000008.png").stat().st_size > 1000
        # The trivial predictors meet the same crops and masks every time; the model has moved.
        first, last = (row for row in rows if "held_out_loss" in row)
        for name in ("held_out_patch_mean", "held_out_nearest_patch"):
            assert first[name] == last[name]
        assert first["held_out_loss"] != last["held_out_loss"]


def test_scoring_does_not_touch_training(corpus, tmp_path):
    """Scored often or at the end only, the run learns the same to the bit."""
    run_pretrain(scored(corpus, every=1), tmp_path / "often")
    run_pretrain(scored(corpus, every=0), tmp_path / "once")
    often, once = (read_rows(tmp_path / run / "metrics.jsonl") for run in ("often", "once"))
    assert [row["loss"] for row in often] == [row["loss"] for row in once]
    assert often[-1]["held_out_loss"] == once[-1]["held_out_loss"]
    assert sum("held_out_loss" in row for row in once) == 1


def test_only_held_out_subjects_are_scored_and_only_the_others_train(corpus, tmp_path, monkeypatch):
    opened = []
    plain = held_out.Loader

    def spy(*args, subjects, **named):
        opened.append(set(subjects))
        return plain(*args, subjects=subjects, **named)

    monkeypatch.setattr(held_out, "Loader", spy)
    monkeypatch.setattr("mim3d.engine.pretrain.pretrain.Loader", spy)
    run_pretrain(scored(corpus), tmp_path / "run")
    train, scored_on = opened
    assert len(scored_on) == 1
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["dealt"] == {"held_out": sorted(scored_on)}
    assert train | scored_on == names(corpus)
    assert not train & scored_on
