"""From a fine-tuning configuration to a network: the encoder of an arm, a head of the seed."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import FinetuneConfig
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.encoder import make_encoder
from mim3d.engine.models.flops import encoder_flops
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.primus.decoder import PatchDecoder
from mim3d.engine.models.primus.encoder import Primus3D
from mim3d.engine.models.resenc.config import Backbone
from mim3d.engine.models.resenc.decoder import ResEncDecoder
from mim3d.engine.models.resenc.encoder import ResEncEncoder
from mim3d.engine.models.resenc.flops import decoder_flops
from mim3d.engine.models.resenc.network import ResEncNet
from mim3d.engine.models.swin import SwinEncoder
from mim3d.engine.models.swin_unetr import SwinDecoder, SwinSegmentationNet
from mim3d.engine.models.unetr import LinearDecoder, MonaiDecoder, SegmentationNet, UNETRDecoder
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.runs.encoder_file import load_encoder, load_resenc, load_swin

Encoder = ViT3D | SwinEncoder | ResEncEncoder
NO_SHAPE = {"drop_path", "masking", "decoder_convs"}
"""Fields of an encoder's configuration that its weights do not show."""


def build_segmentation(
    config: FinetuneConfig, classes: int
) -> SegmentationNet | SwinSegmentationNet | ResEncNet:
    """Encoder and decoder; the decoder's weights depend on the seed alone, not on the arm."""
    encoder = build_encoder(config)
    if isinstance(encoder, SwinEncoder):
        skip = config.head == "unetr"
        with seeded(config.seed, "decoder"):
            swin_decoder = SwinDecoder(encoder.config, config.vit, classes, image_skip=skip)
        return SwinSegmentationNet(encoder, swin_decoder)
    if isinstance(encoder, ResEncEncoder):
        with seeded(config.seed, "decoder"):
            return ResEncNet(encoder, ResEncDecoder(encoder.config, classes))
    with seeded(config.seed, "decoder"):
        decoder = build_decoder(config, classes)
    return SegmentationNet(encoder, decoder)


def build_decoder(config: FinetuneConfig, classes: int) -> nn.Module:
    """The decoder of `config.head`: MONAI's UNETR where it fits, else ours."""
    if config.head == "linear":
        return LinearDecoder(config.vit, classes)
    if config.head == "patch":
        return PatchDecoder(config.vit, classes)
    if config.head == "unetr" and MonaiDecoder.fits(config.vit):
        return MonaiDecoder(config.vit, classes, config.feature_size)
    return UNETRDecoder(config.vit, classes, config.feature_size, image_skip=config.head == "unetr")


def build_encoder(config: FinetuneConfig) -> Encoder:
    """The encoder from `config.init`, or from the seed where it is empty."""
    if not config.init:
        with seeded(config.seed, "encoder"):
            encoder = fresh_encoder(config)
    elif config.resenc is not None:
        encoder = load_resenc(config.init)
        require_same_shape(config.init, encoder.config, config.resenc, "resenc")
    elif config.swin is not None:
        encoder = load_swin(config.init)
        require_same_shape(config.init, encoder.config, config.swin, "swin")
    else:
        encoder = load_encoder(config.init)
        require_same_shape(config.init, encoder.config, config.vit, "vit")
        if isinstance(encoder, Primus3D) and isinstance(config.vit, PrimusConfig):
            encoder.set_drop_path(config.vit.drop_path)
    for parameter in encoder.parameters():
        parameter.requires_grad_(not config.freeze)
    return encoder


def fresh_encoder(config: FinetuneConfig) -> Encoder:
    """An encoder with weights drawn from the generator as it stands."""
    if config.resenc is not None:
        return ResEncEncoder(config.resenc, config.vit)
    if config.swin is not None:
        return SwinEncoder(config.swin, config.vit)
    return make_encoder(config.vit)


def require_same_shape(
    source: str, found: ViTConfig | Backbone, wanted: ViTConfig | Backbone, field: str
) -> None:
    """ConfigError naming the fields in which a checkpoint's encoder is another one.

    How often branches are skipped is no part of its shape, nor what was hidden from it.
    """
    if isinstance(found, PrimusConfig) != isinstance(wanted, PrimusConfig):
        other, recipe = ("a Primus", "demo-primus") if isinstance(found, PrimusConfig) else (
            "a plain ViT", "demo")  # fmt: skip
        raise ConfigError(
            f"{source} holds {other}, and this recipe trains the other kind of transformer: take "
            f"one made for it, such as `mim3d finetune {recipe}`"
        )
    differing = [
        f"{name} {getattr(found, name)} instead of {getattr(wanted, name)}"
        for name in type(wanted).__dataclass_fields__
        if name not in NO_SHAPE and getattr(found, name) != getattr(wanted, name)
    ]
    if differing:
        raise ConfigError(
            f"{source}: this encoder has {', '.join(differing)}; set --{field} to the "
            "checkpoint's, or pretrain one of the wanted shape"
        )


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Draw the CPU's random numbers from (purpose, seed), and leave the stream outside alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{purpose}:{seed}".encode()))
        yield


def step_flops(config: FinetuneConfig, net: nn.Module) -> float:
    """FLOPs of one training step: the encoder by formula, the head counted by torch.

    torch counts no attention on a CPU, hence the formula; a training step is three forwards.
    """
    from torch.utils.flop_counter import FlopCounterMode

    vit, swin = config.vit, config.swin
    encoder = encoder_flops(vit, config.resenc or swin)
    per_crop = encoder.forward if config.freeze else encoder.training
    if isinstance(net, ResEncNet):
        outputs = net.decoder.seg_layers[-1].out_channels
        assert isinstance(outputs, int)
        decoder = decoder_flops(net.encoder.config, vit, outputs)
        return config.global_batch * (per_crop + 3.0 * decoder)
    head = net.get_submodule("decoder")
    device = next(head.parameters()).device
    width = (config.resenc or swin or vit).width
    tokens = torch.zeros(1, vit.n_patches, width, device=device)
    volume = torch.zeros(1, vit.channels, *vit.crop_size, device=device)
    maps = None
    if isinstance(net, SwinSegmentationNet):
        with torch.no_grad():
            maps = net.encoder.swin(volume, True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if maps is not None:
            head(volume, maps)
        elif isinstance(net, SegmentationNet):
            head(volume, [tokens] * vit.depth, tokens)
        else:
            head(tokens.mean(1))
    return config.global_batch * (per_crop + 3.0 * counter.get_total_flops())
