"""Blended windows in finished planes: MONAI's inferer to the bit, and no more held than needed."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from mim3d.engine.finetune.sliding_window import (
    WINDOWS_AT_ONCE,
    Sums,
    Windows,
    best_class,
    blended,
    mirrored,
)

CPU = torch.device("cpu")
SIDE = st.integers(1, 23)


def network(channels: int, classes: int) -> nn.Module:
    """A small network whose output depends on where in its window a voxel lies."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv3d(channels, 4, 3, padding=1), nn.GELU(), nn.Conv3d(4, classes, 1)
    ).to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]


def by_monai(net: nn.Module, image: Tensor, size: tuple[int, int, int], overlap: float) -> Tensor:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        found = sliding_window_inference(
            image[None].contiguous(memory_format=torch.channels_last_3d),
            size,
            WINDOWS_AT_ONCE,
            lambda crops: net(crops.contiguous(memory_format=torch.channels_last_3d)),
            overlap=overlap,
            mode="gaussian",
            cval=float(image.min()),
        )
    assert isinstance(found, Tensor)
    return found[0]


def by_planes(net: nn.Module, image: Tensor, windows: Windows) -> Tensor:
    parts, at = [], 0
    with torch.no_grad():
        for first, logits in blended(net, lambda a, b: image[:, a:b], windows, CPU):
            assert first == at
            parts.append(logits)
            at += logits.shape[1]
    return torch.cat(parts, 1)


@settings(max_examples=60)
@given(
    st.tuples(SIDE, SIDE, SIDE),
    st.tuples(*[st.sampled_from((4, 6, 8))] * 3),
    st.sampled_from((0.0, 0.25, 0.5, 0.7)),
    st.sampled_from((1, 3)),
)
def test_planes_are_those_of_monai_to_the_bit(
    shape: tuple[int, int, int], size: tuple[int, int, int], overlap: float, channels: int
) -> None:
    image = torch.rand(channels, *shape, generator=torch.Generator().manual_seed(1)) - 2
    net = network(channels, 3)
    found = by_planes(net, image, Windows(shape, size, overlap))
    assert found.shape == (3, *shape)
    assert torch.equal(found, by_monai(net, image, size, overlap))


def test_no_more_than_a_few_windows_depth_is_held() -> None:
    windows = Windows((4000, 8, 8), (16, 8, 8), 0.5)
    sums = Sums(windows, windows.starts(), CPU)
    assert sums.depth == 16 + (WINDOWS_AT_ONCE - 1) * 8
    asked = []

    def planes(start: int, end: int) -> Tensor:
        asked.append(end - start)
        return torch.zeros(1, end - start, 8, 8)

    for _, logits in blended(lambda crops: crops, planes, windows, CPU):
        assert logits.shape[1] <= sums.depth
    assert max(asked) == 16


def test_the_share_done_adds_up_to_one() -> None:
    shares: list[float] = []
    windows = Windows((9, 9, 30), (8, 8, 8), 0.25)
    image = torch.zeros(1, 9, 9, 30)
    list(blended(lambda c: c, lambda a, b: image[:, a:b], windows, CPU, shares.append))
    assert sum(shares) == pytest.approx(1)
    assert len(shares) > 1


def test_mirroring_is_the_mean_over_eight_reflections() -> None:
    torch.manual_seed(0)
    net, crops = network(2, 3).double(), torch.rand(2, 2, 6, 7, 8).double()
    with torch.no_grad():
        found = mirrored(net)(crops)
        for axes in ((2,), (3, 4), (2, 3, 4)):
            again = mirrored(net)(crops.flip(axes)).flip(axes)
            assert torch.allclose(again, found, atol=1e-6)
        assert not torch.allclose(net(crops).float(), found)
        same = mirrored(lambda c: c)(crops)
    assert torch.allclose(same, crops.float())


def test_the_best_class_is_the_first_of_equals_as_argmax_has_it() -> None:
    logits = torch.randn(5, 3, 7, 4).round()  # many ties
    logits[2, 0, 0, 0] = torch.nan
    assert torch.equal(best_class(logits).long(), logits.argmax(0))
