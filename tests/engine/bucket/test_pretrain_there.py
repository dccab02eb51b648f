"""Pretraining runs whose folder is in a bucket: what stands there, after whatever happens."""

import dataclasses
import re
import threading
from pathlib import Path

import pytest
import torch
from gcs_server import gcs_environment, gcs_server
from s3_server import make_bucket
from safetensors.torch import load_file
from small_run import at_step, poison_samples, signal_at, small_config

from mim3d.dataio.errors import CorpusError, StoreError
from mim3d.dataio.storage import lease
from mim3d.dataio.storage.object_store import RemoteStore
from mim3d.engine.bucket import bucket_shelf
from mim3d.engine.bucket.claim import sole_writer_there
from mim3d.engine.errors import CheckpointError, ConfigError, TrainingError
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.probe.config import ProbeConfig
from mim3d.engine.runs.checkpoint_files import committed, manifest_text, read_facts
from mim3d.engine.runs.checkpoint_reader import verified
from mim3d.engine.runs.encoder_file import load_encoder
from mim3d.engine.training.config import DivergenceConfig
from mim3d.engine.training.metrics import read_rows

ADDRESS = "s3://runs/team/run"
PART = "__0_0.distcp"


class Crash(Exception):
    """What ends a run in a test."""


def waiting_config(corpus, asynchronous=False, **checkpoint):
    """Checkpoints are waited for, so that which of them stand does not hang on time."""
    config = small_config(corpus)
    changed = dataclasses.replace(config.checkpoint, asynchronous=asynchronous, **checkpoint)
    return dataclasses.replace(config, checkpoint=changed)


