"""Folders of runs that version 0.1.0 wrote, before the configuration had today's shape."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from small_run import make_corpus, small_config

from mim3d.dataio.loader.config import LoaderConfig
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.finetune import config as finetune_config
from mim3d.engine.finetune.config import LabelledData
from mim3d.engine.finetune.run_folder import claim
from mim3d.engine.finetune.splits import Splits
from mim3d.engine.pretrain.config import PretrainConfig, config_identity
from mim3d.engine.pretrain.data import DECIDED_ELSEWHERE, DataConfig
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.pretrain.recipes import RECIPES, recipe
from mim3d.engine.pretrain.run_folder import refuse_other_config
from mim3d.engine.runs.files import json_sha256
from mim3d.engine.study.config import FinetunePlan
from mim3d.engine.study.plan import finetune_config as cell_config
from mim3d.engine.study.plan import scored_cells
from mim3d.engine.study.recipes import study

EARLIER = Path(__file__).parents[2] / "support" / "earlier"
HASHES = json.loads((EARLIER / "recipe-sha256.json").read_text())


def with_loader(config: PretrainConfig, **changes: object) -> PretrainConfig:
    loader = dataclasses.replace(config.data.loader, **changes)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, loader=loader))


HEADS_BEFORE = 16
"""Of the decoders of mae-vit-*, which have fewer, wider ones since; runs from before are gone on
with by --method.decoder-heads 16."""


@pytest.mark.parametrize("name", HASHES)
def test_checkpoints_know_their_configuration_by_the_same_hash(name: str) -> None:
    config = recipe(name)
    if name.startswith("mae-vit-"):
        assert json_sha256(config_identity(config)) != HASHES[name]
        method = dataclasses.replace(config.method, decoder_heads=HEADS_BEFORE)
        config = dataclasses.replace(config, method=method)
    assert json_sha256(config_identity(config)) == HASHES[name]


def test_no_recipe_is_left_out() -> None:
    assert set(HASHES) <= set(RECIPES)


def test_a_stored_configuration_is_the_same_run(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    shutil.copy(EARLIER / "pretrain-config.json", file)
    config = recipe("demo-mae")
    refuse_other_config(file, config)
    refuse_other_config(file, with_loader(config, threads=7, cache="none", cache_policy="lru"))
    with pytest.raises(CheckpointError, match=r"data\.snap was 8 and is now 4"):
        refuse_other_config(file, with_loader(config, snap=4))
    with pytest.raises(CheckpointError, match=r"data\.nodes was None and is now 2"):
        refuse_other_config(file, with_loader(config, nodes=2))


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_gone_on_with(tmp_path: Path) -> None:
    config = small_config(make_corpus(tmp_path))
    run_pretrain(config, tmp_path / "run")
    before, newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-2:]
    shutil.rmtree(newest)
    written = before.stat().st_mtime_ns
    file = tmp_path / "run" / "config.json"
    stored = json.loads(file.read_text())
    later_fields = (
        "cache_policy",
        "nodes",
        "node_rotation",
        "shares",
        "where",
        "artefacts",
        "device_keeps",
    )
    for later in (*later_fields, "remote_requests", "remote_bytes"):
        del stored["data"][later]
    for later in ("decode_fraction", "ignore"):
        del stored["method"][later]
    earlier = json.loads((EARLIER / "pretrain-config.json").read_text())
    assert stored["data"].keys() == earlier["data"].keys()
    file.write_text(json.dumps(stored))
    (tmp_path / "run" / "pretext.json").unlink()
    assert run_pretrain(config, tmp_path / "run").step == 8
    assert before.stat().st_mtime_ns == written  # begun anew, the run would have written it again


@pytest.mark.parametrize("name", DECIDED_ELSEWHERE)
def test_what_a_run_decides_itself_is_refused_with_what_to_set(name: str) -> None:
    other = {"crop_size": (64, 64, 64), "views": 2, "label": "seg", "dtype": "bfloat16"}
    other["ignore"] = ("air",)
    loader = {"label": "seg"} if name == "foreground_fraction" else {}
    value = other.get(name, 0.5 if name == "foreground_fraction" else 3)
    loader |= {"augment": "contrastive"} if name == "views" else {}
    with pytest.raises(ConfigError, match=r"data\.loader\.\w+ .* does not count: \w+"):
        DataConfig(loader=LoaderConfig(**{**loader, name: value}))


def test_a_fine_tuning_run_is_the_same_run(tmp_path: Path) -> None:
    shutil.copy(EARLIER / "finetune-config.json", tmp_path / "config.json")
    config = finetune_config.demo()
    claim(config, tmp_path)
    claim(dataclasses.replace(config, data=LabelledData(corpus="/elsewhere.zarr")), tmp_path)
    with pytest.raises(ConfigError, match=r"data\.label seg, not lesion: choose another --out"):
        claim(dataclasses.replace(config, data=LabelledData(label="lesion")), tmp_path)
    with pytest.raises(ConfigError, match="global_batch 4, not 8"):
        claim(dataclasses.replace(config, global_batch=8), tmp_path)


def test_a_cell_of_a_study_is_the_same_cell(tmp_path: Path) -> None:
    shutil.copy(EARLIER / "cell-config.json", tmp_path / "config.json")
    then = FinetunePlan(steps=168, eval_every=12, lr=(2e-3,))  # what the demo trained by
    config = dataclasses.replace(study("demo"), labels=(1.0,), finetune=then)
    splits = Splits(("a", "b"), ("c",), ("d",), ("a", "b"), (), ())
    cell = scored_cells(config, {})[0]
    claim(cell_config(config, cell, splits, Path("study")), tmp_path)
