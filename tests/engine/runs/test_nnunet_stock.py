"""Our runs, loaded strictly by stock nnU-Net's classes and by 2.8.1's own loader."""

import json
from dataclasses import replace
from pydoc import locate
from typing import Any

import pytest
import torch
from references import prepare_torchvision
from small_run import make_corpus, small_config

from mim3d.engine.commands.weights.export import main
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.primus.config import PrimusConfig, primus
from mim3d.engine.models.primus.encoder import Primus3D
from mim3d.engine.models.resenc.config import RESENC_L, ResEncConfig
from mim3d.engine.models.resenc.encoder import ResEncEncoder
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.runs.encoder_file import load_encoder, load_resenc, save_encoder
from mim3d.engine.runs.export import export_encoder
from mim3d.engine.transfer.given_weights import open_weights
from mim3d.engine.transfer.nnssl_plan import pretrained_crop


def load_as_nnunet_does(network, stored: dict[str, Any]) -> None:
    """PretrainedTrainer.load_pretrained_weights of nnU-Net's main branch (0e49508), same crop."""
    plan, weights = stored["nnssl_adaptation_plan"], stored["network_weights"]
    assert plan["key_to_stem"] not in weights
    assert (network.key_to_encoder, network.key_to_stem) == (
        plan["key_to_encoder"], plan["key_to_stem"],
    )  # fmt: skip
    for key in (network.key_to_encoder, network.key_to_stem):
        part = {n: t for n, t in weights.items() if n.startswith(key)}
        stripped = {n.replace(key, "").removeprefix("."): t for n, t in part.items()}
        network.get_submodule(key).load_state_dict(stripped)
    for key in plan["keys_to_in_proj"]:
        assert f"{key}.weight" in weights
    if network.key_to_lpe is not None:
        (lpe,) = (t for n, t in weights.items() if n.startswith(plan["key_to_lpe"]))
        network.get_parameter(network.key_to_lpe).data = lpe


def test_a_primus_becomes_nnunets_own(tmp_path) -> None:
    prepare_torchvision()
    from dynamic_network_architectures.architectures import primus as architectures

    vit = primus("S", 16)
    torch.manual_seed(0)
    encoder = Primus3D(vit)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_encoder(tmp_path, vit, encoder.state_dict(), {"method": "mae", "step": 7})
    outcome = main([str(tmp_path), "nnunet", str(tmp_path / "out" / "s.pth")])
    stored = torch.load(outcome.figures["weights"], weights_only=True)
    plan = stored["nnssl_adaptation_plan"]
    assert json.loads(json.dumps(plan)) == plan
    assert pretrained_crop({"nnssl": plan}) == vit.crop_size
    # get_network_from_name of nnU-Net: by the name alone, patches of 8.
    build = getattr(architectures, plan["architecture_plans"]["arch_class_name"])
    network = build(1, 3, (8, 8, 8), tuple(plan["recommended_downstream_patchsize"])).eval()
    load_as_nnunet_does(network, stored)
    volume = torch.randn(1, 1, *vit.crop_size)
    tokens = network.down_projection(volume).flatten(2).transpose(1, 2)
    with torch.no_grad():
        found, wanted = network.eva(tokens)[0], load_encoder(tmp_path)(volume)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def unet_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unet")
    base = small_config(make_corpus(folder), "mae")
    resenc = ResEncConfig((4, 6, 8), (1, 2, 1), masking="sparse")
    config = replace(base, vit=ViTConfig((16, 16, 32), (4, 4, 4)), resenc=resenc, steps=4)
    run_pretrain(config, folder / "run")
    return folder / "run"


def stock_unet(plan: dict[str, Any], outputs: int):
    """get_network_from_plans of nnU-Net: the class by its name, arguments with classes found."""
    prepare_torchvision()
    architecture = plan["architecture_plans"]
    arguments = dict(architecture["arch_kwargs"])
    for name in architecture["arch_kwargs_requiring_import"]:
        if arguments[name] is not None:
            arguments[name] = locate(arguments[name])
    build: Any = locate(architecture["arch_class_name"])
    return build(input_channels=1, num_classes=outputs, deep_supervision=False, **arguments).eval()


def test_a_u_net_goes_whole_into_stock_nnunet(unet_run, tmp_path, capsys) -> None:
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    outcome = main([str(unet_run), "nnunet", str(tmp_path / "u.pth")])
    stored = torch.load(outcome.figures["weights"], weights_only=True)
    network = stock_unet(stored["nnssl_adaptation_plan"], outputs=3)
    load_pretrained_weights(network, outcome.figures["weights"])
    volume = torch.randn(1, 1, 16, 16, 32)
    with torch.no_grad():
        maps = load_resenc(unet_run).maps(volume)
        for found, wanted in zip(network.encoder(volume), maps, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    trained = open_weights(unet_run).tensors["decoder.levels.0.up.weight"]
    assert torch.equal(network.decoder.transpconvs[0].weight, trained)
    network = stock_unet(stored["nnssl_adaptation_plan"], outputs=2)
    load_as_nnunet_does(network, stored)
    with torch.no_grad():
        torch.testing.assert_close(network.encoder(volume)[-1], maps[-1], rtol=1e-5, atol=1e-5)


def test_an_encoder_alone_says_so(unet_run, tmp_path, capsys) -> None:
    outcome = main([str(unet_run / "encoder.safetensors"), "nnunet", str(tmp_path / "u.pth")])
    assert "its encoder goes alone" in capsys.readouterr().out
    weights = torch.load(outcome.figures["weights"], weights_only=True)["network_weights"]
    assert not any(name.startswith("decoder.") for name in weights)
    card = json.loads((tmp_path / "u.json").read_text())
    assert card["expected_missing"] == ["decoder*"]


def test_resenc_l_is_named_as_nnunet_names_it(tmp_path) -> None:
    vit = ViTConfig((64, 64, 64), (16, 16, 16))
    encoder = ResEncEncoder(RESENC_L, vit)
    save_encoder(tmp_path, vit, encoder.state_dict(), {}, RESENC_L)
    done = export_encoder(tmp_path, "nnunet", tmp_path / "l.pth", "zyx")
    plan = torch.load(done.weights, weights_only=True, mmap=True)["nnssl_adaptation_plan"]
    assert plan["architecture_plans"]["arch_class_name"] == "ResEncL"


def test_what_has_no_home_there_is_refused(tmp_path) -> None:
    vit = PrimusConfig((16, 16, 16), (8, 8, 8), width=24, depth=1, heads=2)
    save_encoder(tmp_path, vit, Primus3D(vit).state_dict(), {})
    with pytest.raises(ConfigError, match=r"the published ones only .*Export as safetensors"):
        export_encoder(tmp_path, "nnunet", tmp_path / "x.pth", "zyx")
    done = export_encoder(tmp_path, "safetensors", tmp_path / "x.safetensors", "zyx")
    assert isinstance(load_encoder(done.weights), Primus3D)
    with pytest.raises(ConfigError, match="export it as nnunet or safetensors"):
        export_encoder(tmp_path, "monai-unetr", tmp_path / "y.safetensors", "xyz")
