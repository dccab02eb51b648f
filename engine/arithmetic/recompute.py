"""Activations rebuilt in backward, to save memory: of whole blocks, or what costs no product.

`full` keeps a block's input alone and computes the block again. `selective` also keeps what
matrix products, convolutions and attention gave, and computes what lies between again: norms,
bends, sums. Both give the same losses and gradients as `none`, to the last bit. `selective` asks of
each operation in Python, which doubles the host's time of a step, unless a CUDA graph repeats it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from mim3d.engine.arithmetic.config import Recompute
from mim3d.engine.errors import ConfigError

aten = torch.ops.aten
KEPT = [
    *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default),
    *(aten.linear.default, aten.convolution.default, aten._scaled_mm.default),
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]
"""Operations whose results `selective` keeps."""
FLAGS = ("recompute", "use_checkpoint")
"""What other blocks (a plugin's, MONAI's) call their recomputation, which is of whole blocks."""


class Recomputed(nn.Module):
    """A module that says in `mix` what it does; activations are rebuilt in backward as `recompute`
    says."""

    recompute: Recompute = "none"
    mix: Callable[..., Tensor]

    @property
    def draws(self) -> bool:
        """Whether `mix` draws random numbers, which must be the same again."""
        return False

    def forward(self, *given: Any) -> Tensor:
        """What `mix` makes of the same."""
        if self.recompute == "none" or not torch.is_grad_enabled():
            return self.mix(*given)
        kept = {}
        if self.recompute == "selective":
            kept["context_fn"] = partial(create_selective_checkpoint_contexts, KEPT)
        mixed = checkpoint(
            self.mix, *given, use_reentrant=False, preserve_rng_state=self.draws, **kept
        )
        assert isinstance(mixed, Tensor)
        return mixed


def draws_again(model: nn.Module) -> bool:
    """Whether what a model's blocks would compute again draws random numbers."""
    return any(part.draws for part in model.modules() if isinstance(part, Recomputed))


def set_recompute(block: nn.Module, policy: Recompute = "full") -> None:
    """Have a block rebuild its activations, under the name each kind of block has for it."""
    for part in block.modules():
        if isinstance(part, Recomputed):
            part.recompute = policy
            continue
        for flag in FLAGS:
            if hasattr(part, flag):
                if policy == "selective":
                    raise ConfigError(
                        f"parallel.recompute selective: a {type(part).__name__} rebuilds all or "
                        "nothing: set --parallel.recompute full"
                    )
                setattr(part, flag, policy == "full")
