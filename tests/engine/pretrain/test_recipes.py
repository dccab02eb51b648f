import dataclasses
import json

import pytest
import torch

from mim3d.engine.commands.arguments import UsageError
from mim3d.engine.commands.pretrain import arguments as parse
from mim3d.engine.distributed.config import ParallelConfig
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import (
    MAEConfig,
    SimCLRConfig,
    SimMIMConfig,
    SwinConfig,
    ViTConfig,
    method_name,
)
from mim3d.engine.pretrain.config import (
    PretrainConfig,
    PretrainLog,
    config_dict,
    config_identity,
    identity_of,
)
from mim3d.engine.pretrain.recipes import MADE_FOR, RECIPES, idle_fields, recipe, recipe_table
from mim3d.engine.runs.config import CheckpointConfig
from mim3d.engine.runs.files import differences, json_sha256
from mim3d.engine.training.config import OptimConfig, ScheduleConfig


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
    big = recipe("mae-vit-l-160-p8")
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
        data=dataclasses.replace(
            config.data,
            corpus="/elsewhere",
            loader=dataclasses.replace(config.data.loader, threads=9),
        ),
    )
    other = dataclasses.replace(config, seed=1)
    hashes = [json_sha256(config_identity(c)) for c in (config, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def leaves(plain, name=""):
    """(command-line words, path) of every field of a configuration's plain values."""
    for key, value in plain.items():
        path = f"{name}.{key}" if name else key
        if isinstance(value, dict):
            yield from leaves(value, path)
        elif path != "method.name":
            yield path, value


@pytest.mark.parametrize("name", ["demo-mae", "btcv-simmim", "brats-simclr", "btcv-swin-simmim"])
def test_each_single_field_is_an_option_and_is_stored(name):
    """All fields at once, each with its own value: what is parsed and stored is the recipe."""
    config = recipe(name)
    words = ["--out", "x"]
    idle = {
        name for kind, names in idle_fields(config).items() if kind is ViTConfig for name in names
    }
    for path, value in leaves(config_dict(config)):
        if path.startswith("vit.") and path.removeprefix("vit.") in idle:
            continue
        if path == "log.picture_every" and isinstance(config.method, SimCLRConfig):
            continue
        option = path.removeprefix("divergence.").replace("_", "-")  # `--on-divergence` as it is
        if isinstance(value, bool):
            head, dot, leaf = option.rpartition(".")
            words.append(f"--{head}{dot}{'' if value else 'no-'}{leaf}")
        elif value is not None and value != []:
            words += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    parsed = parse(name, recipe("demo-mae") if name == "demo-mae" else config, words).config
    assert parsed == config
    assert identity_of(config_dict(parsed)) == config_identity(config)


def test_the_table_has_a_line_for_each_recipe_and_its_gpus_share_the_batch():
    lines = recipe_table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(RECIPES) == list(MADE_FOR)
    (line,) = (line for line in lines if line.startswith("mae-vit-l-160-p8 "))
    assert line.split()[1:] == [
        "mae",
        "ViT",
        "1024",
        "x",
        "24",
        "160^3",
        "8^3",
        "512",
        "64",
        "GPUs",
    ]
    for name, gpus in MADE_FOR.items():
        assert recipe(name).micro_batch(max(gpus, 1)) >= 1


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("demo-mae", "--data.views"),
        ("demo-mae", "--data.crop-size"),
        ("demo-mae", "--method.temperature"),
        ("demo-simclr", "--method.mask-ratio"),
        ("demo-simclr", "--log.picture-every"),
        ("btcv-swin-simmim", "--vit.width"),
    ],
)
def test_what_a_recipe_does_not_heed_is_neither_listed_nor_taken(name, option, capsys):
    with pytest.raises(SystemExit):
        parse(name, recipe(name), ["--help"])
    shown = capsys.readouterr().out
    assert "--vit.crop-size" in shown and f"{option} " not in shown
    with pytest.raises(UsageError, match=f"Unrecognized options: {option}, 2"):
        parse(name, recipe(name), ["--out", "x", option, "2"])


