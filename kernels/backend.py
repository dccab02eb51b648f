"""Which implementation runs a fused operation, and why: Triton kernels or their PyTorch reference.

    choose(tensor, backend="auto") -> "triton" | "reference"
    decide(device, floating64, backend) -> Choice(implementation, reason)
    explain() -> one line per device, for bug reports

CUDA tensors go to Triton, CPU tensors to the reference, CPU tensors under TRITON_INTERPRET=1 to
Triton's interpreter. float64 always goes to the reference, for the kernels accumulate in float32.
Triton is optional: without it `jit` returns the plain function and nothing here fails to import.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

HAS_TRITON = importlib.util.find_spec("triton") is not None
# Triton reads the variable when a kernel is decorated, so its value at import is what counts.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ("auto", "triton", "reference")

Implementation = Literal["triton", "reference"]

if HAS_TRITON or TYPE_CHECKING:
    import triton
    import triton.language as tl

    def jit(function: Callable[..., Any]) -> Any:
        """`triton.jit`, with the seeds and counts that change per call left unspecialised."""
        unspecialised: list[int | str] = ["seed", "n_rows", "n_samples"]
        return triton.jit(do_not_specialize=unspecialised)(function)

else:
    from types import SimpleNamespace

    tl = SimpleNamespace(constexpr=int)

    def jit(function: Callable[..., Any]) -> Any:
        """Stand-in: the function stays plain and is never launched."""
        return function


@dataclass(frozen=True)
class Choice:
    """The implementation that runs, and the reason in words."""

    implementation: Implementation
    reason: str


def decide(device: str, *, float64: bool = False, backend: str = "auto") -> Choice:
    """Implementation for a device type such as "cuda"; ValueError where `backend` cannot run."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; one of {', '.join(BACKENDS)}")
    if backend == "reference":
        return Choice("reference", "asked for")
    obstacle = _obstacle(device, float64)
    if backend == "triton":
        if obstacle:
            raise ValueError(f"backend='triton' cannot run: {obstacle}")
        return Choice("triton", "asked for")
    if obstacle:
        return Choice("reference", obstacle)
    return Choice("triton", "CUDA device" if device == "cuda" else "TRITON_INTERPRET=1")


def _obstacle(device: str, float64: bool) -> str:
    """Why Triton cannot serve these tensors; empty where it can."""
    if not HAS_TRITON:
        return "triton is not installed"
    if float64:
        return "float64 tensors: the kernels accumulate in float32"
    if INTERPRETED:
        return "" if device == "cpu" else f"TRITON_INTERPRET=1 is set but the tensor is on {device}"
    return "" if device == "cuda" else f"tensor on {device} and TRITON_INTERPRET is not 1"


def choose(tensor: Tensor, backend: str = "auto", *others: torch.dtype) -> Implementation:
    """Implementation for this tensor's device and dtype, and other dtypes that take part."""
    float64 = torch.float64 in (tensor.dtype, *others)
    return decide(tensor.device.type, float64=float64, backend=backend).implementation


def explain() -> str:
    """What `backend="auto"` means on this machine, one line per device type."""
    rows = []
    for device in ("cuda", "cpu"):
        choice = decide(device)
        rows.append(f"{device}: {choice.implementation} ({choice.reason})")
    return "\n".join(rows)


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Context in which a kernel launches on the tensor's own GPU, whatever the current one is."""
    if tensor.device.type == "cuda":
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


def refuse_double_backward(name: str) -> None:
    """RuntimeError under create_graph: a gradient kept from the forward pass would be constant."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(f"{name} is differentiable once: do not use create_graph=True")


def refuse_forward_mode(name: str, tensor: Tensor) -> None:
    """RuntimeError for a dual number: a kernel would drop its tangent without a word."""
    if not torch.compiler.is_compiling() and unpack_dual(tensor).tangent is not None:
        raise RuntimeError(f"{name} has no forward-mode derivative: use a backward pass")


def next_power_of_2(n: int) -> int:
    """Smallest power of two that is at least `n` (Triton's block lengths)."""
    return 1 << max(0, n - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    """Quotient rounded up."""
    return -(-a // b)
