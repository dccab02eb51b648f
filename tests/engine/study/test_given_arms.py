"""Encoders of other libraries as arms of a study."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.networks.nets.vit import ViT
from small_finetune import VIT, make_labelled_corpus

from mim3d.engine.finetune.config import LabelledData
from mim3d.engine.finetune.splits import SplitConfig
from mim3d.engine.runs.files import file_sha256, read_json, read_jsonl
from mim3d.engine.study.config import FinetunePlan, StudyConfig
from mim3d.engine.study.pretext import is_encoder
from mim3d.engine.study.run import run_study


def test_a_monai_encoder_is_compared_with_scratch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_labelled_corpus(tmp_path / "phantom")
    torch.manual_seed(3)
    net = ViT(1, (16, 16, 16), (8, 8, 8), 12, 48, num_layers=2, num_heads=2, qkv_bias=True)
    file = tmp_path / "monai.pt"
    torch.save(net.state_dict(), file)
    config = StudyConfig(
        data=LabelledData(str(corpus), split=SplitConfig(0.15, 0.15)),
        vit=replace(VIT, position="learned"),
        arms=("scratch", f"theirs={file}"),
        seeds=(0,),
        heads=("linear",),
        finetune=FinetunePlan(steps=2, eval_every=1, global_batch=2, lr=(1e-3,)),
        workers=1,
        device="cpu",
    )
    result = run_study(config, tmp_path / "study")
    assert result.failed == {}
    arms = {row["arm"] for row in read_jsonl(tmp_path / "study" / "results.jsonl")}
    assert arms == {"scratch", "theirs"}
    (cell,) = (tmp_path / "study" / "cells").glob("theirs*")
    assert read_json(cell / "origin.json")["weights_sha256"] == file_sha256(file)
    about = read_json(tmp_path / "study" / "study.json")
    assert about["doubts"] == []
    (guess,) = (note for note in about["notes"] if note.startswith("theirs: "))
    assert "does not tell its attention heads: 2 is a guess; --vit.heads N otherwise" in guess
    assert guess in capsys.readouterr().out
    assert is_encoder(str(file))
    assert not is_encoder(str(tmp_path / "none.pt"))
