"""Settings that a user varies: `NAME=VALUE,VALUE` words to the variants of a study."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from mim3d.engine.errors import ConfigError
from mim3d.engine.study.config import ARM_SETTINGS, ENCODER_SETTINGS, METHODS, StudyConfig, Variant
from mim3d.engine.study.plan import encoder_shape, method_config

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
    if config.swin is not None and (idle := set(grid) & (ENCODER_SETTINGS - {"crop"})):
        raise ConfigError(f"vary {', '.join(sorted(idle))} is of a ViT, and this study trains Swin")
    matter = ENCODER_SETTINGS.union({"labels"}, *(ARM_SETTINGS.get(a, set()) for a in config.arms))
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


def check(config: StudyConfig) -> None:
    """ConfigError where a variant has a shape or method that cannot be, before any work."""
    for variant, arm in product(config.variants, config.arms):
        try:
            encoder_shape(config, variant.of(arm))
            if arm in METHODS:
                method_config(config, arm, variant.of(arm))
        except ConfigError as error:
            raise ConfigError(f"vary: {arm} with {variant.name}: {error}") from error


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
