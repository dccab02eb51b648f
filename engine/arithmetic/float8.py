"""Matrix products of blocks in float8 (Micikevicius et al. 2022), by torchao's linear layers.

Weights stay what they were and are named as before: inputs, weights and gradients are scaled to
their largest value and rounded to float8 for each product (e4m3 forward, e5m2 gradients). Where
there is no such hardware, as on a CPU, products are computed in bf16 from values rounded so.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mim3d.dataio.extras import extra
from mim3d.engine.arithmetic.blocks import transformer_blocks
from mim3d.engine.errors import ConfigError

MULTIPLE = 16
"""Rows and features of a float8 product come in multiples of it."""
LEAST_CAPABILITY = (8, 9)
"""Of a GPU with float8 products: Ada, Hopper and later."""


def use_float8(model: nn.Module, device: torch.device) -> int:
    """Turn linear layers of the blocks into float8's, in place; how many.

    A ConfigError where the GPU cannot, or no layer has fitting sizes; a MissingExtraError where
    torchao is not installed.
    """
    refuse_float8(model, device)
    with quiet():
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
        from torchao.float8.float8_linear import Float8Linear
    config = Float8LinearConfig(emulate=device.type != "cuda")
    for block in transformer_blocks(model):
        convert_to_float8_training(
            block, config=config, module_filter_fn=lambda part, name: fits(part)
        )
    converted = [part for part in model.modules() if isinstance(part, Float8Linear)]
    for part in converted:
        part.register_forward_pre_hook(refuse_rows)
    return len(converted)


def refuse_float8(model: nn.Module, device: torch.device) -> None:
    """The errors of `use_float8`, before anything is done."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        raise ConfigError(
            f"parallel.precision fp8: a {torch.cuda.get_device_name(device)} has no float8 "
            "products: set --parallel.precision bf16"
        )
    with extra(), quiet():
        import torchao  # noqa: F401
    if not any(fits(part) for block in transformer_blocks(model) for part in block.modules()):
        raise ConfigError(
            "parallel.precision fp8: no linear layer of this model's blocks has sizes that are "
            f"multiples of {MULTIPLE}: set --parallel.precision bf16"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torchao's import says of kernels that other machines have."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def fits(part: nn.Module) -> bool:
    """Whether a part is a linear layer whose sizes float8 products take."""
    return (
        type(part) is nn.Linear
        and part.in_features % MULTIPLE == 0
        and part.out_features % MULTIPLE == 0
    )


def refuse_rows(layer: nn.Module, given: tuple[Any, ...]) -> None:
    """A ConfigError where a layer's input has rows that the weights' gradient cannot sum over."""
    tokens = given[0]
    assert isinstance(tokens, Tensor)
    rows = tokens.numel() // tokens.shape[-1]
    if rows % MULTIPLE:
        raise ConfigError(
            f"parallel.precision fp8: a layer gets {tuple(tokens.shape)[:-1]} = {rows} tokens, and "
            f"float8 products need a multiple of {MULTIPLE}: set --global-batch so that a "
            f"micro-batch is a multiple of {MULTIPLE}, or --parallel.precision bf16"
        )
