"""Rows reach Weights & Biases, offline, and a resumed run goes on with the same page."""

import dataclasses
import json
import struct

import pytest
from small_run import before_step, make_corpus, small_config

from mim3d.engine.errors import ConfigError
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.training.metrics import WANDB_ID, WeightsAndBiases, read_rows
from mim3d.engine.training.trainer import Trainer

wandb = pytest.importorskip("wandb")
BLOCK = 32768


def records(file):
    """Payloads of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield whole
            whole = b""


def history(file):
    """Rows of a .wandb file."""
    from wandb.proto import wandb_internal_pb2

    for payload in records(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        if record.WhichOneof("record_type") == "history":
            yield {
                item.key or item.nested_key[0]: json.loads(item.value_json)
                for item in record.history.item
            }


@pytest.mark.slow
def test_an_interrupted_run_is_one_page(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = small_config(make_corpus(tmp_path))
    config = dataclasses.replace(config, log=dataclasses.replace(config.log, wandb=True))
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "one_step", Trainer.one_step)
        before_step(6, 0, lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_pretrain(config, run)
    run_pretrain(config, run)
    page = (run / WANDB_ID).read_text().strip()
    sittings = sorted(run.glob(f"wandb/offline-run-*-{page}/run-{page}.wandb"))
    assert len(list(run.glob("wandb/offline-run-*"))) == len(sittings) == 2
    first, second = (list(history(file)) for file in sittings)
    assert [row["step"] for row in first] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in second] == [4, 5, 6, 7, 8]
    stored = {row["step"]: row for row in read_rows(run / "metrics.jsonl")}
    for row in second:
        assert row["_step"] == row["step"]
        assert row["loss"] == stored[row["step"]]["loss"]
        assert "mfu_bf16" not in row  # unknown on a CPU


def test_a_refusal_is_told_with_its_remedy(tmp_path, monkeypatch):
    def refuse(**_):
        raise wandb.errors.UsageError("no API key configured")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"no API key.*WANDB_MODE=offline"):
        WeightsAndBiases(tmp_path, {})
