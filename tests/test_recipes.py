import dataclasses
import json

import pytest
import torch

from mim3d.engine.build import build_method
from mim3d.engine.commands.pretrain import arguments as parse
from mim3d.engine.config import (
    CheckpointConfig,
    PretrainConfig,
    config_dict,
    config_identity,
    config_sha256,
    method_name,
)
from mim3d.engine.errors import ConfigError
from mim3d.engine.mae import MAEConfig
from mim3d.engine.recipes import RECIPES, recipe
from mim3d.engine.simmim import SimMIMConfig
from mim3d.engine.swin import SwinConfig


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_whole_and_its_loader_configuration_valid(name):
    config = recipe(name)
    loader = config.data.loader_config(config.vit, config.method, 2, config.seed)
    assert loader.crop_size == config.vit.crop_size
    assert loader.views == (2 if method_name(config.method) == "simclr" else 1)
    assert json.loads(json.dumps(config_dict(config)))["method"]["name"] == name_of_method(name)


def name_of_method(recipe_name):
    return next(m for m in ("simmim", "simclr", "mae") if m in recipe_name)


def test_the_papers_settings():
    config = recipe("btcv-mae")
    assert config.vit.crop_size == (96, 96, 96)
    assert config.vit.patch_size == (16, 16, 16)
    assert (config.vit.width, config.vit.depth, config.vit.heads) == (768, 12, 12)
    assert isinstance(config.method, MAEConfig)
    assert config.method.mask_ratio == 0.75
    assert config.method.loss == "l1"
    assert (config.method.decoder_width, config.method.decoder_depth) == (512, 8)
    assert recipe("brats-mae").vit.channels == 4
    big = recipe("openmind-mae-vit-l-160")
    assert big.vit.n_patches == 8000
    assert (big.vit.width, big.vit.depth) == (1024, 24)


def test_every_field_can_be_set_on_the_command_line():
    words = ["--out", "x", "--method.mask-ratio", "0.6", "--vit.patch-size", "4", "8", "16"]
    words += ["--optim.impl", "apex", "--parallel.replicate", "2", "--data.subjects", "a", "b"]
    words += [
        "--checkpoint.keep",
        "5",
        "--log.wandb",
        "--schedule.kind",
        "constant",
        "--steps",
        "7",
    ]
    args = parse("demo-mae", recipe("demo-mae"), words)
    assert isinstance(args.config.method, MAEConfig)
    assert args.config.method.mask_ratio == 0.6
    assert args.config.vit.patch_size == (4, 8, 16)
    assert args.config.optim.impl == "apex"
    assert args.config.parallel.replicate == 2
    assert args.config.data.subjects == ("a", "b")
    assert args.config.checkpoint.keep == 5
    assert args.config.log.wandb
    assert args.config.schedule.kind == "constant"
    assert args.config.steps == 7


def test_swin_recipes_have_their_fields_too():
    args = parse("x", recipe("btcv-swin-simmim"), ["--out", "x", "--swin.feature-size", "24"])
    assert args.config.swin == SwinConfig(feature_size=24)


def test_identity_leaves_out_what_does_not_decide():
    config = recipe("demo-mae")
    same = dataclasses.replace(
        config,
        checkpoint=CheckpointConfig(every=7),
        data=dataclasses.replace(config.data, corpus="/elsewhere", threads=9),
    )
    other = dataclasses.replace(config, seed=1)
    hashes = [config_sha256(config_identity(c)) for c in (config, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_initial_weights_follow_the_seed_alone():
    config = recipe("demo-mae")
    first, again = build_method(config), build_method(config)
    other = build_method(dataclasses.replace(config, seed=1))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(first.state_dict()["head.weight"], other.state_dict()["head.weight"])


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: PretrainConfig(steps=0), "steps 0"),
        (lambda: PretrainConfig(swin=SwinConfig()), "MAE drops tokens"),
        (lambda: SwinConfig(feature_size=20), "multiple of 12"),
        (lambda: MAEConfig(decoder_heads=7), "decoder_heads 7 must divide"),
        (lambda: SimMIMConfig(mask_unit=0), "mask_unit 0"),
        (lambda: CheckpointConfig(keep=0), "checkpoint.keep 0"),
        (lambda: PretrainConfig(global_batch=6).micro_batch(4), "multiple of 4 ranks"),
        (lambda: recipe("nonsense"), "one of: demo-mae"),
    ],
)
def test_what_cannot_be_is_refused(make, wanted):
    with pytest.raises(ConfigError, match=wanted):
        make()
