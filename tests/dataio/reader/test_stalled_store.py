"""A store that keeps silent: told, bounded as the user says, and left at one Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stalling_server import stalling_server

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio import waiting
from mim3d.dataio.errors import Mim3dError, StoreError
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.remote import background
from mim3d.dataio.storage.remote import read_remote_bytes
from mim3d.dataio.waiting import TIMEOUT, GivenUpError, StalledError, answered, patience

pytest.importorskip("obstore")
CONFIG = LoaderConfig(crop_size=(24, 24, 24), micro_batch=3, threads=2)
FOR_EVER = "3600"


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("stalls") / "c.zarr"
    return corpus_of(root, [anatomy_like((40, 40, 40), i) for i in range(3)])


@pytest.fixture
def gate(local):
    with stalling_server(local.parent) as gate:
        yield gate


def test_silence_is_told_bounded_and_waited_out_with_the_remedy(gate, local, monkeypatch, capsys):
    monkeypatch.setattr(waiting, "TELL_S", 0.2)
    monkeypatch.setenv(TIMEOUT, "3")
    address = f"{gate.address}/c.zarr/zarr.json"
    gate.close()
    with pytest.raises(StoreError, match=r"zarr\.json: .*not answered for 3 s.*") as caught:
        read_remote_bytes(address, 1 << 20)
    lines = capsys.readouterr().err.splitlines()
    (told,) = [line for line in lines if gate.address in line]
    assert told.startswith(f"mim3d: {gate.address}: no answer for ")
    assert "(c.zarr/zarr.json); waiting for at most 3 s (MIM3D_STORE_TIMEOUT_S)" in told
    name, value = str(caught.value).rsplit(" with ", 1)[1].split("=")
    monkeypatch.setenv(name, value)
    threading.Timer(3.2, gate.open.set).start()  # beyond what it waited before
    data = read_remote_bytes(address, 1 << 20)
    assert data == (local / "zarr.json").read_bytes()
    assert f"mim3d: {gate.address}: answers again\n" in capsys.readouterr().err


def test_many_threads_tell_it_once(gate, monkeypatch, capsys):
    monkeypatch.setattr(waiting, "TELL_S", 0.2)
    monkeypatch.setenv(TIMEOUT, "4")
    with Loader(f"{gate.address}/c.zarr", CONFIG) as loader:
        gate.close()
        with pytest.raises(StalledError, match=r"c\.zarr/v000\d/0/c\.0\.0\.0: the store has not"):
            next(loader)
    # Of this store: another test's lock, say, may still be renewed in a slow one.
    assert capsys.readouterr().err.count(f"{gate.address}: no answer for") == 1


def test_a_loader_closes_while_its_store_keeps_silent(gate, monkeypatch):
    """With an hour of patience this test would not come to its end if threads were waited for."""
    monkeypatch.setenv(TIMEOUT, FOR_EVER)
    monkeypatch.setattr(background, "END_S", 120.0)
    others = set(threading.enumerate())  # that other tests left in this process
    loader = Loader(f"{gate.address}/c.zarr", replace(CONFIG, prefetch=8))
    gate.close()
    with patience(left=gate.held.is_set), pytest.raises(GivenUpError):
        next(loader)
    loader.close()
    own = set(threading.enumerate()) - others
    assert not [t for t in own if t.name.startswith("mim3d-re")]


def test_who_leaves_a_batch_gets_it_again(gate, local, monkeypatch):
    monkeypatch.setenv(TIMEOUT, FOR_EVER)
    with Loader(local, CONFIG) as here, Loader(f"{gate.address}/c.zarr", CONFIG) as there:
        gate.close()
        with patience(left=gate.held.is_set), pytest.raises(GivenUpError):
            next(there)
        gate.open.set()
        for _ in range(2):
            assert torch.equal(next(here).image, next(there).image)


@pytest.mark.parametrize("text", ["nan", "inf", "0", "-3", "1e300", "ten", "1 0"])
def test_a_bound_that_is_none_is_one_line(text, monkeypatch):
    monkeypatch.setenv(TIMEOUT, text)
    with pytest.raises(Mim3dError, match=rf"{TIMEOUT}={text}: must be seconds, such as 120"):
        read_remote_bytes("http://127.0.0.1:9/a.nii", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["inspect CORPUS", "pretrain demo-mae --data.corpus CORPUS --out run"]
)
def test_one_interrupt_ends_a_command_that_waits(gate, command, tmp_path):
    gate.close()
    words = command.replace("CORPUS", f"{gate.address}/c.zarr").split()
    running = subprocess.Popen(
        [sys.executable, "-m", "mim3d.engine.commands.cli", *words],
        env=os.environ | {TIMEOUT: FOR_EVER},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert gate.held.wait(240)
    running.send_signal(signal.SIGINT)
    told = running.communicate(timeout=300)[1]
    assert running.returncode == 130, told
    assert told.count("\n") == 1
    assert "interrupted" in told


def test_an_answer_and_an_error_come_through():
    assert answered("s3://b", "k", lambda: 7) == 7
    with pytest.raises(FileNotFoundError, match="gone"):
        answered("s3://b", "k", lambda: Path("gone").read_bytes())
    with pytest.raises(TimeoutError, match="its own"):
        answered("s3://b", "k", _timed_out)


def _timed_out():
    raise TimeoutError("its own")


def test_an_interrupt_inside_a_block_of_threads_frees_them(gate, monkeypatch):
    monkeypatch.setenv(TIMEOUT, FOR_EVER)
    gate.close()
    address = f"{gate.address}/c.zarr/zarr.json"
    answers = []
    with pytest.raises(KeyboardInterrupt), waiting.asking_threads(2) as pool:
        answers += [pool.submit(read_remote_bytes, address, 1 << 20) for _ in range(3)]
        assert gate.held.wait(60)
        raise KeyboardInterrupt
    assert isinstance(answers[0].exception(), GivenUpError)
    gate.open.set()
    assert read_remote_bytes(address, 1 << 20)
