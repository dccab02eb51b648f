"""Whole float32 weights beside a working copy in a half type: what a rank has that shards nothing.

FSDP2 on one rank casts and copies every parameter by itself, twice a step; here a step copies all
gradients to float32 at once, and all weights back. Losses, norms and weights are FSDP2's to the
last bit: gradients of a micro-batch are in the half type, and are summed in float32.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mim3d.engine.arithmetic.flat import flat_like, padded, views_of

MASTER = "float32_master"
"""Attribute of a working parameter: the weight that is trained."""


def master_of(tensor: Tensor) -> Tensor:
    """The weight that is trained where a parameter is a working copy; else what is given."""
    return getattr(tensor, MASTER, tensor)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """`module.state_dict()` of whole float32 weights; every rank takes part."""
    found = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        kept = tensor.full_tensor() if isinstance(tensor, DTensor) else master_of(tensor)
        found[name] = kept.detach()
    return found


class Masters:
    """Float32 weights of a module, whose own parameters become a working copy of `dtype`.

    `replicas` are ranks that hold the same weights, over which gradients are summed. Nothing moves
    once `flatten` was called.
    """

    def __init__(
        self, module: nn.Module, dtype: torch.dtype, replicas: dist.ProcessGroup | None = None
    ) -> None:
        self.dtype, self.replicas = dtype, replicas
        self.masters: dict[str, nn.Parameter] = {}
        """By the names of the module's own."""
        self._working: dict[str, nn.Parameter] = {}
        for name, parameter in module.named_parameters():
            weight = parameter.detach().float().contiguous()
            master = nn.Parameter(weight, requires_grad=parameter.requires_grad)
            parameter.data = weight.to(dtype)
            setattr(parameter, MASTER, master)
            self.masters[name], self._working[name] = master, parameter
        self._names: list[str] = []
        self._trained: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._grads: list[Tensor] = []
        self._flat_grad = torch.zeros(0)
        self._filled = False

    def flatten(self, groups: Sequence[Sequence[str]]) -> list[Tensor]:
        """Lay the trained weights of all groups, and their gradients, out in one row.

        Returns each group's weights as one flat tensor with its gradient.
        """
        self._names = names = [name for group in groups for name in group]
        masters = [self.masters[name] for name in names]
        self._trained = [self._working[name] for name in names]
        weights = flat_like(masters, torch.float32)
        self._flat_grad = torch.zeros_like(weights)
        self._weights, self._grads = views_of(weights, masters), views_of(self._flat_grad, masters)
        for name, weight, grad in zip(names, self._weights, self._grads, strict=True):
            weight.copy_(self.masters[name].detach())
            self.masters[name].data, self.masters[name].grad = weight, grad
            if self.dtype == torch.float32:
                self._working[name].data = weight
        sizes = [sum(padded(self.masters[name].numel()) for name in group) for group in groups]
        flats = list(weights.split(sizes))
        for flat, grad in zip(flats, self._flat_grad.split(sizes), strict=True):
            flat.grad = grad
        return flats

    @torch.no_grad()
    def collect(self) -> None:
        """Take the working copy's gradients, on top of those of earlier micro-batches."""
        given = []
        for name, parameter in zip(self._names, self._trained, strict=True):
            assert parameter.grad is not None, f"{name} has no gradient"
            given.append(parameter.grad)
        if self._filled:
            spare = torch.zeros_like(self._flat_grad, dtype=self.dtype)
            torch._foreach_copy_(views_of(spare, given), given)
            self._flat_grad.add_(spare)
        else:
            torch._foreach_copy_(self._grads, given)
        self._filled = True
        for parameter in self._trained:
            parameter.grad = None

    def forget(self) -> None:
        """Drop what was collected, and gradients that were not."""
        self._filled = False
        for parameter in self._trained:
            parameter.grad = None

    def exchange(self) -> None:
        """Sum what was collected over the replicas, and collect anew from here on."""
        if self.replicas is not None:
            dist.all_reduce(self._flat_grad, group=self.replicas)
        self._filled = False

    @torch.no_grad()
    def publish(self) -> None:
        """Give the working copy the weights that were trained."""
        if self.dtype != torch.float32:
            torch._foreach_copy_(self._trained, self._weights)

    @torch.no_grad()
    def publish_all(self) -> None:
        """Give it all weights: what was loaded has frozen ones too."""
        for name, master in self.masters.items():
            self._working[name].copy_(master)
