"""The arms of a study: methods by encoders, checked, and the encoder that each trains."""

from collections.abc import Iterable, Iterator, Set
from dataclasses import replace
from itertools import product

from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import Head
from mim3d.engine.models.config import MAEConfig, ViTConfig
from mim3d.engine.models.own_fields import (
    encoder_config_of,
    method_of,
    own_encoder_kind,
    own_method,
    refuse_idle,
)
from mim3d.engine.models.registry import EncoderShape
from mim3d.engine.study.config import ENCODER_SETTINGS, StudyConfig, Variant, arm_settings
from mim3d.engine.study.encoders import (
    METHODS,
    OWN,
    OWN_DECODERS,
    SCRATCH,
    TITLES,
    Arm,
    label_of,
    read_arm,
    why_not,
)

NO_TOKENS = {"resenc": ("tokens", "patch", "linear"), "swin": ("patch", "linear")}
"""Heads that an encoder cannot have."""
IDLE_SETTINGS: dict[str, set[str]] = {
    "swin": ENCODER_SETTINGS - {"crop"},
    "resenc": {"width", "depth", "decoder_width", "decoder_depth", "decode_fraction"},
}
"""Settings of variants that are not of an encoder, or of MAE on it."""


def own_encoder(config: StudyConfig) -> str:
    """The kind of encoder that arms without @ have where --encoders names none."""
    return EncoderShape(config.vit, config.swin).kind


def several(config: StudyConfig) -> bool:
    """Whether arms name their encoders, so that rows do too."""
    return bool(config.encoders) or any(read_arm(word).encoder for word in config.arms)


def asked_arms(config: StudyConfig) -> Iterator[Arm]:
    """Every arm that is asked for, encoder by encoder, also those that cannot be."""
    own, words = own_encoder(config), [read_arm(word) for word in config.arms]
    named = config.encoders or ("",)
    for encoder in dict.fromkeys([*named, *(arm.encoder for arm in words if arm.encoder)]):
        key = "" if encoder == own else encoder
        for arm in words:
            everywhere = not arm.encoder and not arm.path and encoder in named
            at_home = not arm.encoder and arm.path and not key
            if everywhere or at_home or (arm.encoder and arm.encoder == (encoder or own)):
                yield replace(arm, encoder=key)


def arms_of(config: StudyConfig) -> list[Arm]:
    """The arms that are run: those of --encoders that cannot be are left out (`differences`)."""
    own = own_encoder(config)
    able = [arm for arm in asked_arms(config) if not why_not(arm, own)]
    found: list[Arm] = []
    for encoder in dict.fromkeys(arm.encoder for arm in able):
        here = list(dict.fromkeys(arm for arm in able if arm.encoder == encoder))
        if "flops" in config.matching and not why_not(Arm(config.flops_of, encoder), own):
            here += [
                replace(arm, name=f"{arm.name}-flops")
                for arm in here
                if is_method(arm.name) and not arm.path and arm.name != config.flops_of
            ]
        names = {arm.name for arm in here}
        if "crops" not in config.matching:
            here = [arm for arm in here if f"{arm.name}-flops" not in names]
        found += here
    return found


def arm_names(config: StudyConfig) -> list[str]:
    """Names of the arms, whatever their encoder, those of equal FLOPs included."""
    return list(dict.fromkeys(arm.name for arm in arms_of(config)))


def encoder_arms(config: StudyConfig) -> dict[str, list[str]]:
    """By the name that rows have for an encoder, its arms."""
    found: dict[str, list[str]] = {}
    for arm in arms_of(config):
        found.setdefault(shown_encoder(config, arm.encoder), []).append(arm.name)
    return found


def shown_encoder(config: StudyConfig, encoder: str) -> str:
    """What rows call an encoder: nothing where all arms have the study's own."""
    return (encoder or own_encoder(config)) if several(config) else ""


def differences(config: StudyConfig) -> list[str]:
    """What is otherwise than asked: arms that --encoders leaves out, and MAE's decoder on Primus.

    ConfigError where an arm that is written out cannot be.
    """
    own = own_encoder(config)
    written = {read_arm(word) for word in config.arms}
    found = []
    for arm in dict.fromkeys(asked_arms(config)):
        kind = arm.encoder or own
        if why := why_not(arm, own):
            if not config.encoders or replace(arm, encoder=kind) in written:
                raise ConfigError(f"arm {arm.name}@{kind}: {why}")
            found.append(f"{label_of(arm.name, kind)} is left out: {why}")
    if "flops" in config.matching:
        found += [
            f"{kind} has no arms of matching flops: {config.flops_of} cannot train it (--flops-of)"
            for kind in dict.fromkeys(arm.encoder or own for arm in asked_arms(config))
            if why_not(Arm(config.flops_of, kind), own)
        ]
    asked = config.pretrain.mae.method
    turned = turnable(asked)
    if turned != asked and any((a.name, a.encoder) == ("mae", "primus") for a in arms_of(config)):
        found.append(
            f"mae@primus has a decoder {turned.decoder_width} wide in the place of "
            f"{asked.decoder_width}, for its rotary positions turn heads by multiples of 6"
        )
    return found + own_differences(config)


