import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.engine.arithmetic.recompute import set_recompute
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.vit import ViT3D
from mim3d.kernels.patch_rows import gather_patch_rows

SMALL = ViTConfig((8, 12, 16), (4, 6, 4), channels=2, width=24, depth=2, heads=3)


def test_grid_and_counts_of_a_non_cubic_crop():
    assert SMALL.grid == (2, 2, 4)
    assert SMALL.n_patches == 16
    assert SMALL.patch_voxels == 96
    assert SMALL.row_width == 192


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"patch_size": (5, 6, 4)}, r"patch_size \(5, 6, 4\).*crop_size \(8, 12, 16\)"),
        ({"patch_size": (16, 6, 4)}, "axis z"),
        ({"heads": 5}, "heads 5 must divide vit.width 24"),
        ({"depth": 0}, "depth 0"),
        ({"channels": 0}, "channels 0"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_both_values(change, named):
    fields = {"crop_size": (8, 12, 16), "patch_size": (4, 6, 4), "width": 24, "heads": 3}
    with pytest.raises(ConfigError, match=named):
        ViTConfig(**{**fields, **change})


def test_forward_equals_rows_of_all_patches_in_any_order():
    torch.manual_seed(0)
    model = ViT3D(SMALL).double()
    volume = torch.randn(2, 2, 8, 12, 16, dtype=torch.float64)
    tokens = model(volume)
    assert tokens.shape == (2, 16, 24)
    order = torch.stack([torch.randperm(16) for _ in range(2)])
    rows = gather_patch_rows(volume, order, SMALL.patch_size)
    shuffled = model.forward_rows(rows, order)
    torch.testing.assert_close(shuffled, tokens.gather(1, order[..., None].expand(-1, -1, 24)))


def test_patch_numbers_follow_space():
    """The token of a patch changes most where that patch's voxels change."""
    torch.manual_seed(0)
    model = ViT3D(SMALL)
    volume = torch.randn(1, 2, 8, 12, 16)
    rows = model.all_rows(volume)
    volume[0, 1, 5, 7, 13] += 1.0
    moved = (model.all_rows(volume) != rows).any(-1)[0]
    assert moved.nonzero().flatten().tolist() == [1 * 8 + 1 * 4 + 3]


def test_hidden_states_end_where_forward_does():
    model = ViT3D(SMALL)
    volume = torch.randn(1, 2, 8, 12, 16)
    states = model.hidden_states(volume)
    assert [tuple(state.shape) for state in states] == [(1, 16, 24)] * 2
    torch.testing.assert_close(model.norm(states[-1]), model(volume))


def gradients(model, volume):
    model.zero_grad()
    model(volume).square().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def test_recomputation_changes_no_gradient():
    torch.manual_seed(0)
    model = ViT3D(SMALL)
    volume = torch.randn(2, 2, 8, 12, 16)
    plain = gradients(model, volume)
    for block in model.blocks:
        set_recompute(block)
    for again, before in zip(gradients(model, volume), plain, strict=True):
        assert torch.equal(again, before)


def test_learned_positions_are_parameters_and_sincos_are_not_stored():
    learned = ViT3D(ViTConfig((8, 8, 8), (4, 4, 4), width=12, depth=1, heads=2, position="learned"))
    fixed = ViT3D(ViTConfig((8, 8, 8), (4, 4, 4), width=12, depth=1, heads=2))
    assert "pos_embed" in learned.state_dict()
    assert not [name for name in fixed.state_dict() if "sincos" in name or "pos" in name]
    assert len(gradients(learned, torch.randn(1, 1, 8, 8, 8))) == len(list(learned.parameters()))


def test_a_volume_of_another_shape_is_refused():
    with pytest.raises(ConfigError, match=r"\(1, 2, 8, 12, 12\).*\(b, 2, 8, 12, 16\)"):
        ViT3D(SMALL)(torch.zeros(1, 2, 8, 12, 12))


@settings(max_examples=20, deadline=None)
@given(
    grid=st.tuples(*[st.integers(1, 3)] * 3),
    patch=st.tuples(*[st.integers(1, 5)] * 3),
    channels=st.integers(1, 3),
)
def test_any_grid_of_patches_encodes(grid, patch, channels):
    crop = tuple(g * p for g, p in zip(grid, patch, strict=True))
    config = ViTConfig(crop, patch, channels, width=12, depth=1, heads=2)
    tokens = ViT3D(config)(torch.randn(2, channels, *crop))
    assert tokens.shape == (2, grid[0] * grid[1] * grid[2], 12)
    assert tokens.isfinite().all()
