"""Runs with crops turned within their volumes and artefacts: resumed exactly, scored on plain ones,
and as fine-tuning has them."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_finetune import make_labelled_corpus, small_finetune
from small_run import make_corpus, small_config

from mim3d.dataio.errors import Mim3dError
from mim3d.engine.finetune.finetune import loader_config, run_finetune
from mim3d.engine.pretrain import held_out
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.pretrain import run_pretrain

ARTEFACTS = ("bias-field=0.5", "ghosting=0.3", "gibbs=0.3", "low-resolution=0.3", "gamma=0.5")


def augmented(corpus: Path) -> PretrainConfig:
    config = small_config(corpus)
    loader = dataclasses.replace(config.data.loader, augment="spatial", artefacts=ARTEFACTS)
    data = dataclasses.replace(config.data, loader=loader, held_out=0.25, held_out_crops=2)
    log = dataclasses.replace(config.log, held_out_every=4)
    return dataclasses.replace(config, data=data, log=log)


def test_a_resumed_run_is_the_same_and_scored_on_crops_as_they_lie(tmp_path, monkeypatch) -> None:
    seen, plain = [], held_out.Loader

    def watched(corpus: Any, config: Any, **rest: Any) -> Any:
        seen.append(config)
        return plain(corpus, config, **rest)

    monkeypatch.setattr(held_out, "Loader", watched)
    config = augmented(make_corpus(tmp_path))
    whole = run_pretrain(config, tmp_path / "run")
    assert {(each.augment, each.artefacts) for each in seen} == {("none", ())}
    encoder = (tmp_path / "run" / "encoder.safetensors").read_bytes()
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").glob("step-*")))
    (tmp_path / "run" / "pretext.json").unlink()
    again = run_pretrain(config, tmp_path / "run")
    assert again.step == whole.step == 8
    assert (tmp_path / "run" / "encoder.safetensors").read_bytes() == encoder


def test_fine_tuning_has_both(tmp_path) -> None:
    corpus = make_labelled_corpus(tmp_path)
    config = small_finetune(
        corpus, augment="spatial-segmentation", artefacts=ARTEFACTS, steps=2, eval_every=2
    )
    assert loader_config(config, 2).augmentation.spatial is not None
    assert loader_config(config, 2).augmentation.artefacts.gamma == 0.5
    rows = run_finetune(config, tmp_path / "run").rows
    assert rows
    with pytest.raises(Mim3dError, match="artefacts='snow=1': write NAME=CHANCE"):
        dataclasses.replace(config, artefacts=("snow=1",))