def own_differences(config: StudyConfig) -> list[str]:
    """How a plugin's methods are trained where nothing is told of it.

    ConfigError where something is told of what no arm has.
    """
    methods = [name for name in arm_names(config) if own_method(name)]
    methods = list(dict.fromkeys(map(method_of, methods)))
    kinds = [kind for kind in encoder_arms(config) if own_encoder_kind(kind)]
    refuse_idle(config.pretrain.own, methods, "pretrain.own")
    refuse_idle(config.shapes.own, kinds, "shapes.own")
    found = []
    for name in methods:
        plan, given = config.pretrain.arm(name), config.pretrain.own_fields(name)
        if lacking := [field for field in ("lr", "global_batch") if field not in given]:
            same = " and ".join(f"{field} {getattr(plan, field):g}" for field in lacking)
            ways = " ".join(f"{name}.{field}=NUMBER" for field in lacking)
            found.append(f"{name} has {same}, as mae has (--pretrain.own {ways})")
    return found


def turnable(method: MAEConfig) -> MAEConfig:
    """The same with the nearest decoder width that Primus' rotary positions can turn."""
    step = 6 * method.decoder_heads
    return replace(method, decoder_width=max(1, round(method.decoder_width / step)) * step)


def refuse_arms(config: StudyConfig) -> list[str]:
    """ConfigError where arms, encoders and heads do not go together; else the `differences`."""
    notes = differences(config)
    refuse_varied_given(config)
    refuse_same_decoder(config)
    if not several(config):
        return notes
    by_encoder: dict[str, set[str]] = {}
    for arm in asked_arms(config):
        by_encoder.setdefault(arm.encoder or own_encoder(config), set())
    for arm in arms_of(config):
        by_encoder[arm.encoder or own_encoder(config)].add(arm.name)
    if config.ablation and len(by_encoder) > 1:
        raise ConfigError(
            f"ablation {config.ablation} varies settings of one encoder, and arms name "
            f"{', '.join(by_encoder)}: name one, such as --encoders {next(iter(by_encoder))}, and "
            "make a study of each"
        )
    refuse_settings_of_others(by_encoder, {name for v in config.variants for name in v.settings})
    if not config.ablation:
        refuse_lonely(config, by_encoder)
    for kind, head in product(by_encoder, config.heads):
        if head in NO_TOKENS.get(kind, ()):
            raise ConfigError(
                f"heads {head} is none of {kind}'s: take --heads own, each encoder's own decoder, "
                f"or leave {kind} out"
            )
    return notes


def refuse_varied_given(config: StudyConfig) -> None:
    """ConfigError where settings of a method are varied and a given encoder bears its name.

    It would be fine-tuned once for each setting, as though it had been pretrained so. Sizes are
    varied where nothing is given, for weights have one.
    """
    varied = {name for variant in config.variants for name in variant.settings}
    sizes = {n for n in ("width", "depth") if len({getattr(v, n) for v in config.variants}) > 1}
    for word in config.arms:
        arm = read_arm(word)
        if arm.path and (idle := varied & arm_settings(arm.name)):
            raise ConfigError(
                f"arms: {word!r} is an encoder as it is, and its name is that of a method whose "
                f"{', '.join(sorted(idle))} is varied: call it given-{word}"
            )
        if arm.path and sizes:
            raise ConfigError(
                f"vary {', '.join(sorted(sizes))} makes other encoders than the one that arm "
                f"{word!r} is: leave the arm out, or vary another setting"
            )


def refuse_same_decoder(config: StudyConfig) -> None:
    """ConfigError where `own` is another of the heads on every encoder: all would be run twice."""
    kinds = dict.fromkeys(arm.encoder for arm in arms_of(config))
    own = [head_of(config, OWN, kind) for kind in kinds]
    if OWN in config.heads and own and all(decoder in config.heads for decoder in own):
        names = ", ".join(dict.fromkeys(own))
        raise ConfigError(f"heads {OWN} is {names} here, which is a head too: leave {OWN} out")


