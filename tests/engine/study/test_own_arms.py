"""Methods and encoders of a plugin as arms of `mim3d compare`, from the command line."""

import json
from typing import Any

import pytest
from small_finetune import make_labelled_corpus

from mim3d.dataio.registry import Registry
from mim3d.engine.commands import cli
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.own_fields import read_words
from mim3d.engine.models.registry import ENCODERS, METHODS
from mim3d.engine.study.arms import differences, encoder_of
from mim3d.engine.study.config import PretrainPlan, StudyConfig, Variant
from mim3d.engine.study.plan import method_config, pretrain_config, pretrainings
from mim3d.engine.study.variation import varied

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from mim3d import register_encoder, register_method
from mim3d.engine.models import MethodConfig, Objective, StepOutput
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.vit import ViT3D


@dataclass(frozen=True)
class BrightConfig(MethodConfig):
    """How bright is a crop?"""

    name: ClassVar[str] = "bright-guess"
    hidden: int = 8
    square: bool = False


class Bright(Objective):
    def __init__(self, config, shape, seed):
        super().__init__()
        self.encoder = shape.make()
        hidden = config.hidden
        self.head = nn.Sequential(nn.Linear(shape.width, hidden), nn.Linear(hidden, 1))

    def forward(self, batch, share=1.0, measure=False):
        found = self.head(self.encoder(batch.image).mean(1))[:, 0]
        return StepOutput((found - batch.image.mean((1, 2, 3, 4))).abs().mean() * share, {})


@dataclass(frozen=True)
class LoudConfig(ViTConfig):
    gain: float = 2.0


class Loud(ViT3D):
    def embed(self, rows, ids=None):
        return self.config.gain * super().embed(rows, ids)


@dataclass(frozen=True)
class BareConfig(ViTConfig):
    """Gives tokens and nothing else."""


