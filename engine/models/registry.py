"""Pretext methods and encoders by name: the one place that they hang from; imports no torch.

A method is trained with an encoder in a `Way` of its own: how the module of the two is built, and
what it costs. Parts are "module:attribute", imported when a run builds them. Plugins add to both
by `registering`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from mim3d.dataio.registry import Reference, Registry, resolved
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import (
    MAEConfig,
    MethodConfig,
    SimCLRConfig,
    SimMIMConfig,
    SwinConfig,
    ViTConfig,
)
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.resenc.config import NO_SIMMIM, ResEncConfig

if TYPE_CHECKING:
    from torch import nn

    from mim3d.engine.models.vit import ViT3D

NO_MAE_ON_SWIN = (
    "MAE drops tokens, which Swin's windows cannot: use a simmim or simclr recipe with swin, or "
    "MAE with the vit"
)
ANY = "*"
"""A way that a method goes with every encoder that has none of its own."""


@dataclass(frozen=True)
class Encoder:
    """A kind of encoder: the class of its configuration and how its module is built.

    `build(config)` gives a module from volumes (b, c, z, y, x) to tokens (b, n, width), with fresh
    weights; `config` derives from ViTConfig. Where it does not (`beside`), it stands beside a
    ViTConfig that tells crop, patch and channels, and the module is `build(config, vit)`.
    `flops`: of those arguments, the forward pass of a crop as two numbers, embedding and rest.
    """

    config: type
    build: Reference
    flops: Reference
    beside: bool = False


@dataclass(frozen=True)
class Way:
    """How a method is trained with an encoder.

    `build(config, shape, seed)` gives the Objective, whose `encoder` is what a run leaves; `seed`
    is for draws of the method's own. `flops(config, shape)` gives CropFlops and
    `activations(config, shape, recompute)` the values kept for backward under a policy of
    `parallel.recompute`, both of one crop; a method that tells neither is taken to cost what its
    encoder does on every patch of every view.
    """

    build: Reference
    flops: Reference
    activations: Reference


@dataclass(frozen=True)
class Method:
    """A pretext method: the class of its configuration, and its ways by kind of encoder."""

    config: type[MethodConfig]
    ways: dict[str, Way]
    never: Mapping[str, str] = field(default_factory=dict)
    """Why it cannot be trained with an encoder, and what to do instead."""


def _ours(method: str, kind: str, activations: str, flops: str = "") -> Way:
    """A way of mim3d's own, by the names in build, flops and activations."""
    return Way(
        f"mim3d.engine.models.build:{method}_{kind}",
        f"mim3d.engine.models.flops:{flops or method}_flops",
        f"mim3d.engine.models.activations:{activations}",
    )


VIT_FLOPS = "mim3d.engine.models.flops:vit_flops"
PLAIN = "plain_values"
ENCODERS: Registry[Encoder] = Registry(
    "encoder",
    {
        "vit": Encoder(ViTConfig, "mim3d.engine.models.vit:ViT3D", VIT_FLOPS),
        "primus": Encoder(PrimusConfig, "mim3d.engine.models.primus.encoder:Primus3D", VIT_FLOPS),
        "swin": Encoder(
            SwinConfig,
            "mim3d.engine.models.swin:SwinEncoder",
            "mim3d.engine.models.flops:swin_flops",
            beside=True,
        ),
        "resenc": Encoder(
            ResEncConfig,
            "mim3d.engine.models.resenc.encoder:ResEncEncoder",
            "mim3d.engine.models.resenc.flops:encoder_parts",
            beside=True,
        ),
    },
)
METHODS: Registry[Method] = Registry(
    "pretext method",
    {
        "mae": Method(
            MAEConfig,
            {
                "vit": _ours("mae", "vit", "mae_values"),
                "primus": _ours("mae", "primus", "mae_values"),
                "resenc": _ours("mae", "resenc", "resenc_values", "mae_resenc"),
            },
            {"swin": NO_MAE_ON_SWIN},
        ),
        "simmim": Method(
            SimMIMConfig,
            {
                "vit": _ours("simmim", "vit", PLAIN),
                "primus": _ours("simmim", "vit", PLAIN),
                "swin": _ours("simmim", "swin", "swin_values"),
            },
            {"resenc": NO_SIMMIM},
        ),
        "simclr": Method(
            SimCLRConfig,
            {
                ANY: _ours("simclr", "any", PLAIN),
                "swin": _ours("simclr", "any", "swin_values"),
                "resenc": _ours("simclr", "any", "resenc_values"),
            },
        ),
    },
)
OWN_KINDS = tuple(ENCODERS)
"""Encoders of mim3d itself."""


@dataclass(frozen=True)
class EncoderShape:
    """An encoder that is to be built: `vit`, and what stands in its place where something does."""

    vit: ViTConfig
    backbone: Any = None
    """The configuration of an encoder that is registered `beside`, such as a SwinConfig."""

    @property
    def config(self) -> Any:
        """The configuration that tells of the encoder itself."""
        return self.vit if self.backbone is None else self.backbone

    @property
    def swin(self) -> SwinConfig | None:
        """The Swin in the ViT's place, if one stands there."""
        return self.backbone if isinstance(self.backbone, SwinConfig) else None

    @property
    def resenc(self) -> ResEncConfig | None:
        """The U-Net in the ViT's place, if one stands there."""
        return self.backbone if isinstance(self.backbone, ResEncConfig) else None

    @property
    def kind(self) -> str:
        """Its name in the registry."""
        return encoder_kind(self.config)

    @property
    def own_name(self) -> dict[str, str]:
        """`encoder` by its name where it is a plugin's: no field need tell it from a ViT."""
        return {} if self.kind in OWN_KINDS else {"encoder": self.kind}

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.config.width

    @property
    def parts(self) -> tuple[Any, ...]:
        """What its builder is given."""
        return (self.vit,) if self.backbone is None else (self.backbone, self.vit)

    def make(self) -> "nn.Module":
        """The module, with fresh weights."""
        return resolved(ENCODERS[self.kind].build)(*self.parts)


def encoder_kind(config: Any) -> str:
    """The encoder whose configuration this is; a ConfigError where none is registered for it."""
    for name, encoder in ENCODERS.items():
        if type(config) is encoder.config:
            return name
    raise ConfigError(
        f"{type(config).__name__} is the configuration of no encoder: register_encoder(name, "
        f"{type(config).__name__}, build) in the plugin that has it"
    )


def way_of(method: MethodConfig, shape: EncoderShape) -> Way:
    """How a method is trained with an encoder; a ConfigError where it cannot be."""
    entry, kind = METHODS.find(method.name), shape.kind
    if type(method) is not entry.config:
        raise ConfigError(
            f"{type(method).__name__} is not the configuration of the pretext method "
            f"{method.name!r}, which is {entry.config.__name__}: register_method it under a name "
            "of its own"
        )
    if kind in entry.never:
        raise ConfigError(entry.never[kind])
    way = entry.ways.get(kind) or entry.ways.get(ANY)
    if way is None:
        able = [name for name, each in METHODS.items() if {kind, ANY} & set(each.ways)]
        raise ConfigError(
            f"{method.name} cannot train the {kind} encoder, only {', '.join(entry.ways)}: take a "
            f"recipe of {' or '.join(able)} for it, or another encoder"
        )
    return way


def make_encoder(vit: ViTConfig) -> "ViT3D":
    """The transformer that `vit` describes, with fresh weights."""
    return cast("ViT3D", EncoderShape(vit).make())
