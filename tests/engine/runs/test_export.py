"""Exports are loaded into the real classes and must compute the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mim3d.engine.commands.weights.export import main
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.models.config import SwinConfig, ViTConfig
from mim3d.engine.models.swin import SwinEncoder
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.runs.encoder_file import load_encoder, load_swin, save_encoder
from mim3d.engine.runs.export import export_encoder, load_exported

UNETR = ViTConfig((32, 48, 64), (16, 16, 16), channels=2, width=24, depth=12, heads=2)


@pytest.fixture
def vit_run(tmp_path):
    torch.manual_seed(0)
    encoder = ViT3D(UNETR)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_encoder(tmp_path, UNETR, encoder.state_dict(), {"method": "mae", "step": 7})
    return tmp_path


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
def test_monais_unetr_computes_the_same_tokens(vit_run, tmp_path, axes):
    from monai.networks.nets import UNETR as MonaiUNETR

    done = export_encoder(vit_run, "monai-unetr", tmp_path / "out" / "u.safetensors", axes)
    card = json.loads(done.card.read_text())
    network = MonaiUNETR(out_channels=3, feature_size=8, **card["arguments"]).eval()
    load_exported(network, done.weights)
    encoder = load_encoder(vit_run)
    volume = torch.randn(2, 2, 32, 48, 64)
    with torch.no_grad():
        ours = encoder(volume).reshape(2, 2, 3, 4, 24)
        states = encoder.hidden_states(volume)
        if axes == "zyx":
            theirs, hidden = network.vit(volume)
            theirs = theirs.reshape(2, 2, 3, 4, 24)
        else:
            theirs, hidden = network.vit(volume.permute(0, 1, 4, 3, 2))
            theirs = theirs.reshape(2, 4, 3, 2, 24).permute(0, 3, 2, 1, 4)
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
        assert len(hidden) == len(states)
        shape = volume.permute(0, 1, 4, 3, 2) if axes == "xyz" else volume
        assert network(shape).shape[1] == 3
    assert card["method"] == "mae"


def test_monais_swinunetr_computes_the_same_map(tmp_path):
    from monai.networks.nets import SwinUNETR

    vit, swin = ViTConfig((32, 32, 64), (16, 16, 16)), SwinConfig(feature_size=12)
    encoder = SwinEncoder(swin, vit)
    save_encoder(tmp_path, vit, encoder.state_dict(), {"method": "simmim"}, swin)
    done = export_encoder(tmp_path, "monai-swinunetr", tmp_path / "s.safetensors", "zyx")
    network = SwinUNETR(out_channels=2, **json.loads(done.card.read_text())["arguments"]).eval()
    load_exported(network, done.weights)
    volume = torch.randn(1, 1, 32, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.swinViT(volume)[4], encoder.deepest(volume))
    torch.testing.assert_close(load_swin(tmp_path)(volume), encoder(volume))
    with pytest.raises(ConfigError, match="--axes zyx"):
        export_encoder(tmp_path, "monai-swinunetr", tmp_path / "s.safetensors", "xyz")
    with pytest.raises(CheckpointError, match="holds a swin encoder, a vit is needed"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
def test_monais_vit_computes_the_same_tokens_at_any_patch_size(tmp_path, axes):
    from monai.networks.nets import ViT

    vit = ViTConfig((16, 24, 32), (4, 8, 16), channels=2, width=24, depth=3, heads=2)
    torch.manual_seed(1)
    encoder = ViT3D(vit)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_encoder(tmp_path, vit, encoder.state_dict(), {"method": "mae"})
    done = export_encoder(tmp_path, "monai-vit", tmp_path / "v.safetensors", axes)
    network = ViT(**json.loads(done.card.read_text())["arguments"]).eval()
    load_exported(network, done.weights)
    volume = torch.randn(2, 2, 16, 24, 32)
    with torch.no_grad():
        ours = encoder(volume)
        if axes == "zyx":
            theirs = network(volume)[0]
        else:
            theirs = network(volume.permute(0, 1, 4, 3, 2))[0]
            theirs = theirs.reshape(2, 2, 3, 4, 24).permute(0, 3, 2, 1, 4).flatten(1, 3)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def code_of(readme: Path) -> str:
    """The Python of a card."""
    return readme.read_text().split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("form", ["safetensors", "monai-unetr", "monai-vit"])
def test_the_code_in_the_card_loads_the_weights_and_hides_no_dropped_tensor(
    vit_run, tmp_path, form, monkeypatch, capsys
):
    target = tmp_path / "out" / "weights.safetensors"
    main([str(vit_run), form, str(target)])
    told = capsys.readouterr().out
    monkeypatch.chdir(target.parent)
    code = code_of(target.with_suffix(".md"))
    names: dict = {}
    exec(code, names)
    if form == "safetensors":
        assert torch.equal(names["encoder"].norm.bias, load_encoder(vit_run).norm.bias)
        return
    stored = {name for name, _ in names["network"].named_parameters()}
    assert any("qkv.bias" in name for name in stored)
    assert "qkv_bias=True" in told
    card = json.loads(target.with_suffix(".json").read_text())
    assert card["must_set"]["qkv_bias"] is True
    with pytest.raises(AssertionError, match=r"qkv\.bias"):
        exec(code.replace("qkv_bias=True", "qkv_bias=False"), {})


def test_the_swin_card_loads_too(tmp_path, monkeypatch):
    vit, swin = ViTConfig((32, 32, 64), (16, 16, 16)), SwinConfig(feature_size=12)
    save_encoder(tmp_path, vit, SwinEncoder(swin, vit).state_dict(), {"method": "simmim"}, swin)
    monkeypatch.chdir(tmp_path)
    for form in ("monai-swinunetr", "safetensors"):
        done = export_encoder(tmp_path, form, tmp_path / f"{form}.safetensors", "zyx")
        exec(code_of(done.readme), {})


def test_the_card_tells_data_recipe_normalisation_spacing_and_hashes(tmp_path):
    from small_run import make_corpus, small_config

    from mim3d.engine.pretrain.pretrain import run_pretrain

    run_pretrain(small_config(make_corpus(tmp_path), steps=1), tmp_path / "run")
    done = export_encoder(tmp_path / "run", "safetensors", tmp_path / "e.safetensors", "zyx")
    text = done.readme.read_text()
    head = text.split("---")[1]
    assert "library_name: mim3d" in head
    assert "- mae" in head
    card = json.loads(done.card.read_text())
    for part in ("corpus_sha256", "config_sha256", "weights_sha256", "normalise"):
        assert card[part] in text, part
    low, high = (card["scans"][name][0] for name in ("smallest_mm", "largest_mm"))
    assert f"{low:.4g}" in text
    assert f"{high:.4g}" in text
    assert "| orientation | RAS |" in text
    assert "| crop (z, y, x) | 16 x 16 x 32 |" in text


def test_safetensors_is_a_run_file_again(vit_run, tmp_path):
    outcome = main([str(vit_run), "safetensors", str(tmp_path / "copy" / "e.safetensors")])
    assert outcome.figures["tensors"] > 100
    copied = load_encoder(tmp_path / "copy" / "e.safetensors")
    for name, tensor in load_encoder(vit_run).state_dict().items():
        assert torch.equal(tensor, copied.state_dict()[name])


def test_what_unetr_cannot_hold_is_refused(tmp_path):
    vit = ViTConfig((32, 32, 32), (8, 8, 8), width=24, depth=2, heads=2)
    save_encoder(tmp_path, vit, ViT3D(vit).state_dict(), {})
    with pytest.raises(ConfigError, match=r"patch_size \(8, 8, 8\) and vit.depth 2"):
        export_encoder(tmp_path, "monai-unetr", tmp_path / "x.safetensors", "xyz")


def test_a_wrong_network_is_told(vit_run, tmp_path):
    done = export_encoder(vit_run, "monai-unetr", tmp_path / "u.safetensors", "zyx")
    with pytest.raises(ConfigError, match=r"build monai\.networks\.nets\.UNETR with"):
        load_exported(torch.nn.Linear(2, 2), done.weights)


@pytest.mark.parametrize(
    "damage", ["missing key", "wrong shape", "no card", "no weights", "rubbish"]
)
def test_encoder_files_are_checked(vit_run, damage):
    from safetensors.torch import load_file, save_file

    weights = vit_run / "encoder.safetensors"
    state = load_file(weights)
    if damage == "missing key":
        del state["norm.bias"]
        save_file(state, weights)
        wanted = r"missing \['norm.bias'\]"
    elif damage == "wrong shape":
        state["norm.bias"] = torch.zeros(3)
        save_file(state, weights)
        wanted = r"norm.bias \(3,\) instead of \(24,\)"
    elif damage == "no card":
        (vit_run / "encoder.json").unlink()
        wanted = "encoder.json is missing"
    elif damage == "no weights":
        weights.unlink()
        wanted = "encoder.safetensors is missing"
    else:
        weights.write_bytes(b"rubbish")
        wanted = "cannot be read"
    with pytest.raises(CheckpointError, match=wanted):
        load_encoder(vit_run)


def test_the_command_ends_with_one_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mim3d.engine.commands.cli",
        "export",
        str(tmp_path),
        "safetensors",
    ]
    done = subprocess.run(
        [*command, str(tmp_path / "x.safetensors")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "encoder.safetensors is missing" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("form", ["safetensors", "monai-unetr", "load"])
def test_weights_that_are_not_the_cards_are_refused(vit_run, tmp_path, form):
    """One flipped bit keeps every name and shape: only the hash tells."""
    weights = vit_run / "encoder.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"does not match its card: sha256 .* restore it"):
        if form == "load":
            load_encoder(vit_run)
        else:
            export_encoder(vit_run, form, tmp_path / "out" / "u.safetensors", "zyx")
    assert not (tmp_path / "out" / "u.safetensors").exists()
