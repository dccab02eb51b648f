"""Weights of nnssl, nnU-Net and our own runs for Primus and the U-Net."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from einops import rearrange
from references import prepare_torchvision

from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.models.build import build_method
from mim3d.engine.models.config import MAEConfig, ViTConfig
from mim3d.engine.models.primus.config import PrimusConfig, primus
from mim3d.engine.models.primus.encoder import Primus3D
from mim3d.engine.models.primus.names import to_reference
from mim3d.engine.models.resenc.config import ResEncConfig
from mim3d.engine.models.resenc.names import to_reference as unet_to_reference
from mim3d.engine.runs.encoder_file import save_encoder
from mim3d.engine.transfer.start import StartRequest, start_from

VIT = PrimusConfig((16, 24, 32), (8, 8, 8), width=24, depth=2, heads=2)
MAE = MAEConfig(decoder_width=12, decoder_depth=1, decoder_heads=2)
UNET_VIT = ViTConfig((16, 16, 16), (4, 4, 4))
RESENC = ResEncConfig((4, 6, 8), (1, 2, 1))


def lively(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def nnssl_file(place, weights: dict[str, torch.Tensor], crop, arch: str) -> str:
    """A checkpoint as nnssl's add_adaptation_plan.py writes it."""
    plan = {
        "architecture_plans": {"arch_class_name": arch, "arch_kwargs": None},
        "pretrain_plan": {"configurations": {"onemmiso": {"patch_size": list(crop)}}},
        "recommended_downstream_patchsize": [160, 160, 160],
        "key_to_encoder": "eva",
        "key_to_stem": "down_projection",
        "keys_to_in_proj": ["down_projection.proj"],
        "key_to_lpe": "eva.pos_embed",
    }
    content = {"init_args": {"fold": 0}, "network_weights": weights, "nnssl_adaptation_plan": plan}
    torch.save(content, place)
    return str(place)


def eva_mae_file(place, encoder: Primus3D, arch="own") -> str:
    """Names of nnssl's EvaMAE: beside the encoder a decoder and a head of their own."""
    weights = to_reference(encoder.state_dict(), encoder.config)
    weights |= {"decoder.blocks.0.norm1.weight": torch.ones(24), "mask_token": torch.ones(1, 1, 24)}
    weights |= {"up_projection.decode.0.0.weight": torch.ones(2)}
    return nnssl_file(place, weights, encoder.config.crop_size, arch)


def started(source: str, vit: PrimusConfig):
    module = build_method(MAE, vit, None, 0)
    return module, start_from(module, StartRequest(source, vit))


@pytest.mark.parametrize("registers", [0, 2])
def test_an_openmind_checkpoint_gives_the_same_tokens(registers: int, tmp_path) -> None:
    vit = replace(VIT, registers=registers)
    theirs = lively(Primus3D(vit))
    module, start = started(eva_mae_file(tmp_path / "c.pth", theirs), vit)
    volume = torch.randn(1, 1, *vit.crop_size)
    assert torch.equal(module.get_submodule("encoder")(volume), theirs(volume))
    assert (start.layout, start.doubts, start.resized) == ("nnssl", [], [])
    left = {"decoder.blocks.0.norm1.weight", "mask_token", "up_projection.decode.0.0.weight"}
    assert set(start.left) == left
    assert any("y, z, x" in note for note in start.notes)


def nnunets_resize(table: torch.Tensor, before, after) -> torch.Tensor:
    """interpolate_patch_embed_3d of nnU-Net's load_weights_utils.py (0e49508), line 209."""
    x, y, z = before
    cube = rearrange(table.permute(0, 2, 1), "B C (x y z) -> B C x y z", x=x, y=y, z=z)
    cube = torch.nn.functional.interpolate(
        cube, size=list(after), mode="trilinear", align_corners=False
    )
    return rearrange(cube, "B C x y z -> B C (x y z)").permute(0, 2, 1)


@pytest.mark.parametrize("crop", [(32, 32, 32), (8, 40, 16)])
def test_positions_are_resized_as_nnunet_does(crop, tmp_path) -> None:
    theirs = lively(Primus3D(VIT))
    table = theirs.pos_embed
    assert table is not None
    vit = replace(VIT, crop_size=crop)
    module, start = started(eva_mae_file(tmp_path / "c.pth", theirs), vit)
    wanted = nnunets_resize(table.detach()[None], VIT.grid, vit.grid)[0]
    found = module.get_parameter("encoder.pos_embed").detach()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert start.resized == [f"pos_embed ({VIT.grid} to {vit.grid})"]


