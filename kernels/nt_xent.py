"""NT-Xent, SimCLR's contrastive loss, with negatives from every rank and exact gradients.

    nt_xent(first (b, d), second (b, d), temperature, group) -> scalar

Of the 2B embeddings of the global batch (B = b * ranks) each one's positive is its other view and
the other 2B - 2 are negatives (Chen et al. 2020, "A simple framework for contrastive learning of
visual representations", eq. 1), averaged over all 2B anchors:
    loss = 1 / 2B * sum_i [ logsumexp_{j != i}(z_i . z_j / t) - z_i . z_pos(i) / t ],  |z| = 1

Every rank returns this global value. Ranks exchange embeddings and log-sum-exps in the forward
pass; the backward communicates nothing: rank r gets d loss / d its own embeddings, including what
they do as negatives on other ranks. Parameter gradients are therefore to be SUMMED over ranks
(FSDP: gradient division off; DDP, which averages: multiply the loss by the number of ranks).
torch.compile fuses this well enough; it needs no kernel of its own.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mim3d.kernels.backend import refuse_double_backward


class NTXent(torch.autograd.Function):
    """Loss of unit vectors z (2, b, d); differentiates both an anchor's and a negative's role."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float, group: Any) -> Tensor:
        """Global loss; saves what the local backward needs."""
        everyone, rank = gather_ranks(z, group)  # (ranks, 2, b, d)
        ranks, _, b, d = everyone.shape
        others = everyone.reshape(-1, d)
        logits = z.reshape(-1, d) @ others.T / temperature
        own, positive = places(b, rank, z.device)
        logits.scatter_(1, own[:, None], -math.inf)
        log_sum = logits.logsumexp(1)
        terms = log_sum - logits.gather(1, positive[:, None])[:, 0]
        shared, _ = gather_ranks(torch.stack([log_sum, terms]), group)  # (ranks, 2, 2b)
        ctx.save_for_backward(others, logits, log_sum, shared[:, 0].flatten(), positive)
        ctx.temperature, ctx.shape = temperature, z.shape
        return shared[:, 1].sum() / (2 * b * ranks)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """(sum_j (p_ij + p_ji) z_j - 2 z_pos(i)) / (2B t) for local anchors i."""
        refuse_double_backward("nt_xent")
        others, logits, log_sum, log_sums, positive = ctx.saved_tensors
        weights = (logits - log_sum[:, None]).exp() + (logits - log_sums[None]).exp()
        weights.scatter_add_(1, positive[:, None], weights.new_full((len(positive), 1), -2.0))
        # A backward called inside autocast would multiply in half precision.
        with torch.autocast(others.device.type, enabled=False):
            gradient = weights @ others * (grad_outputs[0] / (len(others) * ctx.temperature))
        return gradient.view(ctx.shape), None, None


def nt_xent(first: Tensor, second: Tensor, temperature: float, group: Any = None) -> Tensor:
    """Loss of two views' embeddings, each (b, d), normalised here; computed in float32.

    `group` defaults to the whole world where torch.distributed is initialised; every rank must
    bring the same b. float64 embeddings are computed in float64.
    """
    if first.dim() != 2 or first.shape != second.shape:
        raise ValueError(
            f"first has shape {tuple(first.shape)} and second {tuple(second.shape)}; "
            "both must be the same (b, d)"
        )
    if (first.dtype, first.device) != (
        second.dtype,
        second.device,
    ) or not first.is_floating_point():
        raise ValueError(
            f"first is {first.dtype} on {first.device} and second {second.dtype} on "
            f"{second.device}; both must be the same floating dtype on one device"
        )
    if first.shape[0] * n_ranks(group) < 2:
        raise ValueError("nt_xent needs at least 2 samples over all ranks, or it has no negatives")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be positive and finite")
    with torch.autocast(first.device.type, enabled=False):
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        z = torch.nn.functional.normalize(torch.stack([first, second]).to(dtype), dim=-1)
        return NTXent.apply(z, float(temperature), group)


def chance_level(n_samples: int) -> float:
    """Loss of embeddings that say nothing, ln(2B - 1) for B samples over all ranks."""
    return math.log(2 * n_samples - 1)


def n_ranks(group: Any) -> int:
    """Ranks that share the batch; 1 without torch.distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group)


def gather_ranks(tensor: Tensor, group: Any) -> tuple[Tensor, int]:
    """Tensors of all ranks stacked, and this rank's place; no gradient flows through."""
    ranks = n_ranks(group)
    if ranks == 1:
        return tensor[None], 0
    gathered = tensor.new_empty(ranks * tensor.shape[0], *tensor.shape[1:])
    # torch 2.11 lacks the first name, 2.13 warns of the second.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(gathered, tensor.contiguous(), group=group)
    return gathered.view(ranks, *tensor.shape), dist.get_rank(group)


def places(b: int, rank: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Columns (2b,) of the local anchors themselves and of their positives."""
    local = torch.arange(2 * b, device=device)
    start = rank * 2 * b
    return start + local, start + (local + b) % (2 * b)
