"""Which of torch's kernels compute attention: asked for, or told after torch has chosen."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mim3d.engine.arithmetic.config import Attention
from mim3d.engine.errors import ConfigError

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
NAMES = {kernel.value: name for name, kernel in KERNELS.items()}
PROBE_TOKENS = 64


@contextmanager
def attention_kernels(wanted: Attention) -> Iterator[None]:
    """Compute attention by one kind of kernel for a while; auto leaves the choice to torch."""
    if wanted == "auto":
        yield
        return
    with sdpa_kernel(KERNELS[wanted]):
        yield


def head_widths(model: nn.Module) -> list[int]:
    """Features of a head in each attention of ours, every width once."""
    found = set()
    for part in model.modules():
        qkv, heads = getattr(part, "qkv", None), getattr(part, "heads", None)
        if isinstance(qkv, nn.Linear) and isinstance(heads, int):
            found.add(qkv.out_features // 3 // heads)
    return sorted(found)


def chosen_kernel(width: int, dtype: torch.dtype, device: torch.device) -> str:
    """The kernel that attention of heads of `width` features gets while training; empty: none."""
    shape = (1, 1, PROBE_TOKENS, width)
    tokens = torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)
    try:
        return NAMES.get(torch._fused_sdp_choice(tokens, tokens, tokens), "")
    except RuntimeError:  # torch's word for there is none
        return ""


def attention_of(
    model: nn.Module, wanted: Attention, dtype: torch.dtype, device: torch.device
) -> str:
    """Name of the kernel that a model trains with, of several joined; empty where there is none.

    A ConfigError where the one that is wanted cannot compute this model's attention here.
    """
    widths = head_widths(model)
    if wanted != "auto" and not widths:
        raise ConfigError(
            f"parallel.attention {wanted}: this model has no attention that torch's kernels "
            "compute: leave it at --parallel.attention auto"
        )
    with attention_kernels(wanted):
        kernels = {width: chosen_kernel(width, dtype, device) for width in widths}
    lacking = [width for width, kernel in kernels.items() if not kernel]
    if lacking:
        kind = str(dtype).removeprefix("torch.")
        raise ConfigError(
            f"parallel.attention {wanted}: torch {torch.__version__} has no such kernel for heads "
            f"of {lacking[0]} features in {kind} on {device.type}: set --parallel.attention auto"
        )
    return ", ".join(sorted(set(kernels.values())))
