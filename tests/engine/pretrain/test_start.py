"""Weights that a run starts from: every layout gives the same function, and all of it is told."""

import dataclasses
import json
import re

import pytest
import torch
from monai.networks.nets.vit import ViT
from safetensors.torch import save_file
from small_run import make_corpus, small_config

from mim3d.engine.commands import cli
from mim3d.engine.commands.pretrain import arguments
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.vit import ViT3D, resize_positions
from mim3d.engine.pretrain.pretrain import run_pretrain, start_request
from mim3d.engine.pretrain.recipes import recipe
from mim3d.engine.runs.encoder_file import load_encoder, read_card
from mim3d.engine.runs.export import export_encoder
from mim3d.engine.transfer.start import start_from

VIT = ViTConfig((16, 16, 32), (8, 8, 8), width=24, depth=2, heads=2, position="learned")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def source(corpus, tmp_path_factory):
    """A finished run of two steps."""
    out = tmp_path_factory.mktemp("source") / "run"
    run_pretrain(small_config(corpus, steps=2), out)
    return out


def started(init, vit=VIT, method="mae", **changes):
    """A module that started from weights, and the report."""
    shape = {} if method == "swin" else {"vit": vit}
    config = small_config("", method, init=str(init), **shape, **changes)
    module = config.build()
    return module, start_from(module, start_request(config))


def monai_vit(**changes):
    torch.manual_seed(3)
    options = {"proj_type": "conv", "qkv_bias": True, **changes}
    net = ViT(
        1, (32, 16, 16), (8, 8, 8), 24, 96, num_layers=2, num_heads=2, dropout_rate=0.0, **options
    )
    return net.eval()


