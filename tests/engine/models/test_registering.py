"""Methods and encoders of one's own: what is refused, what is built, and what it costs."""

import pickle
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from mim3d.dataio.registry import NameClashError, Registry, UnknownNameError
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import MAEConfig, MethodConfig, SimCLRConfig, SwinConfig, ViTConfig
from mim3d.engine.models.flops import crop_flops, encoder_flops
from mim3d.engine.models.mae import MAE
from mim3d.engine.models.objective import Objective, StepOutput
from mim3d.engine.models.registering import register_encoder, register_method, register_way
from mim3d.engine.models.registry import ENCODERS, METHODS, EncoderShape, encoder_kind, way_of
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.planning.machine import known_machine
from mim3d.engine.planning.memory import activation_values
from mim3d.engine.planning.plan import make_plan
from mim3d.engine.pretrain.config import PretrainConfig, config_dict, config_identity, identity_of
from mim3d.engine.pretrain.recipes import recipe
from mim3d.engine.pretrain.run_folder import parts_of

VIT = ViTConfig((16, 16, 16), (8, 8, 8), width=24, depth=2, heads=2)


@dataclass(frozen=True)
class NormConfig(MethodConfig):
    """Predict how bright a crop is."""

    name: ClassVar[str] = "norm"
    contrasts: ClassVar[bool] = True
    scale: float = 1.0


class Norm(Objective):
    def __init__(self, config: NormConfig, shape: EncoderShape, seed: int) -> None:
        super().__init__()
        self.encoder = shape.make()
        self.head = nn.Linear(shape.width, 1)

    def forward(self, batch, share=1.0, measure=False):
        found = self.head(self.encoder(batch.image).mean(1))[:, 0]
        return StepOutput((found - batch.image.mean((1, 2, 3, 4))).abs().mean() * share, {})


@dataclass(frozen=True)
class WideConfig(ViTConfig):
    """A ViT under another name."""

    gain: float = 2.0


class Wide(ViT3D):
    config: WideConfig

    def forward(self, volume):
        return self.config.gain * super().forward(volume)


@pytest.fixture(autouse=True)
def alone():
    registries: tuple[Registry[Any], ...] = (METHODS, ENCODERS)
    kept = [(each, dict(each._parts), dict(each._makers)) for each in registries]
    ways = {name: dict(method.ways) for name, method in METHODS.items()}
    yield
    for each, parts, makers in kept:
        vars(each).update(_parts=parts, _makers=makers)
    for name, method in METHODS.items():
        method.ways.clear()
        method.ways.update(ways[name])


def test_a_method_and_an_encoder_of_ones_own_in_a_run():
    register_method(NormConfig, Norm)
    register_encoder("wide", WideConfig, Wide)
    vit = WideConfig(**{**vars(VIT), "gain": 3.0})
    config = replace(recipe("demo-mae"), method=NormConfig(), vit=vit)
    module = config.build()
    assert isinstance(module, Norm)
    assert isinstance(module.encoder, Wide)
    for ours, again in zip(module.parameters(), config.build().parameters(), strict=True):
        assert torch.equal(ours, again)
    plain = config_dict(config)
    assert (plain["method"]["name"], plain["encoder"]) == ("norm", "wide")
    assert config_identity(config)["encoder"] == "wide"
    assert "encoder" not in config_dict(recipe("demo-mae"))
    assert [(p["kind"], p["name"]) for p in parts_of(config)] == [
        ("pretext method", "norm"), ("encoder", "wide"),
    ]  # fmt: skip
    assert parts_of(recipe("demo-mae")) == []
    # Its negatives are those of a micro-batch: parted otherwise it is another run.
    parted = replace(config, parallel=replace(config.parallel, grad_accum=4))
    assert identity_of(config_dict(parted))["parallel"] == {"grad_accum": 4}
    with pytest.raises(ConfigError, match="leaves norm no negatives"):
        replace(config, global_batch=1)
    assert pickle.loads(pickle.dumps(config)) == config