def refuse_settings_of_others(kinds: Iterable[str], names: Set[str]) -> None:
    """ConfigError where a setting that is varied is not of an encoder that is trained."""
    for kind in kinds:
        if idle := names & IDLE_SETTINGS.get(kind, set()):
            title = TITLES.get(kind, kind)
            raise ConfigError(
                f"vary {', '.join(sorted(idle))} is of a ViT, and this study trains {title}"
            )


def refuse_lonely(config: StudyConfig, by_encoder: dict[str, set[str]]) -> None:
    """Every encoder has its own baseline and an arm that is held against it."""
    homeless = [read_arm(word) for word in config.arms]
    homeless = [arm for arm in homeless if arm.path and not arm.encoder]
    own = own_encoder(config)
    if homeless and own not in by_encoder:
        name = homeless[0].name
        raise ConfigError(
            f"arm {name}={homeless[0].path} is of the study's own encoder {own}, which --encoders "
            f"leaves out: write {name}@ENCODER={homeless[0].path}, or add {own} to --encoders"
        )
    for kind, names in by_encoder.items():
        if SCRATCH not in names:
            raise ConfigError(
                f"encoder {kind} has no baseline of its own among arms {', '.join(sorted(names))}: "
                f"add scratch@{kind} to --arms"
            )
    for kind, names in by_encoder.items():
        if names == {SCRATCH}:
            raise ConfigError(
                f"encoder {kind} has scratch alone, so nothing is compared on it: add an arm such "
                f"as simclr@{kind}, or leave {kind} out"
            )


def with_own_decoders(config: StudyConfig, named: StudyConfig) -> tuple[StudyConfig, str]:
    """The study with each encoder's own decoder, where the user left the heads as `named` has them.

    And a line that says so, empty where nothing changed.
    """
    chosen = config.heads != named.heads or config.heads in {(OWN,), ("classify",)}
    if not several(config) or chosen:
        return config, ""
    before = ", ".join(config.heads)
    line = f"heads own, each encoder's own decoder, in the place of {before} (--heads chooses)"
    return replace(config, heads=(OWN,)), line


def given_path(config: StudyConfig, arm: str, encoder: str = "") -> str:
    """Path of an arm given as NAME=PATH, empty for others."""
    found = {(a.name, a.encoder): a.path for a in asked_arms(config)}
    return found.get((arm, encoder), "")


def is_pretrained_here(config: StudyConfig, arm: str, encoder: str = "") -> bool:
    """Whether the study itself pretrains the arm."""
    return is_method(method_of(arm)) and not given_path(config, arm, encoder)


def is_method(name: str) -> bool:
    """Whether it is a pretext method, mim3d's or a plugin's."""
    return name in METHODS or own_method(name)


def head_of(config: StudyConfig, head: str, encoder: str) -> Head:
    """The head that a cell's decoder is, with `own` made out."""
    if head != OWN:
        return head  # pyright: ignore[reportReturnType]
    return OWN_DECODERS.get(encoder or own_encoder(config), "unetr")


def encoder_of(config: StudyConfig, encoder: str, variant: Variant) -> EncoderShape:
    """The encoder of an arm in a variant, and the crop and patch that go with it."""
    kind = encoder or own_encoder(config)
    if not encoder:
        return EncoderShape(varied_vit(config.vit, variant), config.swin)
    cropped = varied_vit(config.vit, Variant(crop=variant.crop, patch=variant.patch))
    shapes = config.shapes
    if kind == "vit":
        return EncoderShape(varied_vit(config.vit, variant))
    if kind == "primus":
        crop = replace(shapes.primus, crop_size=cropped.crop_size, channels=cropped.channels)
        return EncoderShape(varied_vit(crop, replace(variant, crop=None)))
    if kind == "resenc":
        return EncoderShape(cropped, shapes.resenc)
    if own_encoder_kind(kind):
        vit = varied_vit(config.vit, variant)
        return EncoderShape(encoder_config_of(kind, vit, shapes.own))
    crop = shapes.swin_crop if variant.crop is None else cropped.crop_size
    return EncoderShape(replace(cropped, crop_size=crop), shapes.swin)


def varied_vit(vit: ViTConfig, variant: Variant) -> ViTConfig:
    """A transformer with the settings of a variant."""
    if variant.patch is not None:
        vit = replace(vit, patch_size=(variant.patch,) * 3)
    if variant.crop is not None:
        vit = replace(vit, crop_size=(variant.crop,) * 3)
    if variant.width is not None:
        own = vit.width // vit.heads
        if variant.width % own:
            raise ConfigError(f"width {variant.width} must be a multiple of a head's width, {own}")
        vit = replace(vit, width=variant.width, heads=variant.width // own)
    if variant.depth is not None:
        vit = replace(vit, depth=variant.depth)
    return vit
