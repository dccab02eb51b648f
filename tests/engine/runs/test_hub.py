"""Exported encoders pushed to a hub on loopback: what arrives, who sees it, what is refused."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hub_server import TOKEN, FakeHub, Repository, serving

from mim3d.engine.commands import cli
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.runs.encoder_file import load_encoder, save_encoder
from mim3d.engine.runs.hub import signed

VIT = ViTConfig((16, 16, 16), (8, 8, 8), width=12, depth=1, heads=1)


@pytest.fixture
def run(tmp_path):
    """A folder with an encoder and its card."""
    torch.manual_seed(0)
    save_encoder(tmp_path, VIT, ViT3D(VIT).state_dict(), {"method": "mae", "step": 5})
    return tmp_path


@pytest.fixture
def hub(monkeypatch):
    """A hub that this process pushes to, with a token that it takes."""
    import huggingface_hub._commit_api as uploads

    monkeypatch.setattr(uploads, "is_xet_available", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def push(run, *more, name="lab/brain-mae"):
    """The command's exit code."""
    target = run / "out" / "encoder.safetensors"
    return cli.main(["export", str(run), "safetensors", str(target), "--push", name, *more])


def refused(run, capsys, *more, name="lab/brain-mae"):
    """The one line that it ends in."""
    capsys.readouterr()
    assert push(run, *more, name=name) == 2
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if "%|" not in line and line.strip()]  # bars aside
    assert error.startswith("mim3d export: ")
    return error


def test_weights_and_cards_arrive_in_a_private_repository(run, hub: FakeHub, capsys, tmp_path):
    assert push(run, "--json", str(tmp_path / "figures.json")) == 0
    there = hub.repositories["lab/brain-mae"]
    assert there.private
    assert sorted(there.files) == ["README.md", "encoder.json", "encoder.safetensors"]
    assert there.files["encoder.safetensors"] == (run / "encoder.safetensors").read_bytes()
    assert there.files["encoder.json"] == (run / "out" / "encoder.json").read_bytes()
    readme = there.files["README.md"].decode()
    assert readme.startswith("---\nlibrary_name: mim3d\n")
    assert "snapshot_download('lab/brain-mae')" in readme
    assert f"pushed to {hub.endpoint}/lab/brain-mae, private" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["private"], figures["readme_kept"]) == (True, False)


def test_what_was_pushed_loads_elsewhere_by_the_code_in_its_readme(run, hub, tmp_path):
    assert push(run) == 0
    readme = hub.repositories["lab/brain-mae"].files["README.md"].decode()
    code = readme.partition("```python\n")[2].partition("```")[0]
    code += "\nimport torch; torch.save(encoder.state_dict(), 'found.pt')\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True,
        check=False, env={**os.environ, "HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, wanted = torch.load(tmp_path / "found.pt"), load_encoder(run).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_public_is_asked_for(run, hub, capsys):
    assert push(run, "--push-public") == 0
    assert not hub.repositories["lab/brain-mae"].private
    assert ", public" in capsys.readouterr().out
    hub.repositories["lab/brain-mae"].files.clear()
    assert "it is there and public; add --push-public" in refused(run, capsys)
    assert not hub.repositories["lab/brain-mae"].files
    assert push(run, "--push-public") == 0
    assert hub.repositories["lab/brain-mae"].files


def test_a_card_that_somebody_edited_stays(run, hub, capsys):
    assert push(run) == push(run) == 0  # its own it may replace
    files = hub.repositories["lab/brain-mae"].files
    own = files["README.md"].decode()
    files["README.md"] = own.replace("tags:", "license: mit\ntags:").encode()
    assert push(run) == 0
    assert b"license: mit" in files["README.md"]
    assert files["encoder.md"].decode() == own
    assert "README.md there is not mim3d's and stays" in capsys.readouterr().out
    assert signed("text") != signed("text2")


def test_without_a_token(run, hub, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(run / "none"))
    assert "no token for" in (line := refused(run, capsys))
    assert "set HF_TOKEN, or log in with `hf auth login`" in line
    assert not (run / "out").exists()  # before anything is written
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert push(run) == 0


def test_a_token_that_is_not_taken(run, hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    assert "it does not take the token" in (line := refused(run, capsys))
    assert "out/encoder.safetensors is written" in line
    assert "hf_old" not in line
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert push(run) == 0


def test_a_repository_of_somebody_else(run, hub, capsys):
    line = refused(run, capsys, name="others/brain")
    assert "may not write there (You don't have the rights" in line
    assert "name a repository of your own by --push" in line
    assert push(run, name="lab/brain") == 0


@pytest.mark.parametrize("name", ["brain", "lab/", "/x", "lab/a/b", "https://huggingface.co/lab/x"])
def test_names_that_are_no_repository(run, hub, capsys, name):
    line = refused(run, capsys, name=name)
    assert "write OWNER/NAME, such as --push my-lab/" in line
    assert not hub.seen


def test_a_hub_that_is_not_reached(run, hub, capsys, monkeypatch):
    working = hub.endpoint
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    line = refused(run, capsys)
    assert "http://127.0.0.1:9 cannot be reached" in line
    assert "look at the network and HF_ENDPOINT" in line
    monkeypatch.setenv("HF_ENDPOINT", working)
    assert push(run) == 0


def test_a_hub_that_fails(run, hub, capsys):
    hub.broken = True
    line = refused(run, capsys)
    assert "answered 500" in line
    assert "run the same command again later" in line
    hub.broken = False
    assert push(run) == 0


def test_what_is_not_pushed(run, hub, capsys):
    assert cli.main(["export", str(run), "nnunet", str(run / "x.pth"), "--push", "lab/x"]) == 2
    assert "push the safetensors form" in capsys.readouterr().err
    assert cli.main(["export", str(run), "safetensors", str(run / "x.safetensors"),
                     "--push-public"]) == 2  # fmt: skip
    assert "says nothing without --push" in capsys.readouterr().err
    assert Repository(True).files == {}
    assert not hub.seen


def test_offline_is_told(run, hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "unset HF_HUB_OFFLINE" in refused(run, capsys)