def test_what_it_is_reckoned_to_cost():
    register_method(NormConfig, Norm)
    assert crop_flops(NormConfig(), VIT) == encoder_flops(VIT)
    register_encoder("wide", WideConfig, Wide, flops=lambda vit: (1.0, 10.0))
    wide = WideConfig(**vars(VIT))
    assert crop_flops(NormConfig(), wide).training == 2.0 + 30.0
    config = replace(recipe("demo-mae"), method=NormConfig(), vit=VIT)
    two = replace(config, method=SimCLRConfig())
    assert activation_values(two) == 2 * activation_values(config)
    assert make_plan(config, 2, known_machine("H200")).parameters == sum(
        parameter.numel() for parameter in config.build().parameters()
    )


def test_a_way_for_a_method_that_exists():
    register_encoder("wide", WideConfig, Wide)
    wide = WideConfig(**vars(VIT))
    with pytest.raises(ConfigError, match="mae cannot train the wide encoder, only vit, prim"):
        PretrainConfig(vit=wide)
    # The remedy: a recipe of simclr, which takes any.
    assert isinstance(PretrainConfig(SimCLRConfig(), vit=wide).build().encoder, Wide)
    register_way("mae", "wide", lambda config, shape, seed: MAE(config, shape.vit, seed))
    assert isinstance(PretrainConfig(MAEConfig(), vit=wide).build(), MAE)
    with pytest.raises(NameClashError, match="mae has a way to train the encoder 'wide'"):
        register_way("mae", "wide", MAE)
    with pytest.raises(UnknownNameError, match="no pretext method 'nonsense'; one of: mae, simmim"):
        register_way("nonsense", "wide", MAE)
    with pytest.raises(UnknownNameError, match="no encoder 'nonsense'; one of: vit, primus, swin"):
        register_way("mae", "nonsense", MAE)


@dataclass(frozen=True)
class Nameless(MethodConfig):
    """No name."""


@dataclass(frozen=True)
class Field(MethodConfig):
    """A name that is a field."""

    name: str = "field"  # pyright: ignore


@dataclass(frozen=True)
class Heir(MAEConfig):
    """The name of its parent."""


@dataclass(frozen=True)
class Three(MethodConfig):
    """Three views."""

    name: ClassVar[str] = "three"
    views: ClassVar[int] = 3


class Undecorated(MAEConfig):
    name: ClassVar[str] = "undecorated"


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (lambda: register_method(Nameless, Norm), "'' is no name for a pretext method"),
        (lambda: register_method(Field, Norm), r"write name: ClassVar\[str\]"),
        (lambda: register_method(Heir, Norm), "has the name 'mae' of the method it derives from"),
        (lambda: register_method(Three, Norm), "Three.views 3 must be 1 or 2"),
        (lambda: register_method(Undecorated, Norm), r"under @dataclass\(frozen=True\)"),
        (lambda: register_method(Norm, Norm), "derived from MethodConfig"),  # pyright: ignore
        (lambda: register_method("norm", Norm), "derived from MethodConfig"),  # pyright: ignore
        (lambda: register_encoder("vit", WideConfig, Wide), "'vit', a name that mim3d has taken"),
        (lambda: register_encoder("x", ViTConfig, Wide), "of the encoder 'vit' already"),
        (lambda: register_encoder("x", SwinConfig, Wide), "derived from ViTConfig"),  # pyright: ignore
        (lambda: encoder_kind(WideConfig(**vars(VIT))), r"register_encoder\(name, WideConfig"),
    ],
)
def test_what_cannot_be_registered(register, message):
    with pytest.raises((ConfigError, NameClashError), match=message):
        register()


def test_what_a_builder_gives_is_checked():
    register_method(NormConfig, lambda config, shape, seed: shape.make())
    with pytest.raises(ConfigError, match="'norm' built a ViT3D, not an Objective with a module"):
        PretrainConfig(NormConfig(), vit=VIT).build()


def test_every_way_of_ours_can_be_imported():
    from mim3d.dataio.registry import resolved

    for method in METHODS.values():
        for way in method.ways.values():
            assert all(map(callable, map(resolved, (way.build, way.flops, way.activations))))
    with pytest.raises(UnknownNameError, match="no pretext method ''"):
        way_of(Nameless(), EncoderShape(VIT))