def assert_same_function(encoder, net):
    """Ours on (z, y, x) is MONAI's on the same volume as (x, y, z)."""
    volume = torch.randn(2, 1, 16, 16, 32)
    with torch.no_grad():
        mine = encoder(volume).reshape(2, 2, 2, 4, 24)
        theirs = net(volume.permute(0, 1, 4, 3, 2))[0].reshape(2, 4, 2, 2, 24)
    torch.testing.assert_close(mine, theirs.permute(0, 3, 2, 1, 4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("proj_type", ["conv", "perceptron"])
def test_monais_vit_is_the_same_function(tmp_path, proj_type, qkv_bias):
    net = monai_vit(proj_type=proj_type, qkv_bias=qkv_bias)
    torch.save(net.state_dict(), tmp_path / "vit.pt")
    module, start = started(tmp_path / "vit.pt")
    assert (start.layout, start.axes, start.doubts) == ("monai", "xyz", [])
    assert any("--init-axes zyx" in note for note in start.notes)
    assert any("zeros" in note for note in start.notes) == (not qkv_bias)
    assert_same_function(module.get_submodule("encoder"), net)


def test_the_axes_option_that_the_report_names_counts(tmp_path):
    torch.save(monai_vit().state_dict(), tmp_path / "vit.pt")
    turned = started(tmp_path / "vit.pt")[0].state_dict()["encoder.patch_embed.weight"]
    module, start = started(tmp_path / "vit.pt", init_axes="zyx")
    assert start.axes == "zyx"
    assert not torch.equal(module.state_dict()["encoder.patch_embed.weight"], turned)
    with pytest.raises(ConfigError, match="init_axes zyx says nothing without --init"):
        small_config("", init_axes="zyx")


@pytest.mark.parametrize("prefix", ["model.encoder.", "vit.", "module._orig_mod.vit."])
def test_prefixes_and_nesting_of_other_trainers(tmp_path, prefix):
    """Lightning's checkpoint of MIM-Med3D's MAE, MONAI's UNETR, DistributedDataParallel."""
    net = monai_vit()
    state = {f"{prefix}{name}": tensor for name, tensor in net.state_dict().items()}
    state["model.decoder_blocks.0.norm1.weight"] = torch.ones(24)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "last.ckpt")
    module, start = started(tmp_path / "last.ckpt")
    assert "model.decoder_blocks.0.norm1.weight" in start.left
    assert "mask_token" in start.fresh
    assert_same_function(module.get_submodule("encoder"), net)


def timm_state(encoder, gamma):
    """An encoder of ours under timm's names, with a class token and layer scales."""
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    kernel = state.pop("patch_embed.weight")
    state["patch_embed.proj.weight"] = kernel.reshape(24, 1, 8, 8, 8)
    state["patch_embed.proj.bias"] = state.pop("patch_embed.bias")
    state["cls_token"] = torch.ones(1, 1, 24)
    state["head.weight"] = torch.ones(5, 24)
    state["pos_embed"] = torch.cat([torch.full((1, 24), 9.0), state["pos_embed"]])[None]
    for block in range(2):
        for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            state[f"blocks.{block}.{scale}.gamma"] = torch.full((24,), gamma)
            for leaf in ("weight", "bias"):
                state[f"blocks.{block}.{layer}.{leaf}"] /= gamma
    return state


def test_timms_names_with_class_token_and_layer_scales(tmp_path):
    torch.manual_seed(1)
    encoder = ViT3D(VIT)
    save_file(timm_state(encoder, 0.5), tmp_path / "timm.safetensors")
    module, start = started(tmp_path / "timm.safetensors")
    assert (start.layout, start.axes) == ("timm", "zyx")
    assert "cls_token (this encoder has none)" in start.left
    assert start.doubts == []
    volume = torch.randn(2, 1, 16, 16, 32)
    torch.testing.assert_close(module.get_submodule("encoder")(volume), encoder(volume))


def test_biases_apart_as_beit_has_them(tmp_path):
    state = timm_state(ViT3D(VIT), 1.0)
    for block in range(2):
        del state[f"blocks.{block}.attn.qkv.bias"]
        state[f"blocks.{block}.attn.q_bias"] = torch.full((24,), 2.0)
        state[f"blocks.{block}.attn.v_bias"] = torch.full((24,), 3.0)
    torch.save({"model": state}, tmp_path / "beit.pth")
    bias = started(tmp_path / "beit.pth")[0].state_dict()["encoder.blocks.1.attn.qkv.bias"]
    assert bias.tolist() == [2.0] * 24 + [0.0] * 24 + [3.0] * 24


def test_positions_of_another_grid_are_resized(tmp_path):
    encoder = ViT3D(dataclasses.replace(VIT, crop_size=(32, 32, 32)))
    torch.save(encoder.state_dict(), tmp_path / "cube.pt")
    module, start = started(tmp_path / "cube.pt")
    assert start.resized == ["pos_embed ((4, 4, 4) to (2, 2, 4))"]
    assert encoder.pos_embed is not None
    wanted = resize_positions(encoder.pos_embed, (4, 4, 4), (2, 2, 4))
    torch.testing.assert_close(module.state_dict()["encoder.pos_embed"], wanted)


def test_learned_positions_have_no_place_beside_fixed_ones_but_by_the_option(tmp_path):
    torch.save(ViT3D(VIT).state_dict(), tmp_path / "vit.pt")
    _, start = started(tmp_path / "vit.pt", dataclasses.replace(VIT, position="sincos"))
    assert any("--vit.position learned takes it" in doubt for doubt in start.doubts)
    assert started(tmp_path / "vit.pt")[1].doubts == []


def test_a_run_gives_its_checkpoint_and_a_file_its_encoder(source):
    whole, start = started(source, small_config("").vit)
    assert start.place.endswith("step-00000002")
    assert (start.left, start.fresh, start.resized) == ([], [], [])
    encoder, start = started(source / "encoder.safetensors", small_config("").vit)
    assert start.fresh
    assert all(not name.startswith("encoder.") for name in start.fresh)
    for name, tensor in load_encoder(source).state_dict().items():
        for module in (whole, encoder):
            assert torch.equal(module.state_dict()[f"encoder.{name}"], tensor)
    assert started(source / "checkpoints" / "step-00000002", small_config("").vit)[1].fresh == []


def test_an_export_to_monai_comes_back(tmp_path):
    """Its card tells the axes, and that its positions are the fixed ones."""
    vit = ViTConfig((32, 32, 48), (16, 16, 16), width=24, depth=12, heads=2)
    config = small_config("", vit=vit)
    from mim3d.engine.runs.encoder_file import save_encoder

    encoder = config.build().get_submodule("encoder")
    save_encoder(tmp_path, vit, encoder.state_dict(), {"normalise": "zscore"})
    export_encoder(tmp_path, "monai-unetr", tmp_path / "unetr.safetensors", "xyz")
    module, start = started(tmp_path / "unetr.safetensors", vit, seed=9)
    assert not [name for name in start.left if "pos_embed" in name]
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(module.state_dict()[f"encoder.{name}"], tensor), name


def test_another_shape_is_refused_with_the_options_that_fit(tmp_path):
    torch.save(ViT3D(VIT).state_dict(), tmp_path / "vit.pt")
    other = dataclasses.replace(VIT, width=48, mlp_ratio=2.0)
    with pytest.raises(ConfigError, match=r"does not fit: .* set --vit\.width") as refused:
        started(tmp_path / "vit.pt", other)
    words = re.search(r"set (--vit.*)$", str(refused.value))
    assert words is not None
    args = arguments("demo-mae", recipe("demo-mae"), ["--out", "x", *words[1].split()])
    fitting = dataclasses.replace(args.config.vit, crop_size=VIT.crop_size, heads=2)
    assert len(started(tmp_path / "vit.pt", fitting)[1].taken) > 20


def test_other_heads_are_refused_with_the_option(source):
    vit = dataclasses.replace(small_config("").vit, heads=4)
    with pytest.raises(ConfigError, match=r"has 2 attention heads.*set --vit\.heads 2"):
        started(source, vit)
    assert started(source, dataclasses.replace(vit, heads=2))[1].taken


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("none.pt", None, "is not there: give a run's folder"),
        ("notes.txt", {"a": torch.ones(2)}, "weights are read from .safetensors"),
        ("conv.pt", {"conv.weight": torch.ones(2)}, "no vision transformer whose names are known"),
        ("empty.pt", {"epoch": 3}, "holds no tensors by name"),
        ("half.pt", {"blocks.0.norm1.weight": torch.ones(2)}, "no patch embedding"),
    ],
)
def test_what_is_no_encoder_is_refused(tmp_path, name, content, expected):
    if content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match=expected):
        started(tmp_path / name)


