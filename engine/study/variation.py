"""Settings that a user varies: `NAME=VALUE,VALUE` words to the variants of a study."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from mim3d.engine.errors import ConfigError
from mim3d.engine.study.arms import (
    arm_names,
    arms_of,
    encoder_of,
    is_pretrained_here,
    own_encoder,
    refuse_settings_of_others,
)
from mim3d.engine.study.config import (
    ARM_SETTINGS,
    ENCODER_SETTINGS,
    StudyConfig,
    Variant,
    arm_settings,
)
from mim3d.engine.study.plan import method_config

COUNTS = ENCODER_SETTINGS | {"decoder_depth", "decoder_width", "crops", "global_batch"}
VARIED = [*dict.fromkeys(name for own in ARM_SETTINGS.values() for name in sorted(own))]
NAMES = [*sorted(ENCODER_SETTINGS), *VARIED, "labels"]


def varied(config: StudyConfig, words: Sequence[str]) -> StudyConfig:
    """The study with every combination of the named settings in the place of its own variants."""
    if not words:
        return config
    grid = dict(values_of(word) for word in words)
    if len(grid) < len(words):
        raise ConfigError(f"vary {' '.join(words)} names a setting twice: give each all its values")
    refuse_settings(config, set(grid))
    matter = ENCODER_SETTINGS.union({"labels"}, *(arm_settings(arm) for arm in arm_names(config)))
    if idle := set(grid) - matter:
        raise ConfigError(
            f"vary {', '.join(sorted(idle))} changes none of arms {', '.join(config.arms)}: add "
            "the arm that has it, or vary another setting"
        )
    labels = grid.pop("labels", config.labels)
    names = [name for name in grid if len(grid[name]) > 1]
    axes = [word.split("=")[0] for word in words if word.split("=")[0] in {*names, "labels"}]
    if len(axes) > 2:
        raise ConfigError(f"vary {', '.join(axes)}: a heat map has two axes, so vary two at most")
    found = replace(
        config,
        labels=labels,
        ablation=config.ablation or config.name,
        ablation_axes=tuple(axes),
        variants=tuple(
            replace(Variant(), **dict(zip(grid, values, strict=True)))
            for values in product(*grid.values())
        ),
    )
    check(found)
    return found


def refuse_settings(config: StudyConfig, names: set[str]) -> None:
    """ConfigError where arms have several encoders, or one that a setting is not of."""
    kinds = sorted({arm.encoder or own_encoder(config) for arm in arms_of(config)})
    if len(kinds) > 1:
        raise ConfigError(
            f"vary {', '.join(sorted(names))} is for one encoder, and arms have {', '.join(kinds)}"
            f": name one, such as --encoders {kinds[0]}, and make a study of each"
        )
    refuse_settings_of_others(kinds, names)


def check(config: StudyConfig) -> None:
    """ConfigError where a variant has a shape or method that cannot be, before any work."""
    for variant, arm in product(config.variants, arms_of(config)):
        own = variant.of(arm.name)
        try:
            encoder_of(config, arm.encoder, own)
            if is_pretrained_here(config, arm.name, arm.encoder):
                method_config(config, arm.name, own, arm.encoder)
        except ConfigError as error:
            raise ConfigError(f"vary: {arm.label} with {variant.name}: {error}") from error


def values_of(word: str) -> tuple[str, tuple[float, ...]]:
    """Name and values of `NAME=VALUE,VALUE`."""
    name, given, text = word.partition("=")
    if not given or name not in NAMES:
        raise ConfigError(f"vary {word!r} must be NAME=VALUE,VALUE with one of {', '.join(NAMES)}")
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"vary {word!r}: {text!r} is no list of numbers such as 0.3,0.6"
        ) from None
    if name in COUNTS and any(value < 1 or value != int(value) for value in values):
        raise ConfigError(f"vary {word!r}: {name} takes whole numbers from 1")
    if len(set(values)) < len(values):
        raise ConfigError(f"vary {word!r} has a value twice")
    return name, tuple(int(value) if name in COUNTS else value for value in values)
