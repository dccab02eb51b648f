"""Decoder tokens against indexing and concatenation, with autograd's gradients in float64."""

import pytest
import torch

from mim3d.kernels.decoder_tokens import decoder_tokens
from mim3d.kernels.masking import patch_masks


def arguments(b, n, v, d, dtype=torch.float32, device="cpu"):
    masks = patch_masks(0, torch.arange(b), n, v, backend="reference")
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(s, generator=generator) for s in ((b, v, d), (d,), (n, d))]
    leaves = [t.to(device, dtype).requires_grad_() for t in tensors]
    return [*leaves, masks.visible_ids.to(device), masks.masked_ids.to(device)]


def plainly(visible, mask_token, positions, visible_ids, masked_ids):
    hidden = mask_token + torch.zeros_like(positions)[masked_ids]
    order = torch.cat([visible_ids, masked_ids], 1)
    return torch.cat([visible, hidden], 1) + positions[order]


@pytest.mark.parametrize("shape", [(2, 12, 4, 20), (1, 7, 6, 64), (3, 5, 1, 1100)])
def test_tokens_and_gradients(where, shape):
    backend, device = where
    given = arguments(*shape, device=device)
    gradient = torch.randn(shape[0], shape[1], shape[3], generator=torch.Generator().manual_seed(1))
    tokens = decoder_tokens(*given, backend=backend)
    got = torch.autograd.grad(tokens, given[:3], gradient.to(device))
    wide = [t.detach().cpu().double().requires_grad_() for t in given[:3]]
    truth = plainly(*wide, *(t.cpu() for t in given[3:]))
    wanted = torch.autograd.grad(truth, wide, gradient.double())
    torch.testing.assert_close(tokens.cpu().double(), truth, rtol=1e-6, atol=1e-6)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_added_in_float32(where):
    backend, device = where
    given = arguments(2, 12, 4, 32, torch.bfloat16, device)
    tokens = decoder_tokens(*given, backend=backend)
    truth = plainly(*(t.detach().float() for t in given[:3]), *given[3:])
    relative = 2**-7 if (backend, device) == ("triton", "cpu") else 2**-8
    torch.testing.assert_close(tokens.float(), truth, rtol=relative, atol=1e-30)


def test_a_fixed_table_gets_no_gradient(where):
    backend, device = where
    given = arguments(2, 6, 2, 16, device=device)
    given[2] = given[2].detach()
    decoder_tokens(*given, backend=backend).sum().backward()
    assert given[0].grad is not None and given[1].grad is not None
    assert torch.equal(given[0].grad, torch.ones_like(given[0]))
    assert torch.equal(given[1].grad, torch.full_like(given[1], 8.0))


def test_gradcheck():
    given = arguments(2, 5, 2, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda *t: decoder_tokens(*t, *given[3:]), given[:3])


def test_registration_is_sound_and_compiles(where):
    backend, device = where
    given = arguments(2, 6, 2, 16, device=device)
    triton = backend == "triton"
    plain = [t.detach() for t in given]
    torch.library.opcheck(torch.ops.mim3d.decoder_tokens.default, (*plain, triton))
    gradient = torch.randn(2, 6, 16, device=device)
    torch.library.opcheck(
        torch.ops.mim3d.decoder_token_sums.default, (gradient, *plain[3:], triton)
    )

    def tokens(*tensors):
        return decoder_tokens(*tensors, *given[3:], backend=backend) * 2

    compiled = torch.compile(tokens, fullgraph=True, backend="aot_eager")
    got, wanted = (
        torch.autograd.grad(function(*given[:3]).square().sum(), given[:3])
        for function in (compiled, tokens)
    )
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_wrong_arguments_are_named():
    given = arguments(2, 6, 2, 16)
    with pytest.raises(ValueError, match=r"masked_ids has shape \(2, 3\)"):
        decoder_tokens(given[0], given[1], given[2], given[3], given[4][:, :3])
    with pytest.raises(ValueError, match=r"visible has shape \(2, 16\)"):
        decoder_tokens(given[0][0], given[1], given[2], given[3], given[4])
    with pytest.raises(ValueError, match=r"positions \(1, 6, 16\); .* are needed"):
        decoder_tokens(given[0], given[1], given[2][None], given[3], given[4])
    with pytest.raises(ValueError, match=r"masked_ids has shape \(2, 4\) on meta; .* on cpu is"):
        decoder_tokens(given[0], given[1], given[2], given[3], given[4].to("meta"))
    with pytest.raises(ValueError, match=r"visible_ids has dtype torch.int32"):
        decoder_tokens(given[0], given[1], given[2], given[3].int(), given[4])
    with pytest.raises(ValueError, match=r"visible has dtype torch.int32; a floating dtype"):
        decoder_tokens(given[0].int(), given[1], given[2], given[3], given[4])
    with pytest.raises(ValueError, match=r"masked_ids reach from .* they must lie in \[0, 6\)"):
        decoder_tokens(given[0], given[1], given[2], given[3], given[4] - 6)
