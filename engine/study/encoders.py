"""Encoders as arms of one study: their names, their shapes, and arms written `mae@primus`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mim3d.dataio.finite import MOST_SIZE, refuse_outside
from mim3d.dataio.plugins import load_known
from mim3d.dataio.registry import Registry
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import Head
from mim3d.engine.models.config import SwinConfig
from mim3d.engine.models.own_fields import read_words
from mim3d.engine.models.primus.config import PrimusConfig, primus
from mim3d.engine.models.registry import ANY
from mim3d.engine.models.registry import ENCODERS as ENCODER_KINDS
from mim3d.engine.models.registry import METHODS as REGISTERED
from mim3d.engine.models.resenc.config import RESENC_S, RESENC_TINY, ResEncConfig

EncoderName = Literal["vit", "primus", "resenc", "swin"]
ENCODERS: tuple[EncoderName, ...] = ("vit", "primus", "resenc", "swin")
TITLES = {"vit": "ViT", "primus": "Primus", "resenc": "ResEnc U-Net", "swin": "Swin"}
"""How a report calls them."""
METHODS = ("mae", "simmim", "simclr")
SCRATCH = "scratch"
StudyHead = Literal["own", "unetr", "tokens", "patch", "linear", "classify", "regress"]
OWN = "own"
SWIN_CELL = 32
"""Voxels along the edge of a cell of Swin's deepest map, which needs two of them."""
OWN_DECODERS: dict[str, Head] = {"primus": "patch"}
"""The head that is an encoder's own decoder, where it is not `unetr`: UNETR's of a ViT, nnU-Net's
of its U-Net, SwinUNETR's of a Swin."""


@dataclass(frozen=True)
class EncoderShapes:
    """Encoders that arms such as mae@primus have; crop and channels are the study's.

    The blocks that are hidden from a U-Net or a Swin are patches of the study's vit.
    """

    primus: PrimusConfig = field(default_factory=lambda: primus("B", 96))
    resenc: ResEncConfig = RESENC_S
    swin: SwinConfig = field(default_factory=SwinConfig)
    swin_crop: tuple[int, int, int] = (96, 96, 96)
    """Voxels of Swin's crops: multiples of 32, above 32 on one axis at least."""
    own: tuple[str, ...] = ()
    """NAME.FIELD=VALUE of a plugin's encoder, such as mine.gain=3; crop, patch, width and depth are
    the study's vit's where none is told."""

    def __post_init__(self) -> None:
        read_words(self.own, "shapes.own")
        refuse_outside(self, "swin_crop", 1, MOST_SIZE, part="shapes", kind=ConfigError)
        if any(size % SWIN_CELL for size in self.swin_crop) or max(self.swin_crop) <= SWIN_CELL:
            raise ConfigError(
                f"shapes.swin_crop {self.swin_crop} must be multiples of {SWIN_CELL}, and above "
                f"{SWIN_CELL} on one axis at least: --shapes.swin-crop 64 64 64"
            )


TINY_SHAPES = EncoderShapes(
    PrimusConfig((32, 32, 32), (8, 8, 8), width=96, depth=4, heads=4),
    RESENC_TINY,
    SwinConfig(feature_size=12, depths=(2, 2, 2, 2), heads=(3, 6, 12, 24), window=4),
    swin_crop=(64, 64, 64),
)
"""For minutes on a CPU."""


@dataclass(frozen=True)
class Arm:
    """One arm: scratch, a method with `-flops` or not, or a given encoder's name, and its `path`.

    `encoder` is empty where it is the study's own.
    """

    name: str
    encoder: str = ""
    path: str = ""

    @property
    def label(self) -> str:
        """`mae`, or `mae@primus` with another encoder than the study's own."""
        return label_of(self.name, self.encoder)


def label_of(arm: str, encoder: str) -> str:
    """`mae`, or `mae@primus` with another encoder than the study's own."""
    return f"{arm}@{encoder}" if encoder else arm


def parted(label: str) -> tuple[str, str]:
    """Arm and encoder of a label."""
    arm, _, encoder = label.partition("@")
    return arm, encoder


def read_arm(word: str) -> Arm:
    """An arm as it is written: NAME, NAME@ENCODER, NAME=PATH or NAME@ENCODER=PATH."""
    label, given, path = word.partition("=")
    name, at, encoder = label.partition("@")
    if at and not is_encoder(encoder):
        raise ConfigError(
            f"arms: {word!r} has an encoder {encoder!r} after the @, which is none of "
            f"{', '.join(ENCODERS)} nor of a plugin (--plugin FILE)"
        )
    if given and (not re.search(r"\w", name) or not path):
        raise ConfigError(f"arms: {word!r} must be NAME=PATH, with both a name and a path")
    if not given and name != SCRATCH and not is_known(name, REGISTERED):
        raise ConfigError(
            f"arms {[word]} are none of {SCRATCH}, {', '.join(METHODS)}, one of these with "
            "@ENCODER, NAME=PATH, or a method of a plugin (--plugin FILE)"
        )
    return Arm(name, encoder, path)


def is_known(name: str, registry: Registry[Any]) -> bool:
    """Whether a part of that name is there, once plugins that are installed are loaded."""
    if name not in registry:
        load_known()
    return name in registry


def is_encoder(name: str) -> bool:
    """Whether an arm may have an encoder of that name."""
    return name in ENCODERS or is_known(name, ENCODER_KINDS)


def check_encoders(encoders: Sequence[str]) -> None:
    """ConfigError where an encoder is unknown or named twice."""
    if len(set(encoders)) < len(encoders):
        raise ConfigError(f"encoders {tuple(encoders)} must name each once")
    unknown = [name for name in encoders if not is_encoder(name)]
    if unknown:
        raise ConfigError(
            f"encoders {unknown} are none of {', '.join(ENCODERS)} nor of a plugin (--plugin FILE)"
        )


def check_arms(arms: Sequence[str]) -> None:
    """ConfigError where a name is unknown, empty, taken twice, or kept for the study's own arms."""
    taken: dict[str, str] = {}
    for word in arms:
        arm = read_arm(word)
        if (arm.path and arm.name == SCRATCH) or arm.name.endswith("-flops"):
            raise ConfigError(
                f"arms: {word!r} takes a name that is kept (scratch has no pretraining, NAME-flops "
                "is of matching flops): give the encoder another name"
            )
        folder = re.sub(r"[^A-Za-z0-9.@]+", "-", arm.label)
        if folder in taken:
            raise ConfigError(
                f"arms: {taken[folder]!r} and {word!r} are both called {folder}: give the encoder "
                f"another name, such as given-{folder}={arm.path or 'PATH'}"
            )
        taken[folder] = word


def why_not(arm: Arm, own: str) -> str:
    """Why an arm's method cannot train its encoder, `own` where it names none; empty if it can."""
    if arm.name not in REGISTERED or arm.path:
        return ""
    entry, encoder = REGISTERED.find(arm.name), arm.encoder or own
    if encoder in entry.never:
        return entry.never[encoder]
    return "" if {encoder, ANY} & set(entry.ways) else f"{arm.name} has no way to train {encoder}"
