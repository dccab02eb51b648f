"""Training from a store that stops answering: one Ctrl-C saves what is done, and it goes on."""

import os
import signal
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_run import make_corpus, small_config
from stalling_server import stalling_server

from mim3d.dataio.waiting import TIMEOUT
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.training.metrics import read_rows
from mim3d.engine.training.trainer import Trainer

pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), subjects=4)


def run_of(corpus):
    """Eight steps of two micro-batches, each read from the store."""
    config = small_config(corpus)
    loader = replace(config.data.loader, cache="none", prefetch=1)
    return replace(
        config,
        data=replace(config.data, loader=loader),
        parallel=replace(config.parallel, grad_accum=2),
    )


@pytest.mark.parametrize("cut_at", [3, 4])
def test_one_interrupt_saves_while_the_store_is_silent(local, tmp_path, monkeypatch, cut_at):
    """An hour of patience: who waits for the store would never come to the end of this test."""
    monkeypatch.setenv(TIMEOUT, "3600")
    run_pretrain(run_of(local), tmp_path / "whole")
    with stalling_server(local.parent) as gate:
        config = run_of(f"{gate.address}/{local.name}")
        plain = Trainer.one_step

        def one_step(self: Trainer) -> None:
            if self.step + 1 == cut_at and not gate.held.is_set():
                gate.close()
                threading.Thread(target=interrupt).start()
            plain(self)

        def interrupt() -> None:
            gate.held.wait()
            os.kill(os.getpid(), signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "one_step", one_step)
            stopped = run_pretrain(config, tmp_path / "run")
        saved = sorted(folder.name for folder in (tmp_path / "run/checkpoints").glob("step-*"))
        assert saved[-1] == f"step-{stopped.step:08d}"
        assert cut_at - 1 <= stopped.step < 8
        gate.open.set()
        run_pretrain(config, tmp_path / "run")
    losses = [[row["loss"] for row in read_rows(tmp_path / out / "metrics.jsonl")]
              for out in ("whole", "run")]  # fmt: skip
    assert losses[0] == losses[1]
    whole, run = (load_file(tmp_path / out / "encoder.safetensors") for out in ("whole", "run"))
    assert all(torch.equal(tensor, run[name]) for name, tensor in whole.items())
