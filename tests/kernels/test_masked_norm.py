"""Masked norm against float64 moments of the visible voxels, with autograd's gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.kernels.backend import INTERPRETED
from mim3d.kernels.masked_norm import EPS, masked_norm

BACKENDS = [
    ("triton", "cpu") if INTERPRETED else ("reference", "cpu"),
    pytest.param(("triton", "cuda"), marks=pytest.mark.gpu),
]
SHAPES = [(2, 5, 3, 4, 5), (1, 32, 8, 8, 17), (2, 72, 2, 3, 2)]


@pytest.fixture(params=BACKENDS, ids="-".join)
def where(request):
    return request.param


def plainly(tensors, visible, slope):
    """In float64, sample by sample and channel by channel, over the visible voxels alone."""
    features, weight, bias = tensors
    out = torch.zeros_like(features)
    for b in range(features.shape[0]):
        seen = torch.ones_like(features[b, 0], dtype=torch.bool) if visible is None else visible[b]
        for c in range(features.shape[1]):
            values = features[b, c][seen]
            if len(values):
                normed = (values - values.mean()) / (values.var(correction=0) + EPS).sqrt()
                normed = torch.nn.functional.leaky_relu(normed * weight[c] + bias[c], slope)
                out[b, c] = torch.zeros_like(out[b, c]).masked_scatter(seen, normed)
    return out


def arguments(shape, device="cpu", dtype=torch.float32, masked=True, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(shape, generator=generator) * 2 + offset
    weight = torch.rand(shape[1], generator=generator) + 0.5
    bias = torch.randn(shape[1], generator=generator)
    visible = torch.rand(shape[0], *shape[2:], generator=generator) < 0.3 if masked else None
    leaves = [t.to(device, dtype).requires_grad_() for t in (features, weight, bias)]
    return [*leaves, None if visible is None else visible.to(device)]


@pytest.mark.parametrize("slope", [1.0, 0.01])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(where, shape, masked, slope):
    backend, device = where
    given = arguments(shape, device, masked=masked)
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    out = masked_norm(*given, slope=slope, backend=backend)
    got = torch.autograd.grad(out, given[:3], upstream.to(device))
    wide = [t.detach().cpu().double().requires_grad_() for t in given[:3]]
    visible = None if given[3] is None else given[3].cpu()
    truth = plainly(wide, visible, slope)
    wanted = torch.autograd.grad(truth, wide, upstream.double())
    torch.testing.assert_close(out.cpu().double(), truth, rtol=1e-5, atol=1e-5)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-4, atol=2e-5)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)


def test_far_from_zero_nothing_is_lost(where):
    """Sums of squares would cancel here."""
    backend, device = where
    given = arguments((1, 4, 4, 8, 40), device, offset=1000.0)
    out = masked_norm(*given, backend=backend)
    truth = plainly([t.detach().cpu().double() for t in given[:3]], given[3].cpu(), 1.0)
    torch.testing.assert_close(out.cpu().double(), truth, rtol=1e-4, atol=1e-3)


def test_bfloat16_is_computed_in_float32(where):
    backend, device = where
    given = arguments((2, 8, 3, 4, 5), device, torch.bfloat16)
    out = masked_norm(*given, slope=0.01, backend=backend)
    truth = plainly([t.detach().cpu().double() for t in given[:3]], given[3].cpu(), 0.01)
    torch.testing.assert_close(out.cpu().double(), truth, rtol=2**-6, atol=2**-7)
    assert out.dtype == torch.bfloat16


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), share=st.floats(0.0, 1.0))
def test_hidden_voxels_change_no_bit(seed, share):
    backend = "triton" if INTERPRETED else "reference"
    generator = torch.Generator().manual_seed(seed)
    visible = torch.rand(2, 2, 3, 4, generator=generator) < share
    features, weight, bias, _ = arguments((2, 3, 2, 3, 4))
    upstream = torch.randn(features.shape, generator=generator)
    changed = torch.where(visible[:, None], features.detach(), float("nan")).requires_grad_()
    results = []
    for values, flow in ((features, upstream), (changed, upstream * visible[:, None])):
        out = masked_norm(values, weight, bias, visible, slope=0.01, backend=backend)
        results.append((out, *torch.autograd.grad(out, (values, weight, bias), flow)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert not results[0][0][~visible[:, None].expand_as(features)].any()


def test_a_sample_without_visible_voxels_is_zero(where):
    backend, device = where
    given = arguments((2, 3, 2, 2, 2), device)
    given[3][1] = False
    out = masked_norm(*given, backend=backend)
    out.square().sum().backward()
    assert not out[1].any()
    assert given[0].grad is not None
    assert not given[0].grad[1].any()
    assert all(t.grad.isfinite().all() for t in given[:3])


@pytest.mark.parametrize("masked", [True, False])
def test_gradcheck(masked):
    given = arguments((2, 2, 2, 3, 2), dtype=torch.float64, masked=masked)
    assert torch.autograd.gradcheck(
        lambda *t: masked_norm(*t, visible=given[3], slope=0.1), given[:3]
    )


def test_without_a_mask_it_is_torchs_instance_norm(where):
    backend, device = where
    features, weight, bias, _ = arguments((2, 5, 4, 6, 3), device)
    wanted = torch.nn.functional.instance_norm(features, None, None, weight, bias, eps=EPS)
    found = masked_norm(features, weight, bias, backend=backend)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_registration_is_sound_and_compiles(where):
    backend, device = where
    given = arguments((2, 3, 2, 2, 4), device)
    triton = backend == "triton"
    rows = torch.randn(2, 16, 3, device=device)
    visible = torch.rand(2, 16, device=device) < 0.5
    moments = [torch.rand(2, 3, device=device) for _ in range(3)]
    plain = [t.detach() for t in given[1:3]]
    ops = torch.ops.mim3d
    torch.library.opcheck(ops.masked_moments.default, (rows, visible, EPS, triton))
    torch.library.opcheck(
        ops.masked_norm.default, (rows, visible, *moments[1:], *plain, 0.1, triton)
    )
    torch.library.opcheck(
        ops.masked_norm_gradient.default, (rows, rows, visible, *moments, *plain, 0.1, triton)
    )

    def normed(*tensors):
        return masked_norm(*tensors, visible=given[3], slope=0.01, backend=backend) * 2

    compiled = torch.compile(normed, fullgraph=True, backend="aot_eager")
    got, wanted = (
        torch.autograd.grad(function(*given[:3]).square().sum(), given[:3])
        for function in (compiled, normed)
    )
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_wrong_arguments_are_named():
    features, weight, bias, visible = arguments((2, 3, 2, 2, 4))
    with pytest.raises(ValueError, match=r"features has shape \(3, 2, 2, 4\)"):
        masked_norm(features[0], weight, bias)
    with pytest.raises(ValueError, match=r"weight has shape \(2,\); \(3,\) is needed"):
        masked_norm(features, weight[:2], bias)
    with pytest.raises(ValueError, match=r"visible has shape .* a bool"):
        masked_norm(features, weight, bias, visible.float())
    with pytest.raises(ValueError, match=r"slope is 2\.0"):
        masked_norm(features, weight, bias, slope=2.0)
