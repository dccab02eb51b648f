import pytest
import torch

from mim3d.engine.models.vit import resize_positions, sincos_positions


def test_values_follow_the_formula():
    table = sincos_positions((2, 3, 4), 12)
    patch = 1 * 12 + 2 * 4 + 3
    rate = 10_000.0**-0.5
    wanted = []
    for place in (1.0, 2.0, 3.0):
        angles = torch.tensor([place, place * rate])
        wanted += [torch.cat([angles.sin(), angles.cos()])]
    torch.testing.assert_close(table[patch], torch.cat(wanted))


@pytest.mark.parametrize("width", [6, 12, 64, 96, 97])
def test_positions_are_distinct_and_padded_with_zeros(width):
    table = sincos_positions((3, 2, 4), width)
    assert table.shape == (24, width)
    assert torch.unique(table, dim=0).shape[0] == 24
    assert not table[:, 6 * (width // 6) :].any()


def test_too_narrow_is_refused():
    with pytest.raises(ValueError, match="at least 6, got 5"):
        sincos_positions((2, 2, 2), 5)


def test_resizing_keeps_a_linear_ramp():
    ramp = torch.arange(4.0).reshape(4, 1, 1).expand(4, 2, 2).reshape(-1, 1)
    resized = resize_positions(ramp, (4, 2, 2), (8, 2, 2)).reshape(8, 2, 2)
    inner = resized[1:-1, 0, 0]
    torch.testing.assert_close(inner.diff(), torch.full((5,), 0.5))
    assert resize_positions(ramp, (4, 2, 2), (4, 2, 2)) is ramp
