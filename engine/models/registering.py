"""How a plugin adds to the methods and encoders; imports no torch.

register_method(TurnsConfig, build)            with any encoder
register_encoder("mine", MineConfig, Mine)     for all methods that take any
register_way("mae", "mine", build)             for a method that wants to know its encoder
"""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass

from mim3d.dataio.registry import NameClashError, Reference
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import MethodConfig, ViTConfig
from mim3d.engine.models.registry import ANY, ENCODERS, METHODS, VIT_FLOPS, Encoder, Method, Way

METHOD_FLOPS = "mim3d.engine.models.flops:unknown_method_flops"
METHOD_VALUES = "mim3d.engine.models.activations:plain_values"


def register_method(
    config: type[MethodConfig],
    build: Reference,
    *,
    encoders: Sequence[str] = (ANY,),
    flops: Reference = METHOD_FLOPS,
    activations: Reference = METHOD_VALUES,
) -> None:
    """Add a pretext method by the class of its configuration, whose `name` is its own.

    What `build`, `flops` and `activations` are called with: see `Way`. `encoders` are the kinds it
    can be trained with.
    """
    check_config(config, MethodConfig, "method")
    if config.views not in (1, 2):
        raise ConfigError(f"{config.__name__}.views {config.views} must be 1 or 2")
    if config.name in METHODS and config.name in {
        base.name for base in config.__mro__[1:] if issubclass(base, MethodConfig)
    }:
        raise NameClashError(
            f"{config.__name__} has the name {config.name!r} of the method it derives from: write "
            'name: ClassVar[str] = "..." in it'
        )
    way = Way(build, flops, activations)
    METHODS.add(config.name, Method(config, dict.fromkeys(encoders, way)))


def register_encoder(
    name: str, config: type[ViTConfig], build: Reference, *, flops: Reference = VIT_FLOPS
) -> None:
    """Add an encoder by a class of its own, derived from ViTConfig; see `Encoder`."""
    check_config(config, ViTConfig, "encoder")
    for other, encoder in ENCODERS.items():
        if encoder.config is config:
            raise NameClashError(
                f"{config.__name__} is the configuration of the encoder {other!r} already: derive "
                "a class of your own from it"
            )
    ENCODERS.add(name, Encoder(config, build, flops))


def register_way(
    method: str,
    encoder: str,
    build: Reference,
    *,
    flops: Reference = METHOD_FLOPS,
    activations: Reference = METHOD_VALUES,
) -> None:
    """Add how a method that exists is trained with an encoder that has no way yet."""
    ways = METHODS.find(method).ways
    ENCODERS.find(encoder)
    if encoder in ways:
        raise NameClashError(
            f"{method} has a way to train the encoder {encoder!r}: register a method of another "
            "name"
        )
    ways[encoder] = Way(build, flops, activations)


def check_config(config: type, base: type, kind: str) -> None:
    """A ConfigError where a class cannot be a configuration of a method or an encoder."""
    frozen = is_dataclass(config) and config.__dataclass_params__.frozen  # pyright: ignore
    own = "__dataclass_params__" in vars(config) if isinstance(config, type) else False
    if not (isinstance(config, type) and issubclass(config, base) and frozen and own):
        raise ConfigError(
            f"the configuration of {'an encoder' if kind == 'encoder' else 'a method'} is a class "
            f"derived from {base.__name__} under @dataclass(frozen=True), which {config!r} is not"
        )
    if "name" in {field.name for field in fields(config)}:
        raise ConfigError(
            f"{config.__name__}.name is a field, and says what the {kind} is called: write "
            "name: ClassVar[str]"
        )
