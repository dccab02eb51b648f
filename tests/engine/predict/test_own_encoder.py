"""A network around a plugin's encoder: its class comes back, and the plugin is asked for."""

import sys
from dataclasses import fields
from typing import Any

import pytest
from small_finetune import VIT, make_labelled_corpus, small_finetune

from mim3d.dataio.plugins import load_plugin
from mim3d.dataio.registry import Registry
from mim3d.engine.commands import cli
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.finetune.finetune import run_finetune
from mim3d.engine.finetune.trained import load_network, read_trained
from mim3d.engine.models.registry import ENCODERS

PLUGIN = """
from dataclasses import dataclass
from mim3d import register_encoder
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.vit import ViT3D


@dataclass(frozen=True)
class TwiceConfig(ViTConfig):
    pass  # no field tells it from a ViT


class Twice(ViT3D):
    def embed(self, rows, ids=None):
        return 2.0 * super().embed(rows, ids)


register_encoder("twice", TwiceConfig, Twice)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    registry: Registry[Any] = ENCODERS
    kept = dict(registry._parts), dict(registry._makers)
    monkeypatch.setenv("MIM3D_PLUGINS", "")  # which it adds to
    file = tmp_path / f"twice_{tmp_path.name}.py"
    file.write_text(PLUGIN)
    load_plugin(str(file))
    yield file, lambda: vars(registry).update(_parts=dict(kept[0]), _makers=dict(kept[1]))
    vars(registry).update(_parts=kept[0], _makers=kept[1])


def test_its_class_comes_back_and_the_plugin_is_asked_for(plugin, tmp_path, capsys):
    file, forget = plugin
    corpus = make_labelled_corpus(tmp_path)
    twice = sys.modules[file.stem].TwiceConfig
    vit = twice(**{field.name: getattr(VIT, field.name) for field in fields(VIT)})
    config = small_finetune(corpus, vit=vit, head="tokens", steps=2)
    out = tmp_path / "run"
    run_finetune(config, out)
    trained = read_trained(out)
    assert type(trained.config.vit) is twice
    assert trained.config == config
    encoder = load_network(out, trained).get_submodule("encoder")
    assert type(encoder).__name__ == "Twice"
    with pytest.raises(ConfigError, match="encoder"):  # of the same size, and another one
        run_finetune(small_finetune(corpus, vit=VIT, head="tokens", steps=2), out)
    forget()
    with pytest.raises(CheckpointError, match="the encoder 'twice' of a plugin"):
        read_trained(out)
    assert cli.main(["predict", str(out), str(corpus), str(tmp_path / "p")]) == 2
    assert capsys.readouterr().err.strip().endswith(f"add --plugin {file}")
