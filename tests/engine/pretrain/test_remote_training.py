"""Runs whose corpus lies in a bucket: against moto's S3 server on loopback."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from s3_server import s3_server, use_s3
from safetensors.torch import load_file
from small_run import make_corpus, small_config

from mim3d.dataio.storage.object_store import RemoteStore
from mim3d.engine.errors import TrainingError
from mim3d.engine.finetune.config import FinetuneConfig, LabelledData
from mim3d.engine.finetune.finetune import run_finetune
from mim3d.engine.finetune.splits import SplitConfig
from mim3d.engine.models.config import MAEConfig, ViTConfig
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.runs.files import read_jsonl
from mim3d.engine.study.config import ArmPlan, FinetunePlan, PretrainPlan, StudyConfig
from mim3d.engine.study.run import run_study
from mim3d.engine.training.metrics import read_rows


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), subjects=8)


@pytest.fixture(scope="module")
def server():
    with s3_server("corpora") as address:
        yield address


@pytest.fixture
def upload(server, monkeypatch):
    """Copy a corpus to a bucket on an S3 server."""
    use_s3(server, monkeypatch)

    def copy(folder: Path) -> str:
        address = "s3://corpora/mr.zarr"
        store = RemoteStore(address)
        for file in folder.rglob("*"):
            if file.is_file():
                store.replace(file.relative_to(folder).as_posix(), [file.read_bytes()])
        return address

    return copy


def two_steps(corpus, **data):
    config = small_config(corpus, steps=2)
    checkpoint = replace(config.checkpoint, every=1)
    return replace(config, data=replace(config.data, **data), checkpoint=checkpoint)


def test_pretraining_from_a_bucket_equals_that_from_disk(upload, local, tmp_path):
    address = upload(local)
    for corpus, out in ((str(local), "here"), (address, "there")):
        run_pretrain(two_steps(corpus, held_out=0.25), tmp_path / out)
    here, there = (load_file(tmp_path / out / "encoder.safetensors") for out in ("here", "there"))
    assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())
    rows = [read_rows(tmp_path / out / "metrics.jsonl")[-1] for out in ("here", "there")]
    assert rows[0]["held_out_loss"] == rows[1]["held_out_loss"]


def test_a_bucket_whose_corpus_changed_is_refused(upload, local, tmp_path):
    address = upload(local)
    run_pretrain(two_steps(address), tmp_path / "run")
    (tmp_path / "run" / "pretext.json").unlink()
    upload(make_corpus(tmp_path, subjects=3))
    with pytest.raises(TrainingError, match=r"s3://corpora/mr.zarr has changed since step 2"):
        run_pretrain(two_steps(address), tmp_path / "run")


VIT = ViTConfig((16, 16, 16), (8, 8, 8), width=12, depth=2, heads=2)


def finetuning(corpus) -> FinetuneConfig:
    return FinetuneConfig(
        data=LabelledData(str(corpus), split=SplitConfig(0.15, 0.15)),
        vit=VIT,
        feature_size=4,
        steps=2,
        global_batch=2,
        eval_every=2,
        overlap=0.0,
        device="cpu",
    )


def test_fine_tuning_from_a_bucket_equals_that_from_disk(upload, local, tmp_path):
    here = run_finetune(finetuning(local), tmp_path / "here")
    there = run_finetune(finetuning(upload(local)), tmp_path / "there")
    assert here.subjects == there.subjects
    assert [row["score"] for row in here.rows] == [row["score"] for row in there.rows]


@pytest.mark.slow
def test_a_study_of_a_corpus_in_a_bucket(upload, local, tmp_path):
    config = StudyConfig(
        name="small",
        data=LabelledData(upload(local), split=SplitConfig(0.15, 0.15)),
        vit=VIT,
        seeds=(0,),
        arms=("scratch", "mae"),
        pretrain=PretrainPlan(
            crops=16,
            mae=ArmPlan(
                MAEConfig(decoder_width=16, decoder_depth=1, decoder_heads=2),
                lr=2e-3,
                global_batch=8,
            ),
        ),
        finetune=FinetunePlan(steps=2, eval_every=2, global_batch=2, feature_size=4, overlap=0.0),
        workers=1,
        device="cpu",
        synthetic=True,
    )
    result = run_study(config, tmp_path / "study")
    assert not result.failed
    assert {row["arm"] for row in read_jsonl(tmp_path / "study" / "results.jsonl")} == {
        "scratch",
        "mae",
    }
