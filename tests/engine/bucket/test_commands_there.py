"""Commands on runs in a bucket: what they give, and what they say where it cannot be."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from s3_server import ask
from safetensors.torch import load_file
from small_finetune import make_labelled_corpus, small_finetune
from small_run import at_step, small_config

from mim3d.dataio.storage.object_store import RemoteStore
from mim3d.engine.commands.cli import main
from mim3d.engine.finetune.finetune import run_finetune
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.runs.encoder_file import load_encoder

ADDRESS, TUNED = "s3://runs/team/pretrained", "s3://runs/team/tuned"


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    return make_labelled_corpus(tmp_path_factory.mktemp("labelled"))


@pytest.fixture
def pretrained(endpoint, labelled):
    """The configuration of a finished run at `ADDRESS`."""
    config = small_config(labelled, steps=2)
    run_pretrain(config, ADDRESS)
    return config


class Crash(Exception):
    """What ends a run in a test."""


def crash(_):
    raise Crash


def test_weights_there_are_started_from_and_exported(pretrained, tmp_path, capfd):
    store, target = RemoteStore(ADDRESS), tmp_path / "exported.safetensors"
    assert main(["export", ADDRESS, "safetensors", str(target)]) == 0
    nbytes = store.listed()["encoder.safetensors"].nbytes
    store.fetch("encoder.safetensors", tmp_path / "there", nbytes)
    there = load_file(tmp_path / "there")
    assert all(torch.equal(tensor, there[name]) for name, tensor in load_file(target).items())
    told = capfd.readouterr().err
    assert f"{ADDRESS}: 6 files, " in told
    assert str(tmp_path / "cache" / "mim3d" / "fetched") in told
    for source in (ADDRESS, f"{ADDRESS}/encoder.safetensors"):
        encoder = load_encoder(source)
        assert all(torch.equal(t, there[name]) for name, t in encoder.state_dict().items())
    assert main(["embed", ADDRESS, pretrained.data.corpus, str(tmp_path / "features")]) == 0
    began = dataclasses.replace(pretrained, init=ADDRESS)
    run_pretrain(began, tmp_path / "begun")
    start = json.loads((tmp_path / "begun" / "config.json").read_text())["start"]
    assert start["place"].endswith("checkpoints/step-00000002")
    # Trained again from elsewhere: nothing of before is taken for it.
    for key in store.listed():
        store.delete(key)
    run_pretrain(dataclasses.replace(pretrained, seed=1), ADDRESS)
    again = load_encoder(ADDRESS).state_dict()
    assert not all(torch.equal(tensor, there[name]) for name, tensor in again.items())


def test_fine_tuning_there(pretrained, labelled, tmp_path, monkeypatch):
    config = small_finetune(labelled, vit=pretrained.vit, init=ADDRESS)
    with monkeypatch.context() as patch:
        at_step(4, crash, patch.setattr)
        with pytest.raises(Crash):
            run_finetune(config, TUNED, staging=str(tmp_path / "one"))
    store = RemoteStore(TUNED)
    assert "checkpoints/step-00000002/manifest.json" in store.listed()
    there = run_finetune(config, TUNED, staging=str(tmp_path / "two"))
    here = run_finetune(config, tmp_path / "here")
    assert [row["score"] for row in there.rows] == [row["score"] for row in here.rows]
    assert there.cases == here.cases
    listed = store.listed()
    assert {"result.json", "model.pt", "trained.json", "metrics.jsonl"} <= listed.keys()
    assert not any(key.startswith("checkpoints/") for key in listed)
    assert run_finetune(config, TUNED, staging=str(tmp_path / "three")).rows == there.rows
    words = [str(labelled), str(tmp_path / "maps")]
    assert main(["predict", TUNED, *words]) in (0, 3)
    assert len(list((tmp_path / "maps").glob("*.nii.gz"))) == 8


def one_line(capsys) -> str:
    """What was told, but for a store's silence on a busy machine."""
    told = capsys.readouterr().err.splitlines()
    silence = re.compile(r": (no answer for \d|answers again$)")
    (line,) = [one for one in told if one.strip() and not silence.search(one)]
    return line


def words_of(labelled, out):
    return ["pretrain", "demo-mae", "--data.corpus", str(labelled), "--out", out]


def test_a_bucket_that_is_none(endpoint, labelled, capsys):
    assert main(words_of(labelled, "s3://nowhere/run")) == 2
    assert "s3://nowhere/run: there is no such bucket; create it, or" in one_line(capsys)
    assert main(["export", "s3://nowhere/run", "safetensors", "x.safetensors"]) == 2
    assert "there is no such bucket" in one_line(capsys)


def test_credentials_that_are_none(endpoint, labelled, capsys):
    """moto asks for signatures of known keys from now on."""
    ask(f"{endpoint}/moto-api/reset-auth", "POST", b"0")
    try:
        assert main(words_of(labelled, ADDRESS)) == 2
        told = one_line(capsys)
        assert told.startswith(f"mim3d pretrain: {ADDRESS}: cannot be written (")
        assert "check the credentials in the environment (AWS_ACCESS_KEY_ID" in told
        assert main(["embed", ADDRESS, str(labelled), "features"]) == 2
        assert "check the credentials in the environment" in one_line(capsys)
    finally:
        ask(f"{endpoint}/moto-api/reset-auth", "POST", b"inf")


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("s3://runs", "names no folder in a bucket: s3://BUCKET/RUN does"),
        ("s3://runs/", "names no folder in a bucket"),
        ("S3://runs/../b", "names no folder in a bucket"),
        ("https://runs.example/a", "is an address of a kind that runs do not lie at"),
    ],
)
def test_addresses_that_no_run_can_have(
    out, why, endpoint, labelled, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(words_of(labelled, out)) == 2
    assert why in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_a_corpus_is_no_place_for_a_run(endpoint, labelled, capsys):
    RemoteStore(ADDRESS).put("zarr.json", b"{}")
    assert main(words_of(labelled, ADDRESS)) == 2
    assert f"{ADDRESS} is a Zarr store: choose an --out" in capsys.readouterr().err
    assert not RemoteStore(ADDRESS).exists(".lock")


def test_what_is_no_run_cannot_be_read(endpoint, labelled, capsys):
    assert main(["predict", "s3://runs/none", str(labelled), "maps"]) == 2
    assert "s3://runs/none is not there: give the address of a run, or" in one_line(capsys)
    RemoteStore("s3://runs/odd").put("notes.txt", b"")
    assert main(["export", "s3://runs/odd", "safetensors", "x.safetensors"]) == 2
    assert "encoder.safetensors is missing" in capsys.readouterr().err


def test_the_words_at_the_end_name_the_address(endpoint, labelled, capsys, tmp_path):
    words = [*words_of(labelled, ADDRESS), "--steps", "1", "--json", str(tmp_path / "figures")]
    small = ["--vit.width", "24", "--vit.depth", "1", "--vit.heads", "2", "--global-batch", "2"]
    assert main([*words, *small, "--vit.crop-size", "16", "16", "16"]) == 0
    told = capsys.readouterr().out
    assert f"encoder: {ADDRESS}/encoder.safetensors" in told
    assert f"mim3d embed {ADDRESS} {labelled} features" in told
    assert json.loads((tmp_path / "figures").read_text())["run"] == ADDRESS
    assert not Path("s3:").exists()
