"""`mim3d finetune --augment` with a plugin's augmentation: it is used, kept with the run, asked for
again; the network that it trained is used without it."""

import json

import pytest
import torch
from small_finetune import make_labelled_corpus, small_finetune

from mim3d.dataio.transforms.augment import AUGMENTATIONS
from mim3d.engine.commands import cli
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.finetune import run_finetune

PLUGIN = """
from dataclasses import replace
from mim3d.dataio.transforms.augment import AUGMENTATIONS, Augmentation, register_augmentation

seen = []

def dim(views, seeds):
    seen.append(len(seeds))
    return views * {gain}

register_augmentation("dimmed", Augmentation(flip=0.5, intensity=dim))
"""
SIZE = """--vit.crop-size 16 16 16 --vit.width 12 --vit.depth 2 --vit.heads 2 --feature-size 4
    --steps 2 --eval-every 1 --global-batch 2 --overlap 0 --device cpu
    --data.split.validation 0.15 --data.split.test 0.15""".split()  # noqa: SIM905  words


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_labelled_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A plugin's file; what it registers is forgotten afterwards."""
    kept = dict(AUGMENTATIONS._parts), dict(AUGMENTATIONS._makers)
    monkeypatch.setenv("MIM3D_PLUGINS", "")
    file = tmp_path / f"dimming_{tmp_path.name}.py"
    file.write_text(PLUGIN.format(gain=0.5))
    yield file
    forget(kept)


def forget(kept):
    vars(AUGMENTATIONS).update(_parts=dict(kept[0]), _makers=dict(kept[1]))


def finetune(corpus, out, *more):
    return cli.main(
        ["finetune", "demo", "--data.corpus", str(corpus), "--out", str(out), *SIZE, *more]
    )


def test_it_trains_and_its_network_is_used_without_it(corpus, plugin, tmp_path, capsys):
    before = dict(AUGMENTATIONS._parts), dict(AUGMENTATIONS._makers)
    out = tmp_path / "run"
    given = ["--augment", "dimmed"]
    assert finetune(corpus, out, *given) == 2
    assert "augment='dimmed' is none of: none, mim" in (line := capsys.readouterr().err)
    assert "--plugin FILE" in line
    assert not out.exists()
    assert finetune(corpus, out, *given, "--plugin", str(plugin)) == 0
    import sys

    assert sum(sys.modules[plugin.stem].seen) >= 4  # crops of two steps
    stored = json.loads((out / "config.json").read_text())
    assert [(p["kind"], p["name"]) for p in stored["plugins"]] == [("augmentation", "dimmed")]
    plain = tmp_path / "plain"
    assert finetune(corpus, plain, "--augment", "none") == 0
    assert "plugins" not in json.loads((plain / "config.json").read_text())
    mine, theirs = (torch.load(run / "model.pt") for run in (out, plain))
    assert any(not torch.equal(mine[name], theirs[name]) for name in mine)

    forget(before)
    capsys.readouterr()
    assert finetune(corpus, out, *given) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert error.strip().endswith(f"add --plugin {plugin}")
    assert cli.main(["predict", str(out), str(corpus), str(tmp_path / "predicted")]) == 0


def test_an_augmentation_of_two_views_is_refused(corpus, tmp_path):
    config = small_finetune(corpus, augment="contrastive")
    with pytest.raises(ConfigError, match="take segmentation or upright"):
        run_finetune(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
