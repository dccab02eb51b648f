# ruff: noqa: ANN001, ANN201 (Triton's device functions have no Python types)
"""Apply an incoming scalar to a gradient that the forward pass already computed.

    scale_gradient(gradient, factor, triton) -> Tensor

The scalar lives on the device and is nearly always 1, so the kernel looks and, if it is, reads and
writes nothing: no host sync and no second pass over the gradient. It works in place, except where
the saved gradient may be needed again (retain_graph) or a compiler owns the memory.
"""

import torch
from torch import Tensor

from mim3d.kernels.backend import cdiv, jit, on_device, tl

BLOCK = 2048  # elements a program handles


@jit
def scale_kernel(p_gradient, p_factor, n_elements, BLOCK: tl.constexpr):
    """gradient *= factor in place, unless factor is 1: then nothing is read. Grid (n / BLOCK,)."""
    factor = tl.load(p_factor).to(tl.float32)
    if factor != 1.0:
        o_element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = o_element < n_elements
        b_gradient = tl.load(p_gradient + o_element, mask=mask).to(tl.float32) * factor
        b_gradient = b_gradient.to(p_gradient.dtype.element_ty)
        tl.store(p_gradient + o_element, b_gradient, mask=mask)


def scale_gradient(gradient: Tensor, factor: Tensor, triton: bool) -> Tensor:
    """gradient * factor in the gradient's dtype; consumes `gradient` where that is safe."""
    if not triton or torch.compiler.is_compiling() or _kept():
        return gradient * factor.to(gradient.dtype)
    torch.ops.mim3d.scale_gradient_(gradient, factor)
    return gradient


def _kept() -> bool:
    """Whether the running backward pass keeps its graph, so that saved tensors are read again."""
    keep_graph = getattr(torch._C, "_get_current_graph_task_keep_graph", None)
    return True if keep_graph is None else bool(keep_graph())


def launch_scale(gradient: Tensor, factor: Tensor) -> None:
    """gradient *= factor unless factor is 1."""
    # Every stride order is dense (empty_like), so the memory is one run of numel elements.
    n_elements = gradient.numel()
    with on_device(gradient):
        scale_kernel[(cdiv(n_elements, BLOCK),)](
            gradient, factor, n_elements, BLOCK=BLOCK, num_warps=4
        )


torch.library.define("mim3d::scale_gradient_", "(Tensor(a!) gradient, Tensor factor) -> ()")
torch.library.impl("mim3d::scale_gradient_", ("cpu", "cuda"), launch_scale)
torch.library.register_fake("mim3d::scale_gradient_", lambda gradient, factor: None)
