# ruff: noqa: ANN001, ANN201 (Triton's device functions have no Python types)
"""Apply an incoming scalar to a gradient that the forward pass already computed.

    scale_gradient(gradient, factor, triton) -> Tensor

The scalar lives on the device and is nearly always 1, so the kernel looks and, if it is, reads and
writes nothing: no host sync and no second pass over the gradient. It works in place, except where
the saved gradient may be needed again (retain_graph, a batch of scalars) or a compiler owns the
memory. Either way the product is rounded once: a factor rounded to bfloat16 beforehand would be
off by up to 2^-9 in every element alike, and a small one would vanish in float16.
"""

import torch
from torch import Tensor
from torch._C._autograd import _get_current_graph_task_keep_graph
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor

from mim3d.kernels.backend import cdiv, jit, next_power_of_2, on_device, tl

BLOCK = 2048  # elements of a step
PROGRAMS = 1024  # about what a GPU holds at once: more would cost time to start and find a 1
MOST_STEPS = 16


@jit
def scale_kernel(p_gradient, p_factor, n_elements, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """gradient *= factor in place, unless factor is 1: then nothing is read. Grid (n / SPAN,)."""
    factor = tl.load(p_factor).to(tl.float32)
    if factor != 1.0:
        o_span = tl.program_id(0).to(tl.int64) * SPAN
        for i_block in range(0, SPAN, BLOCK):
            o_element = o_span + i_block + tl.arange(0, BLOCK)
            mask = o_element < n_elements
            b_gradient = tl.load(p_gradient + o_element, mask=mask).to(tl.float32) * factor
            b_gradient = b_gradient.to(p_gradient.dtype.element_ty)
            tl.store(p_gradient + o_element, b_gradient, mask=mask)


def scale_gradient(gradient: Tensor, factor: Tensor, triton: bool) -> Tensor:
    """gradient * factor in the gradient's dtype; consumes `gradient` where that is safe."""
    if not triton or torch.compiler.is_compiling() or read_again(factor):
        wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        return (gradient.to(wide) * factor.to(wide)).to(gradient.dtype)
    torch.ops.mim3d.scale_gradient_(gradient, factor)
    return gradient


def read_again(factor: Tensor) -> bool:
    """Whether this backward pass may read the saved gradient more than once.

    It does where its graph is kept and where vmap runs it for many factors (is_grads_batched).
    """
    if is_legacy_batchedtensor(factor) or is_functorch_wrapped_tensor(factor):
        return True
    return _get_current_graph_task_keep_graph()


def launch_scale(gradient: Tensor, factor: Tensor) -> None:
    """gradient *= factor unless factor is 1."""
    # Every stride order is dense (empty_like), so the memory is one run of numel elements.
    n_elements = gradient.numel()
    steps = min(MOST_STEPS, next_power_of_2(cdiv(n_elements, BLOCK * PROGRAMS)))
    with on_device(gradient):
        scale_kernel[(cdiv(n_elements, BLOCK * steps),)](
            gradient, factor, n_elements, SPAN=BLOCK * steps, BLOCK=BLOCK, num_warps=4
        )


torch.library.define("mim3d::scale_gradient_", "(Tensor(a!) gradient, Tensor factor) -> ()")
torch.library.impl("mim3d::scale_gradient_", ("cpu", "cuda"), launch_scale)
torch.library.register_fake("mim3d::scale_gradient_", lambda gradient, factor: None)
