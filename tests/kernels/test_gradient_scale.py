"""The incoming scalar: in place where nothing else reads the gradient, and rounded once."""

from typing import ClassVar

import pytest
import torch

from mim3d.kernels import gradient_scale, masked_loss
from mim3d.kernels.backend import HAS_TRITON
from mim3d.kernels.codegen import recorded
from mim3d.kernels.gradient_scale import read_again, scale_gradient
from mim3d.kernels.masked_loss import masked_voxel_loss

PATCH = (2, 2, 2)


def loss_of(prediction, backend):
    volume = torch.arange(64.0, device=prediction.device).view(1, 1, 4, 4, 4)
    ids = torch.arange(4, device=prediction.device)[None]
    return masked_voxel_loss(prediction, volume, ids, PATCH, kind="l2", backend=backend)


def leaf(device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 4, 8, generator=generator).to(device, dtype).requires_grad_()


class Asks(torch.autograd.Function):
    """Tells what `read_again` says inside a backward pass."""

    answers: ClassVar[list[bool]] = []

    @staticmethod
    def forward(ctx, tensor):
        return tensor.sum()

    @staticmethod
    def backward(ctx, *grad_outputs):
        Asks.answers.append(read_again(grad_outputs[0]))
        return grad_outputs[0].expand(3)


def test_a_gradient_is_read_again_only_where_the_graph_is_kept_or_the_factors_are_many():
    Asks.answers.clear()
    tensor = torch.ones(3, requires_grad=True)
    result = Asks.apply(tensor)
    torch.autograd.grad(result, tensor, retain_graph=True)
    torch.autograd.grad(result, tensor)
    Asks.apply(tensor).backward()
    torch.autograd.grad(Asks.apply(tensor), tensor, torch.ones(2), is_grads_batched=True)
    assert Asks.answers == [True, False, False, True]


def test_the_kernel_scales_the_saved_gradient_where_it_lies(where, monkeypatch):
    """Out of place it would be read and written once more: 4 bytes a voxel beside the loss's 6."""
    backend, device = where
    saved = []

    def spied(gradient, factor, triton):
        saved.append(gradient.data_ptr())
        return scale_gradient(gradient, factor, triton)

    monkeypatch.setattr(masked_loss, "scale_gradient", spied)
    prediction = leaf(device)
    loss = loss_of(prediction, backend)
    (kept,) = torch.autograd.grad(3 * loss, prediction, retain_graph=True)
    assert kept.data_ptr() != saved[0]
    (last,) = torch.autograd.grad(3 * loss, prediction)
    assert torch.equal(last, kept)
    assert (last.data_ptr() == saved[1]) == (backend == "triton")


def test_many_factors_at_once(where):
    backend, device = where
    prediction, factors = leaf(device), torch.tensor([1.0, 2.0, -0.5], device=device)
    (many,) = torch.autograd.grad(
        loss_of(prediction, backend), prediction, factors, is_grads_batched=True
    )
    (one,) = torch.autograd.grad(loss_of(prediction, backend), prediction)
    torch.testing.assert_close(many, factors.view(-1, 1, 1, 1) * one)


@pytest.mark.parametrize(
    ("dtype", "factor", "size"),
    [(torch.bfloat16, 1 / 3, 1.0), (torch.float16, 1e-8, 3e4), (torch.float16, 1e5, 1e-3)],
)
def test_the_product_is_rounded_once(where, dtype, factor, size):
    """1/3 in bfloat16 is off by 2^-9 for every element; float16 makes 1e-8 0 and 1e5 infinite."""
    backend, device = where
    gradient = (torch.linspace(1, 2, 100, device=device) * size).to(dtype)
    factor = torch.tensor(factor, device=device)
    wanted = (gradient.float() * factor).to(dtype).cpu()
    scaled = scale_gradient(gradient, factor, backend == "triton").cpu()
    # The interpreter truncates what a GPU rounds.
    inexact = (backend, device) == ("triton", "cpu") and dtype == torch.bfloat16
    torch.testing.assert_close(scaled, wanted, rtol=2**-7 if inexact else 0, atol=0)


def test_every_element_is_scaled_once_however_many_a_program_takes(where, monkeypatch):
    backend, device = where
    if backend != "triton":
        pytest.skip("the reference multiplies")
    monkeypatch.setattr(gradient_scale, "PROGRAMS", 1)
    gradient = torch.arange(5 * gradient_scale.BLOCK + 7, dtype=torch.float32, device=device)
    gradient_scale.launch_scale(gradient, torch.tensor(2.0, device=device))
    assert torch.equal(gradient.cpu(), 2 * torch.arange(len(gradient), dtype=torch.float32))


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
@pytest.mark.parametrize("n", [1, 2048, 2049, 2 * 54 * 4096, 64 * 162 * 4096])
def test_few_programs_start_only_to_find_a_one(n):
    """The hidden voxels of 64 crops of 96^3 would be 20,736 programs of one block each."""
    with recorded(gradient_scale, "scale_kernel") as launches:
        gradient_scale.launch_scale(torch.empty(n, dtype=torch.bfloat16), torch.ones(()))
    (launch,) = launches
    span = launch.arguments["SPAN"]
    assert (launch.grid[0] - 1) * span < n <= launch.grid[0] * span
    assert launch.grid[0] <= 2 * gradient_scale.PROGRAMS


def test_registration_is_sound(where):
    backend, device = where
    if backend != "triton":
        pytest.skip("the reference needs no operation of its own")
    arguments = (torch.randn(2, 3, device=device), torch.tensor(2.0, device=device))
    torch.library.opcheck(torch.ops.mim3d.scale_gradient_.default, arguments)