def test_a_pickled_module_runs_no_code_and_its_state_is_taken(tmp_path):
    encoder = ViT3D(VIT)
    torch.save(encoder, tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match=r"save its state_dict\(\) with torch.save"):
        started(tmp_path / "module.pt")
    torch.save(encoder.state_dict(), tmp_path / "module.pt")
    assert started(tmp_path / "module.pt")[1].taken


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights"):
        started(tmp_path)


def test_a_run_that_starts_from_weights_keeps_the_report(corpus, source, tmp_path, capsys):
    config = small_config(corpus, steps=2, seed=5, init=str(source))
    run_pretrain(config, tmp_path / "run")
    assert "tensors taken, 0 resized, 0 left, 0 keep" in capsys.readouterr().out
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    card = read_card(tmp_path / "run")[1]
    assert stored["start"] == card["start"]
    assert stored["start"]["source"] == str(source)
    # Leaving --init out is the same run; another one is not.
    plain = dataclasses.replace(config, init="")
    assert run_pretrain(plain, tmp_path / "run").step == 2
    with pytest.raises(CheckpointError, match="leave --init out to go on"):
        run_pretrain(dataclasses.replace(config, init="elsewhere"), tmp_path / "run")


def test_weights_that_do_not_fit_leave_no_folder(corpus, source, tmp_path):
    config = small_config(corpus, "simmim", init=str(source))
    config = dataclasses.replace(config, vit=dataclasses.replace(config.vit, width=48))
    with pytest.raises(ConfigError, match="does not fit"):
        run_pretrain(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_swin_from_our_names_and_from_monais(tmp_path):
    """SwinUNETR keeps its encoder under swinViT; its decoder is left, and told."""
    torch.manual_seed(2)
    source = small_config("", "swin", seed=4).build()
    torch.save(source.state_dict(), tmp_path / "ours.pt")
    module, start = started(tmp_path / "ours.pt", method="swin")
    assert start.fresh == []
    encoder = source.get_submodule("encoder.swin").state_dict()
    theirs = {f"module.swinViT.{name}": tensor for name, tensor in encoder.items()}
    torch.save({"state_dict": theirs | {"out.weight": torch.ones(3)}}, tmp_path / "monai.pt")
    other, start = started(tmp_path / "monai.pt", method="swin")
    assert start.left == ["out.weight"]
    for net in (module, other):
        found = net.get_submodule("encoder.swin").state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in encoder.items())
    torch.save(ViT3D(VIT).state_dict(), tmp_path / "vit.pt")
    with pytest.raises(ConfigError, match="no name of its encoder is known"):
        started(tmp_path / "vit.pt", method="swin")