class Bare(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.embed = config, nn.Linear(1, config.width)

    def forward(self, volume):
        return self.embed(volume.mean((1, 2, 3, 4))[:, None, None].expand(-1, 8, 1))


register_method(BrightConfig, Bright)
register_encoder("loud", LoudConfig, Loud)
register_encoder("bare", BareConfig, Bare)
'''
SIZE = """--vit.crop-size 16 16 16 --vit.patch-size 8 8 8 --vit.width 12 --vit.depth 1 --vit.heads 2
    --seeds 0 --labels 1.0 --pretrain.crops 16 --finetune.steps 2 --finetune.eval-every 1
    --finetune.global-batch 2 --finetune.feature-size 4 --finetune.lr 1e-3
    --finetune.encoder-lr-scale 1.0 --data.split.validation 1 --data.split.test 1
    --workers 1 --device cpu""".split()  # noqa: SIM905  words


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_labelled_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """A plugin's file; what it registers is forgotten afterwards."""
    registries: tuple[Registry[Any], ...] = (METHODS, ENCODERS)
    kept = [(each, dict(each._parts), dict(each._makers)) for each in registries]
    file = tmp_path_factory.mktemp("plugin") / "bright_plugin.py"
    file.write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIM3D_PLUGINS", "")  # which it adds to
        assert cli.main(["env", "--plugin", str(file)]) == 0
        yield file
    for each, parts, makers in kept:
        vars(each).update(_parts=parts, _makers=makers)


def compare(corpus, out, *more):
    return cli.main(["compare", "demo", "--data.corpus", str(corpus), "--out", str(out), *SIZE,
                     *more])  # fmt: skip


def refused(corpus, out, capsys, *more):
    """The one line that a study is refused in."""
    capsys.readouterr()
    assert compare(corpus, out, *more) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    return error


@pytest.mark.slow
def test_a_method_and_an_encoder_of_ones_own_are_compared(corpus, plugin, tmp_path, capsys):
    words = ["--arms", "scratch", "bright-guess", "--encoders", "vit", "loud"]
    words += ["--heads", "tokens", "--pretrain.own", "bright-guess.global_batch=8",
              "bright-guess.hidden=6", "--shapes.own", "loud.gain=3"]  # fmt: skip
    words += ["--plugin", str(plugin)]
    out = tmp_path / "study"
    assert compare(corpus, out, *words) == 0
    said = capsys.readouterr().out
    assert "bright-guess has lr 0.001, as mae has (--pretrain.own bright-guess.lr=NUMBER)" in said
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {(row["arm"], row["encoder"]) for row in rows} == {
        ("scratch", "vit"), ("bright-guess", "vit"), ("scratch", "loud"), ("bright-guess", "loud"),
    }  # fmt: skip
    runs = {run.name: json.loads((run / "config.json").read_text())
            for run in (out / "pretrain").iterdir()}  # fmt: skip
    assert len(runs) == 2
    for name, stored in runs.items():
        assert stored["method"]["hidden"] == 6
        assert stored["global_batch"] == 8
        assert stored["steps"] == 2
        assert stored["vit"].get("gain") == (3.0 if "loud" in name else None)
    entries = json.loads((out / "pretraining.json").read_text())
    assert {entry["trained"] for entry in entries} == {None}  # it tells no baseline
    report = (out / "report.html").read_text()
    assert "nobody knows whether its pretext task was learned" in report
    assert compare(corpus, out, *words) == 0  # nothing is run again
    assert cli.main(["compare", "--report", "--out", str(out)]) == 0  # nor is the plugin needed


def test_names_that_are_not_there_are_refused_with_the_remedy(corpus, tmp_path, capsys):
    line = refused(corpus, tmp_path / "s", capsys, "--arms", "scratch", "brighter")
    assert "or a method of a plugin (--plugin FILE)" in line
    line = refused(corpus, tmp_path / "s", capsys, "--encoders", "vit", "louder")
    assert "nor of a plugin (--plugin FILE)" in line
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (("bright-guess",), "must be NAME.FIELD=VALUE"),
        (
            ("bright-guess.hiden=3",),
            "has a field 'hiden', which BrightConfig has not: it has hidden",
        ),
        (("bright-guess.hidden=many",), "'many' is no value such as 8"),
        (("bright-guess.lr=-1",), "lr -1.0 must be positive"),
        (("dim.lr=1",), "no arm is dim; of plugins there are bright-guess"),
    ],
)
def test_what_is_said_of_a_method_is_checked(plugin, own, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        differences(StudyConfig(arms=("scratch", "bright-guess"), pretrain=PretrainPlan(own=own)))


def test_fields_of_each_kind_are_read(plugin):
    words = ("bright-guess.square=yes", "bright-guess.hidden=3", "bright-guess.lr=5e-4")
    config = StudyConfig(arms=("scratch", "bright-guess"), pretrain=PretrainPlan(own=words))
    method: Any = method_config(config, "bright-guess", Variant())
    assert (method.square, method.hidden, config.pretrain.arm("bright-guess").lr) == (True, 3, 5e-4)
    assert read_words(["a.b-c.d-e=f=g"], "x") == {"a.b-c": {"d_e": "f=g"}}
    # Of several settings those count that a plugin's method has.
    many = varied(config, ["crops=64,128", "lr=1e-3,2e-3"])
    assert len(pretrainings(many)) == 4 * len(config.seeds)
    assert config.variants[0].of("bright-guess") == Variant()


def test_crops_of_equal_flops(plugin):
    from mim3d.engine.finetune.splits import Splits

    config = StudyConfig(arms=("scratch", "mae", "bright-guess"), matching=("flops",))
    names = {each.arm for each in pretrainings(config)}
    assert names == {"mae", "bright-guess-flops"}
    splits = Splits(("a",), ("b",), (), ("a",), (), ())
    steps = {each.arm: pretrain_config(config, each, splits).steps for each in pretrainings(config)}
    assert steps["bright-guess-flops"] < steps["mae"]


def test_an_encoder_has_the_studys_size(plugin):
    shape = encoder_of(StudyConfig(), "loud", Variant(depth=2))
    assert (shape.kind, shape.vit.depth, shape.vit.width) == ("loud", 2, 768)


def test_an_encoder_without_states_is_refused_by_decoders(corpus, plugin, tmp_path, capsys):
    words = ["--arms", "scratch@bare", "bright-guess@bare", "--heads", "tokens"]
    line = refused(corpus, tmp_path / "s", capsys, *words)
    assert "nothing was started" in line
    assert "derive it from ViT3D in its plugin, or take --head classify" in line


def test_a_method_that_breaks_is_told_before_anything_runs(corpus, plugin, tmp_path, capsys):
    words = ["--arms", "scratch", "bright-guess", "--pretrain.own", "bright-guess.hidden=-1"]
    line = refused(corpus, tmp_path / "s", capsys, *words)
    assert "pretraining bright-guess" in line
    assert "RuntimeError: " in line
