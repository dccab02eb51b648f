"""From a fine-tuning configuration to a network: the encoder of an arm, a head of the seed."""

import torch
from torch import nn

from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.config import FinetuneConfig
from mim3d.engine.finetune.encoder import build_encoder
from mim3d.engine.finetune.seeding import seeded
from mim3d.engine.models.flops import encoder_flops
from mim3d.engine.models.primus.decoder import PatchDecoder
from mim3d.engine.models.resenc.decoder import ResEncDecoder
from mim3d.engine.models.resenc.encoder import ResEncEncoder
from mim3d.engine.models.resenc.flops import decoder_flops
from mim3d.engine.models.resenc.network import ResEncNet
from mim3d.engine.models.swin import SwinEncoder
from mim3d.engine.models.swin_unetr import SwinDecoder, SwinSegmentationNet
from mim3d.engine.models.unetr import LinearDecoder, MonaiDecoder, SegmentationNet, UNETRDecoder
from mim3d.engine.transfer.start_report import Start


def build_segmentation(
    config: FinetuneConfig, classes: int, starts: list[Start] | None = None
) -> SegmentationNet | SwinSegmentationNet | ResEncNet:
    """Encoder and decoder; the decoder's weights depend on the seed alone, not on the arm.

    What became of given weights is added to `starts`.
    """
    encoder = build_encoder(config, starts)
    if isinstance(encoder, SwinEncoder):
        skip = config.head == "unetr"
        with seeded(config.seed, "decoder"):
            swin_decoder = SwinDecoder(encoder.config, config.vit, classes, image_skip=skip)
        return SwinSegmentationNet(encoder, swin_decoder)
    if isinstance(encoder, ResEncEncoder):
        with seeded(config.seed, "decoder"):
            return ResEncNet(encoder, ResEncDecoder(encoder.config, classes))
    if not hasattr(encoder, "hidden_states"):
        raise ConfigError(
            f"head {config.head} reads every block's tokens (hidden_states), which "
            f"{type(encoder).__name__} has not: derive it from ViT3D in its plugin, or take --head "
            "classify or regress"
        )
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


def step_flops(config: FinetuneConfig, net: nn.Module) -> float:
    """FLOPs of one training step: the encoder by formula, the head counted by torch.

    torch counts no attention on a CPU, hence the formula; a training step is three forwards.
    """
    from torch.utils.flop_counter import FlopCounterMode

    vit = config.vit
    encoder = encoder_flops(vit, config.encoder.backbone)
    per_crop = encoder.forward if config.freeze else encoder.training
    if isinstance(net, ResEncNet):
        outputs = net.decoder.seg_layers[-1].out_channels
        assert isinstance(outputs, int)
        decoder = decoder_flops(net.encoder.config, vit, outputs)
        return config.global_batch * (per_crop + 3.0 * decoder)
    head = net.get_submodule("decoder")
    device = next(head.parameters()).device
    tokens = torch.zeros(1, vit.n_patches, config.encoder.width, device=device)
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
