"""LAMB (You et al. 2020, algorithm 2) over parameter shards, in plain torch, without a host sync.

A parameter's trust ratio is |w| / |u|, u its Adam update with decay, both norms of the whole
parameter: squares are summed over the ranks that hold its shards, all parameters in one reduction.
As in apex's FusedLAMB, parameters without decay take the plain Adam step.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Tensors = list[Tensor]


class ShardedLamb(torch.optim.Optimizer):
    """LAMB on each rank's local pieces; `group` holds the ranks among which they are spread.

    Like torch's fused AdamW it divides gradients by `grad_scale` and, where `found_inf` is 1,
    changes nothing. State: step, exp_avg, exp_avg_sq of every piece, made by the caller.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        group: dist.ProcessGroup,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.group = group
        self.grad_scale = torch.ones(())
        self.found_inf = torch.zeros(())

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every piece that has a gradient."""
        for group in self.param_groups:
            pieces = [piece for piece in group["params"] if piece.grad is not None]
            if pieces:
                self._update(group, pieces)

    def _update(self, group: dict[str, Any], pieces: Tensors) -> None:
        healthy = 1.0 - self.found_inf
        state = [self.state[piece] for piece in pieces]
        first, second = ([s[name] for s in state] for name in ("exp_avg", "exp_avg_sq"))
        # A list: given one 0-d tensor, torch's parser would ask the device for its value.
        torch._foreach_add_([s["step"] for s in state], [healthy] * len(state))
        # Multiplied by zero a NaN stays one: bad gradients are replaced, then weigh nothing.
        bad, zero = self.found_inf.bool(), torch.zeros_like(self.grad_scale)
        given = (piece.grad for piece in pieces if piece.grad is not None)
        grads = [torch.where(bad, zero, grad / self.grad_scale) for grad in given]
        beta1, beta2 = group["betas"]
        blend(first, grads, (1.0 - beta1) * healthy)
        blend(second, torch._foreach_mul(grads, grads), (1.0 - beta2) * healthy)
        count = state[0]["step"].clamp(min=1.0)
        denominators = torch._foreach_div(second, 1.0 - beta2**count)
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(first, 1.0 - beta1**count)
        updates = torch._foreach_div(updates, denominators)
        if group["weight_decay"]:
            torch._foreach_add_(updates, pieces, alpha=group["weight_decay"])
            torch._foreach_mul_(updates, self.trust_ratios(pieces, list(updates)))
        torch._foreach_mul_(updates, group["lr"] * healthy)
        torch._foreach_sub_(pieces, updates)

    def trust_ratios(self, pieces: Tensors, updates: Tensors) -> Tensors:
        """|w| / |u| of each whole parameter as 0-d tensors; 1 where either is zero."""
        norms = [torch.stack(torch._foreach_norm(tensors)) for tensors in (pieces, updates)]
        squares = torch.stack(norms).square()
        if dist.get_world_size(self.group) > 1:
            dist.all_reduce(squares, group=self.group)
        weight, update = squares.sqrt().unbind()
        usable = (weight > 0.0) & (update > 0.0)
        return list(torch.where(usable, weight / update, torch.ones_like(weight)).unbind())


def blend(averages: Tensors, values: Tensors | tuple[Tensor, ...], share: Tensor) -> None:
    """Move each average by `share` (0-d) of the way to its value, in place."""
    torch._foreach_mul_(averages, 1.0 - share)
    torch._foreach_add_(averages, torch._foreach_mul(values, share))
