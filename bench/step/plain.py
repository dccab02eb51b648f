"""A step as one writes it with care in plain PyTorch: compiled whole, autocast, fused AdamW."""

from collections.abc import Callable

import torch
from torch import nn

from mim3d.bench.step.options import LR
from mim3d.dataio.loader.batch import Batch
from mim3d.engine.training.config import OptimConfig
from mim3d.engine.training.optim import decayed


def plain_step(
    module: nn.Module, batch: Batch, optim: OptimConfig, dtype: torch.dtype, accumulate: int
) -> Callable[[], float]:
    """Forward, backward, clipping and update of a module on its device; waits for no data.

    Masters stay in float32; a half type is autocast's.
    """
    device = batch.image.device.type
    compiled = torch.compile(module, dynamic=False)
    parameters = list(module.parameters())
    optimiser = torch.optim.AdamW(
        parameter_groups(module, optim), lr=LR, betas=(optim.beta1, optim.beta2), eps=optim.eps,
        fused=True,
    )  # fmt: skip

    def run() -> float:
        for _ in range(accumulate):
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                loss = compiled(batch, 1.0 / accumulate).loss
            loss.backward()
        nn.utils.clip_grad_norm_(parameters, optim.clip_norm, foreach=True)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return 0.0

    return run


def parameter_groups(module: nn.Module, optim: OptimConfig) -> list[dict[str, object]]:
    """Matrices decay, norms and biases do not, as in our own optimiser."""
    groups: list[list[nn.Parameter]] = [[], []]
    for name, parameter in module.named_parameters():
        groups[0 if decayed(name, parameter) else 1].append(parameter)
    return [
        {"params": groups[0], "weight_decay": optim.weight_decay},
        {"params": groups[1], "weight_decay": 0.0},
    ]