def test_how_simclr_splits_its_batch_is_part_of_what_it_learns():
    """Its negatives are those of one micro-batch; the masked methods' loss is a plain mean."""
    for name, matters in (("demo-simclr", True), ("demo-mae", False)):
        config = recipe(name)
        split = dataclasses.replace(config.parallel, grad_accum=2)
        other = config_identity(dataclasses.replace(config, parallel=split))
        assert (other != config_identity(config)) == matters


def test_differences_are_found_on_both_sides():
    stored, wanted = {"a": 1, "data": {"held_out": 0.25}}, {"a": 1, "data": {}, "b": 2}
    assert differences(stored, wanted) == [("data.held_out", 0.25, None), ("b", None, 2)]
    swin = {"swin": {"window": 7}}
    assert differences({"swin": None}, swin) == [("swin.window", None, 7)]
    assert differences(swin, swin) == []


def test_initial_weights_follow_the_seed_alone():
    config = recipe("demo-mae")
    first, again = config.build(), config.build()
    other = dataclasses.replace(config, seed=1).build()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(first.state_dict()["head.weight"], other.state_dict()["head.weight"])


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: PretrainConfig(steps=0), "steps 0"),
        (
            lambda: PretrainConfig(swin=SwinConfig()),
            "MAE drops tokens",
        ),
        (lambda: SwinConfig(feature_size=20), "multiple of 12"),
        (lambda: MAEConfig(decoder_heads=7), "decoder_heads 7 must divide"),
        (lambda: SimMIMConfig(mask_unit=0), "mask_unit 0"),
        (lambda: MAEConfig(mask_kind="grid"), "no grid but random"),
        (lambda: CheckpointConfig(keep=0), "checkpoint.keep 0"),
        (lambda: PretrainConfig(global_batch=6).micro_batch(4), "multiple of 4 ranks"),
        (lambda: recipe("nonsense"), "one of: demo-mae"),
        (lambda: OptimConfig(beta1=1.5), r"optim.beta1 1.5.*must lie in \[0, 1\)"),
        (lambda: OptimConfig(kind="lamb", eps=-1.0), "optim.eps -1.0 must be positive"),
        (lambda: OptimConfig(clip_norm=-1.0), "optim.clip_norm -1.0"),
        (lambda: OptimConfig(weight_decay=float("nan")), "optim.weight_decay nan"),
        (lambda: ScheduleConfig(lr=float("nan")), "schedule.lr nan must be a finite number"),
        (lambda: ScheduleConfig(lr=float("inf")), "schedule.lr inf must be a finite number"),
        (lambda: ParallelConfig(timeout_s=-5.0), "parallel.timeout_s -5.0"),
        (lambda: PretrainLog(picture_every=-2), "log.picture_every -2"),
        (lambda: PretrainConfig(log=PretrainLog(profile_step=9), steps=8), "profile_step 9 lies"),
        (lambda: PretrainConfig(seed=-1), r"seed -1 must lie in"),
        (lambda: PretrainConfig(SimCLRConfig(), global_batch=1), "global_batch 1.*no negatives"),
        (lambda: ViTConfig(mlp_ratio=-1.0), "vit.mlp_ratio -1.0"),
        (lambda: MAEConfig(decoder_depth=-3), "decoder_depth -3"),
        (lambda: MAEConfig(decoder_width=0), "decoder_width 0"),
        (lambda: SimCLRConfig(projection_width=0), "projection_width 0"),
        (lambda: SimCLRConfig(temperature=float("nan")), "temperature nan"),
        (lambda: SwinConfig(heads=(5, 6, 12, 24)), r"5 must divide the 48 features of stage 1"),
        (lambda: SwinConfig(feature_size=0), "multiple of 12"),
        (lambda: SwinConfig(depths=(0, 2, 2, 2)), "must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(make, wanted):
    with pytest.raises(ConfigError, match=wanted):
        make()
