"""A plugin's methods and encoders as arms: their fields, set by words such as turns.lr=2e-3."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from mim3d.dataio.registry import OURS
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.registry import ENCODERS, METHODS, OWN_KINDS

Config = TypeVar("Config")
Words = Mapping[str, Mapping[str, str]]
TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def own_method(arm: str) -> bool:
    """Whether an arm's method is a plugin's; that of `turns-flops` is `turns`."""
    method = method_of(arm)
    return method in METHODS and METHODS.maker_of(method) != OURS


def own_encoder_kind(kind: str) -> bool:
    """Whether an encoder is a plugin's."""
    return kind in ENCODERS and kind not in OWN_KINDS


def method_of(arm: str) -> str:
    """The method of an arm that the study pretrains."""
    return arm.removesuffix("-flops")


def read_words(words: Sequence[str], option: str) -> Words:
    """By name, what is said of its fields in words NAME.FIELD=VALUE."""
    found: dict[str, dict[str, str]] = {}
    for word in words:
        place, given, value = word.partition("=")
        name, dot, field = place.rpartition(".")
        if not (given and dot and name and field):
            raise ConfigError(f"{option} {word!r} must be NAME.FIELD=VALUE, such as turns.lr=2e-3")
        found.setdefault(name, {})[field.replace("-", "_")] = value
    return found


def with_fields(config: Config, given: Mapping[str, str], option: str) -> Config:
    """The dataclass with fields set from text, each of the kind that it is now."""
    plain = cast(Any, config)
    known = {field.name for field in dataclasses.fields(plain)}
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in known:
            raise ConfigError(
                f"{option} has a field {name!r}, which {type(config).__name__} has not: it has "
                f"{', '.join(sorted(known)) or 'none'}"
            )
        values[name] = read_value(getattr(config, name), text, f"{option} {name}={text}")
    return dataclasses.replace(plain, **values)


def read_value(now: object, text: str, said: str) -> object:
    """A value of the kind of another, from text; ConfigError where it is none."""
    try:
        if isinstance(now, bool):
            return TRUTHS[text.lower()]
        if isinstance(now, int | float):
            return type(now)(text)
        if isinstance(now, tuple):
            return tuple(read_value(now[0] if now else "", part, said) for part in text.split(","))
    except (KeyError, ValueError):
        raise ConfigError(f"{said}: {text!r} is no value such as {now!r}") from None
    return text


def method_config_of(name: str) -> Any:
    """A plugin's method with the fields that its class has."""
    kind = METHODS.find(name, "arms").config
    try:
        return kind()
    except TypeError as error:
        raise ConfigError(
            f"arm {name}: {kind.__name__}() wants fields ({error}): give each a default in the "
            "plugin"
        ) from error


def encoder_config_of(kind: str, vit: ViTConfig, words: Sequence[str]) -> ViTConfig:
    """A plugin's encoder with the crop, patch, width and depth of `vit`, and its own fields."""
    base = {field.name: getattr(vit, field.name) for field in dataclasses.fields(ViTConfig)}
    made = ENCODERS.find(kind, "encoders").config(**base)
    return with_fields(made, read_words(words, "shapes.own").get(kind, {}), f"shapes.own {kind}")


def refuse_idle(words: Sequence[str], names: Sequence[str], option: str) -> None:
    """A ConfigError where words are about what no arm has."""
    idle = sorted(set(read_words(words, option)) - set(names))
    if idle:
        raise ConfigError(
            f"{option} {idle[0]}.…: no arm is {idle[0]}; of plugins there are "
            f"{', '.join(names) or 'none'}"
        )
