"""Turned crops from their boxes: scipy's, the bits of the loop on a CPU, and refusals."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import affine_transform

from mim3d.kernels.backend import INTERPRETED
from mim3d.kernels.resample import resample_boxes


def placing_of(b: int, seed: int) -> torch.Tensor:
    """Matrices near the identity, and offsets of a few voxels."""
    rng = np.random.default_rng(seed)
    matrix = np.eye(3) + rng.normal(size=(b, 3, 3)) * 0.4
    return torch.from_numpy(np.concatenate([matrix, rng.normal(size=(b, 3, 1)) * 3], axis=2))


def whole(b: int, size: tuple[int, ...]) -> torch.Tensor:
    """The extent of a volume that is its own box."""
    ends = torch.tensor([(0, 0, 0), size], dtype=torch.float64) - 0.5
    return ends.expand(b, 2, 3).contiguous()


@given(
    size=st.tuples(*[st.integers(1, 7)] * 3),
    crop=st.tuples(*[st.integers(1, 6)] * 3),
    channels=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=8 if INTERPRETED else 60, deadline=None)
def test_crops_are_scipys(size, crop, channels, seed):
    backend = "triton" if INTERPRETED else "reference"
    rng = np.random.default_rng(seed)
    boxes = torch.from_numpy(rng.normal(size=(2, channels, *size)).astype(np.float32))
    placing, fill = placing_of(2, seed), torch.full((2, channels), -9.0)
    extent = whole(2, size)
    got = resample_boxes(boxes, placing, extent, crop_size=crop, fill=fill, backend=backend)
    labels = torch.from_numpy(rng.integers(1, 9, (2, 1, *size)).astype(np.uint8))
    marks = resample_boxes(labels, placing, extent, crop_size=crop, backend=backend)
    last = np.array(size)[:, None, None, None] - 1
    for i in range(2):
        matrix, offset = placing[i, :, :3].numpy(), placing[i, :, 3].numpy()
        at = np.einsum("ij,jzyx->izyx", matrix, np.indices(crop)) + offset[:, None, None, None]
        inside = ((at >= -0.5) & (at < last + 0.5)).all(0)
        for channel in range(channels):
            wanted = affine_transform(
                boxes[i, channel].numpy().astype(np.float64), matrix, offset.tolist(),
                output_shape=crop, order=1, mode="nearest",
            )  # fmt: skip
            np.testing.assert_allclose(got[i, channel].numpy()[inside], wanted[inside], atol=1e-5)
            assert (got[i, channel].numpy()[~inside] == -9).all()
        nearest = affine_transform(
            labels[i, 0].numpy(), matrix, offset.tolist(), output_shape=crop, order=0,
            mode="nearest",
        )  # fmt: skip
        clear = (np.abs(at % 1 - 0.5) > 1e-6).all(0)
        np.testing.assert_array_equal(marks[i, 0].numpy()[inside & clear], nearest[inside & clear])
        assert not marks[i, 0].numpy()[~inside].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int16])
def test_both_give_the_same_bits_also_from_boxes_that_are_too_large(where, dtype):
    backend, device = where
    voxels = (torch.randn(2, 1, 9, 8, 12) * 50 + 100).clamp(0, 255).to(dtype)
    placing, fill = (
        placing_of(2, 5),
        torch.tensor([[1.5], [-2.0]]) if dtype.is_floating_point else None,
    )
    extent = torch.tensor([[[-4.5, -0.5, -0.5], [6.5, 7.5, 9.5]], [[-0.5] * 3, [30.5, 7.5, 5.5]]])
    given_: dict[str, Any] = {"crop_size": (6, 5, 9)}
    wanted = resample_boxes(
        voxels, placing, extent.double(), fill=fill, backend="reference", **given_
    )
    got = resample_boxes(
        voxels.to(device), placing.to(device), extent.double().to(device),
        fill=None if fill is None else fill.to(device), backend=backend, **given_,
    )  # fmt: skip
    assert torch.equal(got.cpu(), wanted)
    moved = voxels.to(device).permute(0, 1, 4, 3, 2).contiguous().permute(0, 1, 4, 3, 2)
    again = resample_boxes(
        moved, placing.to(device), extent.double().to(device),
        fill=None if fill is None else fill.to(device), backend=backend, **given_,
    )  # fmt: skip
    assert torch.equal(again, got)


def test_a_crop_beside_its_volume_is_fill(where):
    backend, device = where
    placing = torch.eye(3, 4, dtype=torch.float64)[None]
    extent = torch.full((1, 2, 3), -100.0, dtype=torch.float64)
    voxels, fill = torch.ones(1, 2, 3, 3, 3), torch.tensor([[4.0, 5.0]])
    got = resample_boxes(
        voxels.to(device), placing.to(device), extent.to(device), crop_size=(2, 2, 3),
        fill=fill.to(device), backend=backend,
    )  # fmt: skip
    assert (got[:, 0] == 4).all()
    assert (got[:, 1] == 5).all()


def test_what_does_not_fit_is_refused():
    voxels, fill = torch.ones(2, 1, 4, 4, 4), torch.zeros(2, 1)
    placing, extent = placing_of(2, 0), whole(2, (4, 4, 4))
    wrong = (
        ((voxels.double(), placing, extent, fill), "boxes has shape"),
        ((voxels[0], placing, extent, fill), "boxes has shape"),
        ((voxels, placing.float(), extent, fill), "placing has shape"),
        ((voxels, placing[:1], extent, fill), "placing has shape"),
        ((voxels, placing, extent[:, 0], fill), "extent has shape"),
        ((voxels, placing, extent, None), "fill is for images"),
        ((voxels.to(torch.int16), placing, extent, fill), "fill is for images"),
        ((voxels[:, :, :0], placing, extent, fill), "1 to"),
    )
    for (boxes, where_, reach, padding), said in wrong:
        with pytest.raises(ValueError, match=said):
            resample_boxes(boxes, where_, reach, crop_size=(3, 3, 3), fill=padding)


def test_the_operator_is_registered_as_torch_wants_it():
    voxels, fill = torch.randn(2, 1, 4, 5, 4), torch.zeros(2, 1)
    given_ = (voxels, placing_of(2, 0), whole(2, (4, 5, 4)))
    operator: Any = torch.ops.mim3d.resample_boxes
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(operator, (*given_, fill, (3, 4, 5), False), test_utils=tests)
    torch.library.opcheck(
        operator, (voxels.to(torch.uint8), *given_[1:], None, (3, 4, 5), False), test_utils=tests
    )