@pytest.fixture(scope="session")
def folder_run(corpus, tmp_path_factory):
    """The same run in a folder, never stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_pretrain(waiting_config(corpus), out)
    return out


@pytest.fixture
def store(endpoint):
    return RemoteStore(ADDRESS)


def crash(*_):
    raise Crash


@pytest.fixture
def crashed_at(monkeypatch):
    """Begin the run and crash when it is about to do that step."""

    def run(config, step, staging=""):
        with monkeypatch.context() as patch:
            at_step(step, crash, patch.setattr)
            with pytest.raises(Crash):
                run_pretrain(config, ADDRESS, str(staging))

    return run


def copied(store, folder: Path) -> Path:
    """A run as other tools bring it."""
    for key, about in store.listed().items():
        store.fetch(key, folder / key, about.nbytes)
    return folder


def assert_same(run, other):
    mine, theirs = (load_file(one / "encoder.safetensors") for one in (run, other))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    rows = [read_rows(one / "metrics.jsonl") for one in (run, other)]
    assert [(r["step"], r["loss"]) for r in rows[0]] == [(r["step"], r["loss"]) for r in rows[1]]


def steps_there(store):
    return sorted(
        int(key.split("/")[1][5:]) for key in store.listed() if key.endswith("/manifest.json")
    )


def test_a_run_there_is_the_run_of_a_folder(store, corpus, folder_run, tmp_path, capfd):
    config = waiting_config(corpus)
    done = run_pretrain(config, Path(ADDRESS))
    assert done.run == ADDRESS
    assert f"{ADDRESS} is made in {tmp_path / 'cache'}" in capfd.readouterr().err
    copy = copied(store, tmp_path / "copy")
    assert_same(copy, folder_run)
    assert [verified(one).step for one in committed(copy / "checkpoints")] == [8, 6]
    files = [{p.name for p in run.iterdir() if p.name != ".lock"} for run in (copy, folder_run)]
    assert files[0] == files[1]
    other = dataclasses.replace(config, optim=dataclasses.replace(config.optim, beta2=0.5))
    with pytest.raises(CheckpointError, match=f"^{ADDRESS} holds a run of another configuration"):
        run_pretrain(other, ADDRESS)
    again = run_pretrain(config, ADDRESS, str(tmp_path / "elsewhere"))
    assert again.figures == run_pretrain(config, copy).figures == done.figures


def test_a_crashed_run_goes_on_elsewhere(store, corpus, folder_run, tmp_path, crashed_at):
    config = waiting_config(corpus)
    crashed_at(config, 5, tmp_path / "here")
    assert steps_there(store) == [3]
    rows = copied(store, tmp_path / "seen") / "metrics.jsonl"
    assert read_rows(rows)[-1]["step"] == 4  # what it had to say until then
    run_pretrain(config, ADDRESS, str(tmp_path / "there"))
    assert_same(copied(store, tmp_path / "copy"), folder_run)
    assert not (tmp_path / "there" / "checkpoints" / "step-00000003").exists()  # pruned


def test_a_copy_goes_on_either_way(store, corpus, folder_run, tmp_path, crashed_at):
    config, other = waiting_config(corpus), RemoteStore("s3://runs/moved")
    crashed_at(config, 5)
    copy = copied(store, tmp_path / "copy")
    for file in copy.rglob("*"):
        if file.is_file():
            other.send(file.relative_to(copy).as_posix(), file)
    run_pretrain(config, copy)
    run_pretrain(config, "s3://runs/moved")
    assert_same(copy, folder_run)
    assert_same(copied(other, tmp_path / "moved"), folder_run)
    seconds = [read_rows(run / "metrics.jsonl")[2]["seconds"] for run in (copy, tmp_path / "moved")]
    assert seconds[0] == seconds[1]  # of the sitting that crashed: neither began anew


def test_a_stopped_run_goes_on_where_it_was(store, corpus, folder_run, tmp_path, monkeypatch):
    config = waiting_config(corpus, asynchronous=True)
    with monkeypatch.context() as patch:
        signal_at(5, patch.setattr)
        stopped = run_pretrain(config, ADDRESS)
    assert (stopped.interrupted, stopped.step) == (True, 5)
    assert steps_there(store)[-1] == 5
    run_pretrain(config, ADDRESS)
    assert_same(copied(store, tmp_path / "copy"), folder_run)


@pytest.mark.parametrize("harm", ["missing", "flipped", "manifest"])
def test_a_damaged_checkpoint_is_passed_over(
    harm, store, corpus, folder_run, tmp_path, crashed_at, capsys
):
    config = waiting_config(corpus)
    crashed_at(config, 8)
    assert steps_there(store) == [3, 6]
    key = f"checkpoints/step-00000006/{'manifest.json' if harm == 'manifest' else PART}"
    if harm == "missing":
        store.delete(key)
    else:
        data = bytearray(store.get(key))
        data[len(data) // 2] ^= 1
        store.put(key, bytes(data))
    run_pretrain(config, ADDRESS, str(tmp_path / "elsewhere"))
    told = capsys.readouterr().out
    assert "DAMAGED CHECKPOINT step-00000006 PASSED OVER" in told
    assert harm == "manifest" or f"{ADDRESS}/checkpoints/step-00000006/{PART}" in told
    assert "going on from the checkpoint of step 3" in told
    assert_same(copied(store, tmp_path / "copy"), folder_run)


def test_where_all_are_damaged_it_says_so(store, corpus, crashed_at):
    config = waiting_config(corpus)
    crashed_at(config, 5)
    store.delete(f"checkpoints/step-00000003/{PART}")
    with pytest.raises(CheckpointError, match=rf"none of the 1 checkpoints in {ADDRESS}/check"):
        run_pretrain(config, ADDRESS)


@pytest.mark.parametrize("harm", ["lost", "changed", "refused"])
def test_no_commit_stands_without_what_it_names(
    harm, store, corpus, tmp_path, crashed_at, monkeypatch, capsys
):
    plain = RemoteStore.send

    def send(self, key, file):
        if not key.endswith(f"step-00000003/{PART}") or harm == "refused":
            plain(self, key, file)
        elif harm == "changed":
            other = tmp_path / "other"
            other.write_bytes(file.read_bytes()[::-1])
            plain(self, key, other)

    def put(self, key, data, plain=RemoteStore.put):
        if harm == "refused" and key.endswith("step-00000003/manifest.json"):
            raise StoreError("the network is down; run the same command again")
        plain(self, key, data)

    monkeypatch.setattr(RemoteStore, "send", send)
    monkeypatch.setattr(RemoteStore, "put", put)
    monkeypatch.setattr(bucket_shelf, "AGAIN_S", 600.0)  # past the patience: once is all
    crashed_at(waiting_config(corpus), 8)
    told = capsys.readouterr().out
    assert "CHECKPOINT OF STEP 3 WAS NOT SAVED" in told
    why = {"lost": "was sent and is not there", "changed": "is not what was sent"}
    assert why.get(harm, "the network is down") in told
    assert f"see to it that {ADDRESS} can be written and" in told
    assert steps_there(store) == [6]
    assert not any("step-00000003" in key for key in store.listed())  # its remains are removed


def test_a_store_without_hashes_is_read_again(store, corpus, crashed_at, monkeypatch):
    """As where the bucket has a key of its owner's: ETags are no hashes of contents."""
    listed, fetched = RemoteStore.listed, []
    monkeypatch.setattr(
        RemoteStore,
        "listed",
        lambda self, prefix="": {
            key: dataclasses.replace(about, e_tag="opaque")
            for key, about in listed(self, prefix).items()
        },
    )
    plain = RemoteStore.fetch

    def fetch(self, key, *rest):
        fetched.append(key)
        plain(self, key, *rest)

    monkeypatch.setattr(RemoteStore, "fetch", fetch)
    crashed_at(waiting_config(corpus), 5)
    assert f"checkpoints/step-00000003/{PART}" in fetched
    assert steps_there(store) == [3]


