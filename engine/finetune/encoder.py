"""The encoder of an arm: from weights that exist, fitted to this run, or from the seed."""

from typing import cast

from torch import nn

from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import FinetuneConfig
from mim3d.engine.finetune.seeding import seeded
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.resenc.config import Backbone
from mim3d.engine.models.resenc.encoder import ResEncEncoder
from mim3d.engine.models.swin import SwinEncoder
from mim3d.engine.models.vit import ViT3D, set_drop_path
from mim3d.engine.transfer.given_weights import open_encoder
from mim3d.engine.transfer.shape import encoder_shape
from mim3d.engine.transfer.start import StartRequest, start_from
from mim3d.engine.transfer.start_report import Start

Encoder = ViT3D | SwinEncoder | ResEncEncoder
FITTED = {"crop_size", "patch_size", "channels", "position"}
"""Fields of a transformer in which weights are fitted to this run."""
NO_SHAPE = {"drop_path", "masking", "decoder_convs"}
"""Fields of an encoder's configuration that its weights do not show."""
RECIPES = {
    "vit": "unetr-vit-b-96",
    "primus": "primus-s-96",
    "swin": "swinunetr-96",
    "resenc": "resenc-s-96",
}
"""A recipe for each kind of encoder."""


def build_encoder(config: FinetuneConfig, starts: list[Start] | None = None) -> Encoder:
    """The encoder from `config.init`, or from the seed where it is empty.

    What became of the weights is added to `starts`.
    """
    with seeded(config.seed, "encoder"):
        encoder = cast(Encoder, config.encoder.make())
    if config.init:
        start = take_weights(encoder, config)
        if starts is not None:
            starts.append(start)
    if config.drop_path and isinstance(encoder, ViT3D):
        set_drop_path(encoder.blocks, config.drop_path)
    for parameter in encoder.parameters():
        parameter.requires_grad_(not config.freeze)
    return encoder


def take_weights(encoder: Encoder, config: FinetuneConfig) -> Start:
    """Copy the weights of `config.init`, fitted to this encoder."""
    given, wanted = open_encoder(config.init), config.encoder
    found = encoder_shape(config.init, wanted.vit, wanted.backbone, given)
    if found.kind != wanted.kind:
        recipe = RECIPES.get(found.kind)
        such = f", such as `mim3d finetune {recipe}`" if recipe else ""
        raise ConfigError(
            f"{config.init} holds a {found.kind} encoder, this run has a {wanted.kind}: take a "
            f"recipe made for it{such}"
        )
    part = "vit" if wanted.backbone is None else wanted.kind
    require_same_shape(config.init, found.config, wanted.config, part)
    holder = nn.Module()
    holder.encoder = encoder
    request = StartRequest(
        config.init,
        config.vit,
        config.swin,
        axes=config.init_axes,
        channels=config.init_channels,
        resenc=config.resenc,
    )
    return start_from(holder, request, given)


def require_same_shape(
    source: str, found: ViTConfig | Backbone, wanted: ViTConfig | Backbone, field: str
) -> None:
    """ConfigError naming the fields in which an encoder is another one, and cannot be fitted."""
    differing = {
        name: (getattr(found, name), getattr(wanted, name))
        for name in type(wanted).__dataclass_fields__
        if name not in FITTED | NO_SHAPE and getattr(found, name) != getattr(wanted, name)
    }
    if differing:
        others = ", ".join(f"{name} {a} instead of {b}" for name, (a, b) in differing.items())
        options = " ".join(
            f"--{field}.{name.replace('_', '-')} {found}" for name, (found, _) in differing.items()
        )
        raise ConfigError(
            f"{source}: this encoder has {others}; set {options}, or pretrain one of the wanted "
            "shape"
        )
