"""Masks: exact counts, the published Philox words, the same bits from every implementation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.kernels import masking
from mim3d.kernels.masking import PatchMasks, n_visible, patch_masks, philox_word

SAMPLES = torch.tensor([0, 5, 2**40 + 3])


def fields(masks: PatchMasks) -> list[torch.Tensor]:
    return [t.cpu() for t in (masks.visible_ids, masks.masked_ids, masks.masked)]


def test_philox_gives_the_published_words():
    """Random123's known answers for Philox4x32-10: counters and keys of 0 and of all ones."""
    zero = torch.zeros(1, dtype=torch.int64)
    assert philox_word(0, zero, zero, 0).item() == 0x6627E8D5
    ones = torch.tensor([0xFFFFFFFF])
    assert philox_word(2**64 - 1, ones, torch.tensor([-1]), 0xFFFFFFFF).item() == 0x408F276D


@pytest.mark.parametrize("kind", masking.KINDS)
@pytest.mark.parametrize(("grid", "keep"), [((6, 6, 6), 54), ((3, 5, 2), 1), ((1, 2, 70), 139)])
def test_same_bits_as_the_reference(where, kind, grid, keep):
    backend, device = where
    n = grid[0] * grid[1] * grid[2]
    arguments = (2**35 + 7, SAMPLES.to(device), n, keep)
    options = {"kind": kind, "grid": grid, "unit": 2}
    masks = patch_masks(*arguments, **options, backend=backend)
    truth = patch_masks(7 + 2**35, SAMPLES, n, keep, **options, backend="reference")
    for got, wanted in zip(fields(masks), fields(truth), strict=True):
        assert torch.equal(got, wanted)
    everything = torch.cat([masks.visible_ids, masks.masked_ids], 1).sort(1).values
    assert torch.equal(everything.cpu(), torch.arange(n).expand(3, n))
    assert torch.equal(masks.masked.sum(1).cpu(), torch.full((3,), n - keep))
    assert not masks.masked.gather(1, masks.visible_ids).any()


def test_more_patches_than_are_ranked_in_one_pass(where):
    backend, device = where
    n = masking.RANKED_PATCHES + 1
    masks = patch_masks(3, SAMPLES[:1].to(device), n, 1000, backend=backend)
    truth = patch_masks(3, SAMPLES[:1], n, 1000, backend="reference")
    assert all(torch.equal(a, b) for a, b in zip(fields(masks), fields(truth), strict=True))


def test_a_sample_keeps_its_mask_in_any_batch(where):
    backend, device = where
    whole = patch_masks(1, torch.arange(4, device=device), 30, 9, backend=backend)
    alone = patch_masks(1, torch.tensor([2], device=device), 30, 9, backend=backend)
    assert torch.equal(whole.visible_ids[2], alone.visible_ids[0])
    other = patch_masks(2, torch.tensor([2], device=device), 30, 9, backend=backend)
    assert not torch.equal(other.visible_ids, alone.visible_ids)


def test_block_masks_keep_whole_units():
    masks = patch_masks(0, SAMPLES, 216, 64, kind="block", grid=(6, 6, 6), unit=2)
    units = (~masks.masked).view(3, 3, 2, 3, 2, 3, 2).sum((2, 4, 6))
    assert set(units.flatten().tolist()) == {0, 8}


def test_a_partly_kept_unit_is_the_only_one():
    masks = patch_masks(0, SAMPLES, 216, 54, kind="block", grid=(6, 6, 6), unit=2)
    units = (~masks.masked).view(3, 3, 2, 3, 2, 3, 2).sum((2, 4, 6)).flatten(1)
    for row in units.tolist():
        assert sorted(row)[-7:] == [6, 8, 8, 8, 8, 8, 8] and sum(row) == 54


def test_grid_masks_keep_one_place_of_every_unit():
    masks = patch_masks(0, SAMPLES, 216, 27, kind="grid", grid=(6, 6, 6), unit=2)
    visible = (~masks.masked).view(3, 3, 2, 3, 2, 3, 2)
    assert (visible.sum((2, 4, 6)) == 1).all()
    places = visible.any(1).any(2).any(3)
    assert (places.sum((1, 2, 3)) == 1).all()


def test_every_patch_is_kept_equally_often():
    masks = patch_masks(11, torch.arange(4000), 64, 16, backend="reference")
    rates = (~masks.masked).double().mean(0)
    assert (rates - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5


@given(st.integers(2, 5000), st.floats(0.001, 0.999))
@settings(max_examples=60, deadline=None)
def test_visible_count_is_maes_floor_within_bounds(n, ratio):
    kept = n_visible(n, ratio)
    assert 1 <= kept <= n - 1
    assert abs(kept - n * (1 - ratio)) <= 1


def test_visible_count_survives_binary_fractions():
    assert n_visible(1000, 0.9) == 100
    assert n_visible(216, 0.75) == 54
    assert n_visible(2, 0.99) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"sample": torch.zeros(2)}, r"sample has shape \(2,\) and dtype torch.float32"),
        ({"n_visible": 8}, "n_visible is 8"),
        ({"kind": "stripes"}, "kind is 'stripes'"),
        ({"kind": "block"}, r"kind='block' needs grid"),
        ({"kind": "grid", "grid": (2, 2, 3), "unit": 2}, "has 12 patches but n_patches is 8"),
        ({"kind": "block", "grid": (2, 2, 2), "unit": 0}, "unit is 0"),
        ({"unit": 0}, "unit is 0; kind='random' needs at least 1"),
        ({"kind": "grid", "grid": (2, 2, 2)}, "unit is 1; kind='grid' needs at least 2"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"seed": 0, "sample": SAMPLES, "n_patches": 8, "n_visible": 2} | change
    with pytest.raises(ValueError, match=message):
        patch_masks(**arguments)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1])
def test_mask_ratio_outside_zero_to_one(ratio):
    with pytest.raises(ValueError, match="mask_ratio"):
        n_visible(8, ratio)


def test_registration_is_sound(where):
    _, device = where
    arguments = (SAMPLES.to(device), 3, 8, 2, "random", (1, 1, 8), 1, where[0] == "triton")
    torch.library.opcheck(torch.ops.mim3d.patch_masks.default, arguments)


def test_compiles_as_one_graph(where):
    backend, device = where

    def masked(sample):
        return patch_masks(5, sample + 1, 12, 3, backend=backend).masked_ids * 2

    compiled = torch.compile(masked, fullgraph=True, backend="aot_eager")
    sample = SAMPLES.to(device)
    assert torch.equal(compiled(sample), masked(sample))
