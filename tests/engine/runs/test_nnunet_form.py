"""The nnU-Net checkpoint is loaded into the real network class and must compute the same."""

import importlib.util
import json
import runpy
import sys
import types
from pathlib import Path

import pytest
import torch
from references import prepare_torchvision

from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.models.config import SwinConfig, ViTConfig
from mim3d.engine.models.swin import SwinEncoder
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.runs.encoder_file import load_encoder, save_encoder
from mim3d.engine.runs.export import export_encoder

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "nnunet" / "mim3d_trainer.py"
VIT = ViTConfig((16, 32, 24), (8, 8, 4), channels=2, width=24, depth=3, heads=2, mlp_ratio=3.0)
PRETRAINED = "nnunetv2.training.nnUNetTrainer.pretraining.pretrainedTrainer"


@pytest.fixture(params=["sincos", "learned"])
def run(request, tmp_path):
    torch.manual_seed(0)
    vit = ViTConfig(**{**vars(VIT), "position": request.param})
    encoder = ViT3D(vit)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_encoder(tmp_path, vit, encoder.state_dict(), {"method": "mae", "step": 7})
    return tmp_path


def network_class(monkeypatch):
    """The example's network; nnU-Net's trainer is stood in for where nnU-Net is not installed."""
    prepare_torchvision()
    try:
        found = importlib.util.find_spec(PRETRAINED)
    except ImportError:
        found = None
    if found is None:
        module = types.ModuleType(PRETRAINED)
        module.PretrainedTrainer_Primus = object  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setitem(sys.modules, PRETRAINED, module)
        for end in range(1, PRETRAINED.count(".") + 1):
            name = ".".join(PRETRAINED.split(".")[:end])
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    return runpy.run_path(str(EXAMPLE))


def test_the_real_classes_compute_the_same_tokens(run, tmp_path, monkeypatch):
    example = network_class(monkeypatch)
    done = export_encoder(run, "nnunet", tmp_path / "out" / "encoder.pth", "zyx")
    stored = torch.load(done.weights, weights_only=True)
    plan = stored["nnssl_adaptation_plan"]
    build = example["PretrainedTrainer_Mim3d"].build_network_architecture
    network = build(
        architecture_class_name=plan["architecture_plans"]["arch_class_name"],
        arch_init_kwargs=plan["architecture_plans"]["arch_kwargs"],
        arch_init_kwargs_req_import=[],
        input_patch_size=plan["recommended_downstream_patchsize"],
        num_input_channels=2,
        num_output_channels=3,
    ).eval()
    for key in ("key_to_encoder", "key_to_stem"):
        part = network.get_submodule(plan[key])
        prefix = plan[key] + "."
        part.load_state_dict(
            {
                name.removeprefix(prefix): tensor
                for name, tensor in stored["network_weights"].items()
                if name.startswith(prefix)
            }
        )
    volume = torch.randn(2, 2, *VIT.crop_size)
    with torch.no_grad():
        tokens = network.down_projection(volume).flatten(2).transpose(1, 2)
        theirs, _ = network.eva(tokens)
        torch.testing.assert_close(theirs, load_encoder(run)(volume), rtol=1e-4, atol=1e-5)
        assert network(volume).shape == (2, 3, *VIT.crop_size)
    with pytest.raises(ValueError, match="mim3d export RUN nnunet"):
        build(num_input_channels=2, num_output_channels=3)


def test_the_checkpoint_is_of_plain_types_and_complete(run, tmp_path):
    """Without nnU-Net: what its loader reads is there, and the numbers are the encoder's own."""
    with pytest.raises(ConfigError, match="choose another name"):
        export_encoder(run, "nnunet", run / "encoder.pth", "zyx")
    done = export_encoder(run, "nnunet", tmp_path / "nnunet.pth", "zyx")
    stored = torch.load(done.weights, weights_only=True)
    weights, plan = stored["network_weights"], stored["nnssl_adaptation_plan"]
    encoder = load_encoder(run)
    assert json.loads(json.dumps(plan)) == plan
    assert plan["pretrain_num_input_channels"] == 2
    (pretrain,) = plan["pretrain_plan"]["configurations"].values()
    assert pretrain["patch_size"] == [16, 32, 24]
    for key in ("key_to_encoder", "key_to_stem"):
        assert any(name.startswith(plan[key]) for name in weights)
    assert torch.equal(weights[plan["key_to_lpe"]][0], encoder.positions())
    kernel = weights[plan["keys_to_in_proj"][0] + ".weight"]
    assert kernel.shape == (24, 2, 8, 8, 4)
    left_out = encoder.config.depth * encoder.config.width  # the keys' biases
    padding = encoder.patch_embed.weight.numel() - kernel.numel()
    positions = 0 if encoder.pos_embed is not None else encoder.positions().numel()
    ours = sum(p.numel() for p in encoder.parameters()) + positions
    assert sum(t.numel() for t in weights.values()) == ours - left_out - padding
    card = json.loads(done.card.read_text())
    assert card["trainer"] == "PretrainedTrainer_Mim3d"
    assert card["method"] == "mae"
    assert done.tensors == len(weights)


def test_what_primus_cannot_decode_is_refused(tmp_path):
    vit = ViTConfig((12, 12, 12), (6, 6, 6), width=24, depth=1, heads=2)
    save_encoder(tmp_path, vit, ViT3D(vit).state_dict(), {})
    with pytest.raises(ConfigError, match=r"patch_size \(6, 6, 6\).*powers of two"):
        export_encoder(tmp_path, "nnunet", tmp_path / "x.pth", "zyx")
    with pytest.raises(ConfigError, match=r"must end in \.pth"):
        export_encoder(tmp_path, "nnunet", tmp_path / "x.safetensors", "zyx")


def test_a_swin_encoder_is_refused(tmp_path):
    vit, swin = ViTConfig((32, 32, 32), (16, 16, 16)), SwinConfig(feature_size=12)
    save_encoder(tmp_path, vit, SwinEncoder(swin, vit).state_dict(), {}, swin)
    with pytest.raises(CheckpointError, match="holds a swin encoder, a vit is needed"):
        export_encoder(tmp_path, "nnunet", tmp_path / "x.pth", "zyx")