def test_a_short_outage_is_waited_out(store, corpus, crashed_at, monkeypatch):
    plain, failed = RemoteStore.send, []

    def send(self, key, file):
        if len(failed) < 2:
            failed.append(key)
            raise StoreError("the network is down")
        plain(self, key, file)

    config = waiting_config(corpus)
    crashed_at(config, 2)  # its first files are there
    monkeypatch.setattr(RemoteStore, "send", send)
    monkeypatch.setattr(bucket_shelf, "AGAIN_S", 0.05)
    monkeypatch.setattr("mim3d.engine.bucket.place.BucketPlace.share", lambda *_: None)
    crashed_at(config, 5)
    assert len(failed) == 2
    assert steps_there(store) == [3]


def test_training_does_not_wait_for_the_bucket(store, corpus, monkeypatch, capsys):
    """Were it waited for, the seventh step would never come, and the upload not end."""
    plain, reached = RemoteStore.send, threading.Event()

    def send(self, key, file):
        assert reached.wait(120)
        plain(self, key, file)

    at_step(1, lambda _: monkeypatch.setattr(RemoteStore, "send", send), monkeypatch.setattr)
    at_step(7, lambda _: reached.set(), monkeypatch.setattr)
    run_pretrain(waiting_config(corpus, asynchronous=True, every=1, keep=9), ADDRESS)
    told = capsys.readouterr().out
    assert "no checkpoint of step 2, nor of later ones until the one before is in s3://runs" in told
    assert "no checkpoint of step 3" not in told
    there = steps_there(store)
    assert there[0] == 1
    assert there[-1] == 8
    assert not {2, 3, 4, 5, 6} & set(there)


def test_old_ones_are_removed_there(store, corpus):
    run_pretrain(waiting_config(corpus, every=1, keep=1, keep_best=False), ADDRESS)
    assert steps_there(store) == [8]
    assert {key.split("/")[1] for key in store.listed("checkpoints")} == {"step-00000008"}


def test_a_diverged_run_goes_back_there(store, corpus, tmp_path, monkeypatch):
    config = waiting_config(corpus)
    config = dataclasses.replace(
        config,
        log=dataclasses.replace(config.log, max_bad_steps=3),
        divergence=DivergenceConfig("rewind"),
    )
    poison_samples({17, 21, 25}, monkeypatch.setattr)
    run_pretrain(config, tmp_path / "here")
    run_pretrain(config, ADDRESS)
    copy = copied(store, tmp_path / "copy")
    assert_same(copy, tmp_path / "here")
    told = [(run / "rewinds.json").read_text() for run in (copy, tmp_path / "here")]
    assert told[0] == told[1]
    assert '"to_step": 3' in told[0]


def test_googles_buckets_too(corpus, folder_run, tmp_path, monkeypatch):
    pytest.importorskip("obstore")
    pytest.importorskip("moto.server")
    with gcs_server() as (server, _):
        make_bucket(server, "google")
        for name, value in gcs_environment(server).items():
            monkeypatch.setenv(name, value)
        config, address = waiting_config(corpus, keep=1), "gs://google/run"
        with monkeypatch.context() as patch:
            at_step(7, crash, patch.setattr)
            with pytest.raises(Crash):
                run_pretrain(config, address, str(tmp_path / "here"))
        store = RemoteStore(address)
        assert steps_there(store) in ([6], [3, 6])  # the best of the two stays as well
        assert not store.exists(".lock")
        run_pretrain(config, address, str(tmp_path / "there"))
        assert_same(copied(store, tmp_path / "copy"), folder_run)


def test_the_probes_best_encoder_is_there(store, corpus, tmp_path):
    config = dataclasses.replace(
        waiting_config(corpus), probe=ProbeConfig(str(corpus), every=2, windows=2, patience=9)
    )
    here = run_pretrain(config, tmp_path / "here")
    there = run_pretrain(config, ADDRESS)
    assert there.figures["probe"]["encoder"] == f"{ADDRESS}/best"
    mine, theirs = (
        load_encoder(place).state_dict() for place in (f"{ADDRESS}/best", tmp_path / "here/best")
    )
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert there.figures["probe"]["best_step"] == here.figures["probe"]["best_step"]


