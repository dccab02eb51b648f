"""Decoders over our encoder: shapes, MONAI's UNETR as the truth, what reaches the logits."""

import pytest
import torch

from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.unetr import (
    LinearDecoder,
    MonaiDecoder,
    SegmentationNet,
    UNETRDecoder,
    stage_factors,
)
from mim3d.engine.models.vit import ViT3D

TINY = ViTConfig((16, 16, 16), (8, 8, 8), width=24, depth=4, heads=2)
MONAI_SHAPE = ViTConfig((32, 32, 32), (16, 16, 16), width=24, depth=12, heads=2)

# MONAI's names of the parts that ours keeps in lists.
PAIRS = {
    "image_skip.": "encoder1.",
    "ups.0.": "decoder5.",
    "ups.1.": "decoder4.",
    "ups.2.": "decoder3.",
    "ups.3.": "decoder2.",
    "out.": "out.",
}


def as_ours(monai_name: str) -> str:
    for ours, theirs in PAIRS.items():
        if monai_name.startswith(theirs):
            return ours + monai_name.removeprefix(theirs)
    encoder, rest = monai_name.split(".", 1)
    skip = int(encoder.removeprefix("encoder")) - 2
    if rest.startswith("transp_conv_init."):
        return f"token_skips.{skip}.0." + rest.removeprefix("transp_conv_init.")
    _, block, part = rest.split(".", 2)
    return f"token_skips.{skip}.{int(block) + 1}.{part}"


def test_ours_is_monais_unetr_with_its_weights() -> None:
    torch.manual_seed(0)
    encoder = ViT3D(MONAI_SHAPE)
    monai = MonaiDecoder(MONAI_SHAPE, 3, feature_size=4)
    ours = UNETRDecoder(MONAI_SHAPE, 3, feature_size=4)
    weights = {as_ours(name): tensor for name, tensor in monai.unetr.state_dict().items()}
    ours.load_state_dict(weights, strict=True)
    volume = torch.randn(2, 1, 32, 32, 32)
    one, two = SegmentationNet(encoder, monai)(volume), SegmentationNet(encoder, ours)(volume)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_stage_factors() -> None:
    assert stage_factors((16, 16, 16)) == [(2, 2, 2)] * 4
    assert stage_factors((4, 8, 8)) == [(1, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert stage_factors((12, 4, 1)) == [(3, 1, 1), (2, 2, 1), (2, 2, 1)]
    with pytest.raises(ConfigError, match="nothing to upsample"):
        stage_factors((1, 1, 1))


@pytest.mark.parametrize(
    ("crop", "patch", "channels"),
    [
        ((16, 16, 16), (8, 8, 8), 1),
        ((8, 16, 24), (4, 8, 8), 2),
        ((12, 12, 12), (6, 6, 6), 1),
        ((8, 8, 8), (2, 2, 2), 1),
    ],
)
@pytest.mark.parametrize("image_skip", [True, False])
def test_logits_cover_the_crop(
    crop: tuple[int, int, int], patch: tuple[int, int, int], channels: int, image_skip: bool
) -> None:
    vit = ViTConfig(crop, patch, channels=channels, width=12, depth=3, heads=2)
    net = SegmentationNet(ViT3D(vit), UNETRDecoder(vit, 3, 4, image_skip))
    logits = net(torch.randn(1, channels, *crop))
    assert logits.shape == (1, 3, *crop)
    logits.square().mean().backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None]
    assert not unused


@pytest.mark.parametrize("image_skip", [True, False])
def test_without_the_image_skip_only_tokens_reach_the_logits(image_skip: bool) -> None:
    net = UNETRDecoder(TINY, 2, 4, image_skip)
    states = [torch.randn(1, TINY.n_patches, TINY.width) for _ in range(TINY.depth)]
    one, two = (net(torch.randn(1, 1, 16, 16, 16), states, states[-1]) for _ in range(2))
    assert torch.equal(one, two) is not image_skip


def test_linear_decoder_puts_each_token_on_its_own_voxels() -> None:
    vit = ViTConfig((8, 8, 16), (4, 4, 8), width=12, depth=1, heads=2)
    net = LinearDecoder(vit, 2)
    tokens = torch.zeros(1, vit.n_patches, vit.width)
    base = net(torch.zeros(1), [], tokens)
    tokens[0, 3] = 1.0  # C order on the (2, 2, 2) grid: z 0, y 1, x 1
    moved = (net(torch.zeros(1), [], tokens) != base)[0].any(0)
    expected = torch.zeros(8, 8, 16, dtype=torch.bool)
    expected[0:4, 4:8, 8:16] = True
    assert torch.equal(moved, expected)


def test_monai_fits_only_its_own_shape() -> None:
    assert MonaiDecoder.fits(MONAI_SHAPE)
    assert not MonaiDecoder.fits(TINY)