def test_channels_are_inflated(tmp_path) -> None:
    theirs = lively(Primus3D(VIT))
    vit = replace(VIT, channels=3)
    module, start = started(eva_mae_file(tmp_path / "c.pth", theirs), vit)
    volume = torch.randn(1, 1, *VIT.crop_size)
    found = module.get_submodule("encoder")(volume.expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(found, theirs(volume), rtol=1e-4, atol=1e-4)
    assert start.resized == ["patch_embed (1 channel inflated to 3)"]


@pytest.mark.parametrize(
    ("changes", "there", "message"),
    [
        ({"depth": 3}, {}, r"set --vit\.width 24 --vit\.depth 2 --vit\.mlp-ratio 2\.66667"),
        ({"registers": 1}, {"registers": 3}, r"encoder\.register_\w+ is \(3, 24\) there"),
    ],
)
def test_another_shape_is_refused_with_what_makes_it_ours(
    changes: dict[str, Any], there: dict[str, Any], message: str, tmp_path
) -> None:
    source = eva_mae_file(tmp_path / "c.pth", lively(Primus3D(replace(VIT, **there))))
    with pytest.raises(ConfigError, match=message):
        started(source, replace(VIT, **changes))


def test_other_heads_and_other_kinds_are_refused(tmp_path) -> None:
    theirs = lively(Primus3D(VIT))
    source = eva_mae_file(tmp_path / "c.pth", theirs, arch="PrimusL")
    with pytest.raises(ConfigError, match=r"PrimusL of 16 attention heads.*--vit\.heads 16"):
        started(source, VIT)
    torch.save({"a": torch.ones(1)}, tmp_path / "no.pth")
    with pytest.raises(CheckpointError, match="holds no Primus"):
        started(str(tmp_path / "no.pth"), VIT)
    save_encoder(tmp_path, VIT, theirs.state_dict(), {})
    plain = ViTConfig((16, 16, 16), (8, 8, 8), width=24, depth=2, heads=2)
    module = build_method(MAEConfig(decoder_width=24, decoder_heads=2), plain, None, 0)
    with pytest.raises(ConfigError, match="holds a primus encoder: take a primus recipe"):
        start_from(module, StartRequest(str(tmp_path), plain))


def test_our_own_primus_goes_on_whole_and_by_its_encoder(tmp_path) -> None:
    module = lively(build_method(MAE, VIT, None, 0))
    torch.save(module.state_dict(), tmp_path / "whole.pth")
    encoder = module.get_submodule("encoder").state_dict()
    save_encoder(tmp_path, VIT, encoder, {})
    again, start = started(str(tmp_path / "whole.pth"), VIT)
    wanted = module.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.state_dict().items())
    assert not start.fresh
    assert not start.left
    again, start = started(str(tmp_path), VIT)
    found = again.get_submodule("encoder").state_dict()
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in found.items())
    assert not start.doubts
    assert not start.left


def resenc_module(resenc: ResEncConfig = RESENC, vit: ViTConfig = UNET_VIT, seed: int = 0):
    return build_method(MAEConfig(normalise_target=False), vit, resenc, seed)


def unet_file(place, module: torch.nn.Module) -> str:
    encoder, decoder = (module.get_submodule(name).state_dict() for name in ("encoder", "decoder"))
    return nnssl_file(place, unet_to_reference(encoder, decoder), (16, 16, 16), "ResEncL")


def test_an_openmind_u_net_gives_the_same_paint(tmp_path) -> None:
    theirs, module = lively(resenc_module()), resenc_module(seed=1)
    request = StartRequest(unet_file(tmp_path / "c.pth", theirs), UNET_VIT, resenc=RESENC)
    start = start_from(module, request)
    wanted = theirs.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in module.state_dict().items())
    assert (start.layout, start.doubts, start.left, start.fresh) == ("nnssl", [], [], [])


def test_a_u_net_of_other_channels_takes_the_encoder_alone(tmp_path) -> None:
    theirs = lively(resenc_module())
    vit = replace(UNET_VIT, channels=2)
    module = resenc_module(vit=vit)
    before = {n: t.clone() for n, t in module.get_submodule("decoder").state_dict().items()}
    request = StartRequest(unet_file(tmp_path / "c.pth", theirs), vit, resenc=RESENC)
    start = start_from(module, request)
    volume = torch.randn(1, 1, *vit.crop_size)
    found = module.get_submodule("encoder")(volume.expand(-1, 2, -1, -1, -1))
    wanted = theirs.get_submodule("encoder")(volume)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    after = module.get_submodule("decoder").state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert start.resized == ["stem (1 channel inflated to 2)"]
    assert not start.doubts


def test_u_nets_that_do_not_fit_are_refused(tmp_path) -> None:
    source = unet_file(tmp_path / "c.pth", lively(resenc_module()))
    wider = replace(RESENC, features=(4, 6, 10))
    with pytest.raises(CheckpointError, match=r"resenc\.features"):
        start_from(resenc_module(wider), StartRequest(source, UNET_VIT, resenc=wider))
    deeper = replace(RESENC, blocks=(1, 3, 1))
    with pytest.raises(CheckpointError, match=r"has no encoder\.stages\.1\.blocks\.2"):
        start_from(resenc_module(deeper), StartRequest(source, UNET_VIT, resenc=deeper))
    encoder = resenc_module().get_submodule("encoder").state_dict()
    save_encoder(tmp_path, UNET_VIT, encoder, {}, RESENC)
    start = start_from(resenc_module(), StartRequest(str(tmp_path), UNET_VIT, resenc=RESENC))
    assert not start.doubts
    with pytest.raises(ConfigError, match=r"set --resenc\.features"):
        start_from(resenc_module(wider), StartRequest(str(tmp_path), UNET_VIT, resenc=wider))


def test_a_published_primus_by_the_class_itself(tmp_path) -> None:
    """Nothing of ours wrote this file."""
    prepare_torchvision()
    from dynamic_network_architectures.architectures.primus import PrimusS

    network = PrimusS(1, 2, (8, 8, 8), (16, 16, 16))
    source = nnssl_file(tmp_path / "s.pth", network.state_dict(), (16, 16, 16), "PrimusS")
    vit = primus("S", 16)
    holder = torch.nn.Module()
    holder.encoder = Primus3D(vit)
    start = start_from(holder, StartRequest(source, vit))
    volume = torch.randn(1, 1, 16, 16, 16)
    tokens = network.down_projection(volume).flatten(2).transpose(1, 2)
    with torch.no_grad():
        found, wanted = holder.encoder(volume), network.eva(tokens)[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert start.doubts == []
