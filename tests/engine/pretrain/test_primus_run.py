"""A Primus from the command's configuration to its encoder's file, fine-tuning and export."""

from dataclasses import replace

import pytest
import torch
from small_finetune import make_labelled_corpus, small_finetune
from small_run import small_config

from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import RECIPES
from mim3d.engine.finetune.encoder import build_encoder
from mim3d.engine.finetune.finetune import run_finetune
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.primus.encoder import Primus3D
from mim3d.engine.models.primus.names import to_reference
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.pretrain.recipes import recipe
from mim3d.engine.runs.checkpoint_files import committed
from mim3d.engine.runs.encoder_file import load_encoder, read_card
from mim3d.engine.transfer.given_weights import open_weights

VIT = PrimusConfig((16, 16, 32), (8, 8, 8), width=24, depth=2, heads=2, registers=2, drop_path=0.5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_labelled_corpus(tmp_path_factory.mktemp("primus"))


def config_of(method: str, corpus):
    base = small_config(corpus, method)
    part = replace(recipe(f"demo-primus-{method}").method)
    if method == "mae":
        part = replace(part, decoder_width=12, decoder_depth=2, decoder_heads=2)
    return replace(base, method=part, vit=VIT)


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("mae")
    assert run_pretrain(config_of("mae", corpus), out).step == 8
    return out


@pytest.mark.parametrize("method", ["simmim", "simclr"])
def test_each_method_trains_it(method, corpus, tmp_path):
    result = run_pretrain(config_of(method, corpus), tmp_path)
    assert result.figures["pretext"]
    assert isinstance(load_encoder(tmp_path), Primus3D)


def test_a_run_goes_on_as_if_it_had_never_stopped(run, corpus, tmp_path):
    """Skipped branches are drawn at random: the generator's state is part of a checkpoint."""
    config = config_of("mae", corpus)
    interrupted = tmp_path / "again"
    assert run_pretrain(config, interrupted).step == 8
    for folder in committed(interrupted / "checkpoints")[:1]:
        for file in sorted(folder.rglob("*"), reverse=True):
            file.unlink()
        folder.rmdir()
    for name in ("encoder.safetensors", "pretext.json"):
        (interrupted / name).unlink()
    run_pretrain(config, interrupted)
    ours, theirs = load_encoder(run).state_dict(), load_encoder(interrupted).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_its_card_brings_back_the_same_encoder(run):
    encoder = load_encoder(run)
    assert isinstance(encoder, Primus3D)
    assert encoder.config == VIT
    assert read_card(run)[1]["kind"] == "primus"
    trained = open_weights(run).tensors
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(trained[f"encoder.{name}"], tensor), name


@pytest.mark.parametrize("head", ["patch", "unetr", "linear", "classify"])
def test_every_head_fine_tunes_it(head, run, corpus, tmp_path):
    vit = replace(VIT, drop_path=0.1)
    config = small_finetune(corpus, head=head, vit=vit, init=str(run))
    assert run_finetune(config, tmp_path / head).rows[-1]["step"] == 4


def test_a_checkpoint_of_nnssl_is_fine_tuned(run, corpus, tmp_path):
    encoder = load_encoder(run)
    assert isinstance(encoder.config, PrimusConfig)
    plan = {"pretrain_plan": {"configurations": {"noresample": {"patch_size": [16, 16, 32]}}}}
    weights = to_reference(encoder.state_dict(), encoder.config)
    content = {"network_weights": weights, "nnssl_adaptation_plan": plan}
    torch.save(content, tmp_path / "openmind.pth")
    config = small_finetune(corpus, head="patch", vit=VIT, init=str(tmp_path / "openmind.pth"))
    starts = []
    found = build_encoder(config, starts)
    assert all(torch.equal(t, encoder.state_dict()[n]) for n, t in found.state_dict().items())
    assert starts[0].layout == "nnssl"
    assert run_finetune(config, tmp_path / "tuned").rows[-1]["step"] == 4


def test_another_kind_of_transformer_is_refused(run, corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"holds a primus.*mim3d finetune primus-s-96"):
        run_finetune(small_finetune(corpus, init=str(run)), tmp_path / "tuned")
    assert isinstance(RECIPES["demo-primus"]().vit, PrimusConfig)