def test_a_vit_run_does_not_start_a_swin(source):
    with pytest.raises(ConfigError, match="holds a vit encoder"):
        started(source, method="swin")


def test_weights_with_nan_are_refused(tmp_path):
    state = ViT3D(VIT).state_dict()
    state["norm.weight"][3] = float("nan")
    torch.save(state, tmp_path / "vit.pt")
    with pytest.raises(ConfigError, match=r"NaN or infinities in norm\.weight"):
        started(tmp_path / "vit.pt")


@pytest.mark.parametrize("depth", [1, 3])
def test_another_depth_is_doubted(tmp_path, depth):
    torch.save(ViT3D(dataclasses.replace(VIT, depth=depth)).state_dict(), tmp_path / "vit.pt")
    _, start = started(tmp_path / "vit.pt")
    assert len(start.doubts) == 12
    assert "NOT WHOLLY THEIRS (12 parts)" in start.lines()[-1]
    torch.save(ViT3D(VIT).state_dict(), tmp_path / "vit.pt")
    assert started(tmp_path / "vit.pt")[1].doubts == []


def test_other_channels_leave_the_embedding_of_a_file_without_a_card(tmp_path):
    torch.save(ViT3D(VIT).state_dict(), tmp_path / "vit.pt")
    _, start = started(tmp_path / "vit.pt", dataclasses.replace(VIT, channels=2))
    assert any("rows of (512,) numbers" in doubt for doubt in start.doubts)


def test_a_doubted_start_ends_with_exit_code_3(corpus, tmp_path, capsys):
    state = ViT3D(ViTConfig((16, 16, 16), (8, 8, 8), width=24, depth=2, heads=2)).state_dict()
    torch.save(state, tmp_path / "vit.pt")
    words = ["--data.corpus", str(corpus), "--out", str(tmp_path / "run"), "--steps", "1"]
    words += ["--vit.crop-size", "16", "16", "16", "--vit.width", "24", "--vit.depth", "3"]
    words += ["--vit.heads", "2", "--global-batch", "2", "--method.decoder-width", "24"]
    words += ["--method.decoder-depth", "1", "--method.decoder-heads", "2"]
    assert cli.main(["pretrain", "demo-mae", *words, "--init", str(tmp_path / "vit.pt")]) == 3
    assert "encoder.blocks.2.norm1.weight" in capsys.readouterr().out


def test_weights_without_positions_are_doubted(tmp_path):
    state = ViT3D(VIT).state_dict()
    del state["pos_embed"]
    torch.save(state, tmp_path / "vit.pt")
    assert started(tmp_path / "vit.pt")[1].doubts == ["encoder.pos_embed keeps its initial values"]
