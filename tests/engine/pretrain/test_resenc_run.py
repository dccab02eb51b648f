"""A U-Net from the command's configuration to its encoder's file and fine-tuning."""

from dataclasses import replace

import pytest
import torch
from small_finetune import make_labelled_corpus, small_finetune
from small_run import small_config

from mim3d.engine.commands.arguments import UsageError
from mim3d.engine.commands.pretrain import arguments
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.finetune.finetune import run_finetune
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.resenc.config import ResEncConfig
from mim3d.engine.models.resenc.encoder import ResEncEncoder
from mim3d.engine.planning.machine import known_machine
from mim3d.engine.planning.plan import make_plan
from mim3d.engine.pretrain.config import config_identity
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.pretrain.recipes import recipe
from mim3d.engine.runs.encoder_file import load_encoder, load_resenc, read_card
from mim3d.engine.transfer.given_weights import open_weights

VIT = ViTConfig((16, 16, 32), (4, 4, 4))
RESENC = ResEncConfig((4, 6, 8), (1, 1, 1))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_labelled_corpus(tmp_path_factory.mktemp("resenc"))


def config_of(method: str, corpus, masking="dense"):
    base = small_config(corpus, method)
    resenc = replace(RESENC, masking=masking)
    part = recipe("demo-resenc-mae").method if method == "mae" else base.method
    return replace(base, method=part, vit=VIT, resenc=resenc)


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("sparse")
    assert run_pretrain(config_of("mae", corpus, "sparse"), out).step == 8
    return out


@pytest.mark.parametrize("method", ["mae", "simclr"])
def test_each_method_trains_it(method, corpus, tmp_path):
    result = run_pretrain(config_of(method, corpus), tmp_path)
    assert result.figures["pretext"]


def test_its_card_brings_back_the_same_encoder(run):
    encoder = load_resenc(run)
    assert isinstance(encoder, ResEncEncoder)
    assert encoder.config == replace(RESENC, masking="sparse")
    assert read_card(run)[1]["kind"] == "resenc"
    trained = open_weights(run).tensors
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(trained[f"encoder.{name}"], tensor), name
    with pytest.raises(CheckpointError, match="holds a resenc encoder, a vit is needed"):
        load_encoder(run)


@pytest.mark.parametrize("head", ["unetr", "classify"])
def test_it_is_fine_tuned_whole_or_pooled(head, run, corpus, tmp_path):
    config = small_finetune(corpus, head=head, vit=VIT, resenc=RESENC, init=str(run))
    result = run_finetune(config, tmp_path / head)
    assert result.rows[-1]["step"] == 4


def test_another_shape_is_refused(run, corpus, tmp_path):
    other = replace(RESENC, features=(4, 6, 10))
    config = small_finetune(corpus, vit=VIT, resenc=other, init=str(run))
    with pytest.raises(ConfigError, match=r"features \(4, 6, 8\) instead of \(4, 6, 10\)"):
        run_finetune(config, tmp_path / "tuned")


def test_what_does_not_go_together_is_refused(corpus):
    with pytest.raises(ConfigError, match="take a resenc recipe with mae"):
        config_of("simmim", corpus)
    with pytest.raises(ConfigError, match="has its own decoder, with head unetr"):
        small_finetune(corpus, vit=VIT, resenc=RESENC, head="linear")
    with pytest.raises(ConfigError, match="a multiple of 4"):
        replace(config_of("mae", corpus), vit=ViTConfig((16, 18, 16), (2, 2, 2)))
    with pytest.raises(UsageError, match=r"vit\.depth"):
        arguments("demo-resenc-mae", recipe("demo-resenc-mae"), ["--out", "x", "--vit.depth", "3"])


def test_runs_of_before_keep_their_identity(corpus):
    assert "resenc" not in config_identity(small_config(corpus))
    assert "resenc" in config_identity(config_of("mae", corpus))


def test_its_plan_counts_the_arithmetic_and_the_maps(corpus):
    config = config_of("mae", corpus)
    machine = known_machine("H200")
    plan = make_plan(config, 1, machine)
    assert plan.parameters == sum(p.numel() for p in config.build().parameters())
    less = replace(config, parallel=replace(config.parallel, recompute=True))
    assert 0 < make_plan(less, 1, machine).memory.activations < plan.memory.activations