def test_another_writer_is_named(store, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "LEASE_S", 20.0)
    monkeypatch.setattr(lease, "LOOK_S", 0.05)
    config = waiting_config(corpus)
    with sole_writer_there(store, tmp_path / "first", print):
        with pytest.raises(TrainingError, match=rf"{ADDRESS}: process \d+ on .* is writing to it"):
            run_pretrain(config, ADDRESS, str(tmp_path / "first"))
        with pytest.raises(CorpusError, match=rf"{ADDRESS}: process \d+ on .* is writing to it"):
            run_pretrain(config, ADDRESS, str(tmp_path / "second"))
    assert not store.exists("config.json")
    run_pretrain(config, ADDRESS, str(tmp_path / "second"))


def test_a_dead_machines_lease_is_waited_for(store, corpus, crashed_at, monkeypatch, capfd):
    monkeypatch.setattr(lease, "LEASE_S", 9.0)  # not over before it is looked at
    monkeypatch.setattr(lease, "LOOK_S", 0.05)
    store.put(".lock", b"process 7 on elsewhere, seen 0\n")
    crashed_at(waiting_config(corpus), 2)
    told = capfd.readouterr().err
    assert re.search(r"process 7 on elsewhere holds it; waiting \d s for a sign of life", told)


def test_a_run_that_was_taken_over_commits_nothing(store, corpus, monkeypatch, tmp_path):
    monkeypatch.setattr(lease, "LEASE_S", 0.2)
    part = "checkpoints/step-00000006/__0_0.distcp"
    held = []
    plain = lease.Lease.take
    monkeypatch.setattr(lease.Lease, "take", lambda self: (held.append(self), plain(self)))

    def taken_over(_):
        store.put(".lock", b"process 7 on elsewhere, seen 0\n")
        store.put(part, b"theirs")
        assert held[0].lost.wait(60)

    at_step(5, taken_over, monkeypatch.setattr)
    with pytest.raises(TrainingError, match="was taken over by another process while this one"):
        run_pretrain(waiting_config(corpus), ADDRESS)
    assert steps_there(store) == [3]
    assert store.get(part) == b"theirs"
    assert store.get(".lock").startswith(b"process 7")


def test_a_staging_folder_of_something_else_is_left_alone(store, corpus, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds other things than s3://runs/team/run: name an"):
        run_pretrain(waiting_config(corpus), ADDRESS, str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
    assert not store.exists("config.json")


@pytest.mark.parametrize(
    ("out", "staging", "why"),
    [
        ("run", "here", "--staging here says nothing of --out run, a folder of this machine"),
        (ADDRESS, "s3://runs/staging", "--staging s3://runs/staging is an address"),
        (ADDRESS, "/dev/null/x", "--staging /dev/null/x cannot be used for s3://runs/team/run"),
    ],
)
def test_a_staging_folder_that_cannot_be(out, staging, why, store, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=why):
        run_pretrain(waiting_config(corpus), out, staging)
    assert not [file for file in tmp_path.iterdir() if file.name != "cache"]
    assert not store.listed()


def test_a_hostile_manifest_leads_nowhere_else(store, corpus, tmp_path, crashed_at, capsys):
    config = waiting_config(corpus)
    crashed_at(config, 8)
    key = "checkpoints/step-00000006/manifest.json"
    store.fetch(key, tmp_path / "manifest.json", store.listed()[key].nbytes)
    facts, table = read_facts(tmp_path)
    table["../../pwned"] = table[PART]
    store.put(key, manifest_text(facts, table).encode())
    store.put("pwned", store.get(f"checkpoints/step-00000006/{PART}"))
    crashed_at(config, 5, tmp_path / "elsewhere" / "staging")
    told = capsys.readouterr().out
    assert "PASSED OVER" in told
    assert "points to another place, ../../pwned" in told
    assert not (tmp_path / "elsewhere" / "pwned").exists()


def test_what_the_bucket_lost_the_staging_loses(store, corpus, folder_run, tmp_path):
    config = waiting_config(corpus)
    run_pretrain(config, ADDRESS)
    store.delete("checkpoints")
    for key in store.listed():
        store.delete(key)
    run_pretrain(config, ADDRESS)  # anew, not the finished run that the staging remembers
    assert steps_there(store) == [6, 8]
    assert_same(copied(store, tmp_path / "copy"), folder_run)
