"""The DALI graph on the CPU: geometry, alignment of labels, ownership of outputs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mim3d.dataio.transforms.augment import Augmentation, augmentation, draw_view
from mim3d.dataio.transforms.dali import DaliGraph, feed_order
from mim3d.dataio.transforms.graph import GraphSpec

SIZE = (12, 16, 20)
BATCH = 6


def spec_of(kind: Augmentation, channels=1, views=1, label_dtype=None) -> GraphSpec:
    return GraphSpec(BATCH, channels, SIZE, views, label_dtype, kind, None, 1)


def blobs(channels=1, seed=0) -> np.ndarray:
    """One bright blob per sample and channel, off the middle, on a faint gradient."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1).astype(np.float32)
    middle = rng.uniform(0.3, 0.7, (BATCH, channels, 3)) * np.array(SIZE)
    distance = ((grid - middle[:, :, None, None, None]) ** 2).sum(-1)
    return (np.exp(-distance / 12) + 0.01 * grid[..., 2] / SIZE[2]).astype(np.float32)


def run_graph(spec, image, label, views, times=1):
    graph = DaliGraph(spec, lambda _i: feed_order(spec, image, label, views))
    outputs = [graph.run() for _ in range(times)]
    graph.close()
    return outputs


def still(kind: Augmentation, **changed):
    """Draws that change nothing but what is given."""
    seeds = np.arange(BATCH, dtype=np.uint64)
    off = np.zeros(BATCH, bool)
    drawn = replace(
        draw_view(kind, seeds, 0, SIZE),
        resized=off, turn_z=off, turn_y=off, turn_x=off, blurred=off,
        roi_start=np.zeros((BATCH, 3), np.float32),
        roi_end=np.tile(np.array(SIZE, np.float32), (BATCH, 1)),
        gain=np.ones(BATCH, np.float32), bias=np.zeros(BATCH, np.float32),
    )  # fmt: skip
    return replace(drawn, **changed)


def test_without_augmentation_voxels_pass_unchanged():
    image = blobs(2)
    label = (image[:, 0] > 0.5).astype(np.uint8)
    spec = spec_of(augmentation("none"), channels=2, label_dtype="uint8")
    [(got, got_label)] = run_graph(spec, image, label, [still(augmentation("none"))])
    np.testing.assert_array_equal(got, image)
    np.testing.assert_array_equal(got_label, label)
    assert got_label.dtype == torch.uint8


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_reversed_box_is_a_flip(channels, axis):
    kind = augmentation("contrastive")
    image = blobs(channels)
    drawn = still(kind)
    drawn.roi_start[:, axis], drawn.roi_end[:, axis] = SIZE[axis], 0
    [(got,)] = run_graph(spec_of(kind, channels), image, None, [drawn])
    np.testing.assert_allclose(got, np.flip(image, axis + 2), atol=1e-5)


def test_a_box_is_stretched_to_the_crop():
    kind = augmentation("contrastive")
    image = np.broadcast_to(np.arange(SIZE[2], dtype=np.float32), (BATCH, 1, *SIZE)).copy()
    drawn = still(kind)
    drawn.roi_start[:, 2], drawn.roi_end[:, 2] = 5, 15
    [(got,)] = run_graph(spec_of(kind), image, None, [drawn])
    centres = 5 + (np.arange(20) + 0.5) * 10 / 20 - 0.5
    np.testing.assert_allclose(got[0, 0, 3, 4], centres, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "plane"), [("turn_z", (4, 3)), ("turn_y", (4, 2)), ("turn_x", (3, 2))]
)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_half_turn_about_an_axis_flips_the_two_others(name, plane, channels):
    kind = augmentation("segmentation")
    image = blobs(channels)
    label = (image[:, 0] > 0.3).astype(np.uint8)
    chosen = np.arange(BATCH) % 2 == 0
    fast, slow = (SIZE[axis - 2] for axis in plane)
    half = np.array([[-1, 0, fast], [0, -1, slow]], np.float32)
    drawn = still(kind, **{name: chosen, "matrix": np.tile(half, (BATCH, 1, 1))})
    spec = spec_of(kind, channels, label_dtype="uint8")
    [(got, got_label)] = run_graph(spec, image, label, [drawn])
    turned = np.flip(image, plane)
    np.testing.assert_allclose(got[chosen], turned[chosen], atol=1e-5)
    np.testing.assert_array_equal(got[~chosen], image[~chosen])
    turned_label = np.flip(label, tuple(axis - 1 for axis in plane))
    np.testing.assert_array_equal(got_label[chosen], turned_label[chosen])
    np.testing.assert_array_equal(got_label[~chosen], label[~chosen])


def test_labels_stay_aligned_under_zoom_and_rotation():
    kind = replace(augmentation("segmentation"), rotate=1.0, zoom=1.0)
    image = blobs()
    label = (image[:, 0] > 0.4).astype(np.int16) * 7
    drawn = draw_view(kind, np.arange(BATCH, dtype=np.uint64), 0, SIZE)
    spec = spec_of(kind, label_dtype="int16")
    [(got, got_label)] = run_graph(spec, image, label, [drawn])
    bright = got[:, 0].numpy() > 0.4
    same = (bright == (got_label.numpy() == 7)).mean()
    assert set(np.unique(got_label)) == {0, 7}
    assert same > 0.985
    assert (got_label.numpy() != label).any()


def test_blur_smooths_the_chosen_samples_only():
    kind = augmentation("contrastive")
    image = np.random.default_rng(0).standard_normal((BATCH, 1, *SIZE)).astype(np.float32)
    chosen = np.arange(BATCH) < 3
    drawn = still(kind, blurred=chosen, sigma=np.full(BATCH, 0.9, np.float32))
    [(got,)] = run_graph(spec_of(kind), image, None, [drawn])
    spread = got.flatten(1).std(1).numpy()
    assert (spread[chosen] < 0.6).all()
    assert (spread[~chosen] > 0.9).all()


def test_gain_and_bias_per_sample():
    kind = augmentation("contrastive")
    image = blobs()
    gain = np.linspace(0.5, 2, BATCH, dtype=np.float32)
    bias = np.linspace(-1, 1, BATCH, dtype=np.float32)
    [(got,)] = run_graph(spec_of(kind), image, None, [still(kind, gain=gain, bias=bias)])
    want = image * gain[:, None, None, None, None] + bias[:, None, None, None, None]
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("name", ["contrastive", "segmentation"])
def test_the_same_draws_give_the_same_voxels(name):
    kind = replace(augmentation(name), rotate=1.0)
    views = 2 if kind.per_view else 1
    label = (
        None if kind.per_view else np.random.default_rng(0).integers(0, 9, (BATCH, *SIZE), np.uint8)
    )
    seeds = np.arange(BATCH, dtype=np.uint64)
    drawn = [draw_view(kind, seeds, view, SIZE) for view in range(views)]
    spec = spec_of(kind, views=views, label_dtype=None if label is None else "uint8")
    first, *others = run_graph(spec, blobs(), label, drawn, times=12)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_outputs_stay_what_they_were_while_the_graph_goes_on():
    spec = spec_of(augmentation("none"))
    graph = DaliGraph(spec, lambda i: [np.full((BATCH, 1, *SIZE), i, np.float32)])
    kept = [graph.run()[0] for _ in range(30)]
    graph.close()
    assert [float(tensor.min()) for tensor in kept] == list(range(30))
    assert [float(tensor.max()) for tensor in kept] == list(range(30))
    with pytest.raises(RuntimeError, match="closed"):
        graph.run()
