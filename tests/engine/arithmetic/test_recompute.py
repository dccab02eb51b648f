"""Recomputed activations: the same gradients, memory and products as foretold."""

import dataclasses
from typing import get_args

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mim3d.dataio.loader.batch import Batch
from mim3d.dataio.registry import resolved
from mim3d.engine.arithmetic.attention import attention_kernels
from mim3d.engine.arithmetic.blocks import transformer_blocks
from mim3d.engine.arithmetic.config import Recompute
from mim3d.engine.arithmetic.recompute import set_recompute
from mim3d.engine.distributed.config import ParallelConfig
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.activations import recompute_costs
from mim3d.engine.models.config import MAEConfig, SwinConfig, ViTConfig
from mim3d.engine.models.flops import crop_flops
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.registry import way_of
from mim3d.engine.models.resenc.config import RESENC_TINY
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.recipes import recipe

POLICIES = get_args(Recompute)
VIT = ViTConfig((32, 32, 64), (8, 8, 8), width=144, depth=6, heads=3)
MAE = MAEConfig(decoder_width=96, decoder_depth=6, decoder_heads=3)
CASES = {
    "vit": PretrainConfig(MAE, VIT),
    "skips": PretrainConfig(
        dataclasses.replace(MAE, decoder_heads=4),
        PrimusConfig((32, 32, 32), width=48, depth=3, heads=4, drop_path=0.5),
    ),
    "resenc": dataclasses.replace(recipe("demo-resenc-mae"), resenc=RESENC_TINY),
}


def module_of(config: PretrainConfig, policy: Recompute) -> torch.nn.Module:
    module = config.build()
    for block in transformer_blocks(module):
        set_recompute(block, policy)
    return module


def batch_of(config: PretrainConfig, b: int = 2) -> Batch:
    image = torch.randn(b, 1, *config.vit.crop_size)
    zeros = torch.zeros(b, dtype=torch.int64)
    return Batch(image, None, None, zeros, torch.zeros(b, 3).long(), torch.arange(b), 0)


def gradients(config: PretrainConfig, policy: Recompute) -> list[torch.Tensor]:
    torch.manual_seed(0)
    module, batch = module_of(config, policy), batch_of(config)
    loss = module(batch).loss
    loss.backward()
    after = torch.rand(1)  # what is drawn afterwards must not hang on the policy either
    grads = [p.grad for p in module.parameters() if p.requires_grad]
    return [loss.detach(), after, *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize("name", CASES)
def test_each_policy_gives_the_same_losses_and_gradients(name: str) -> None:
    plain = gradients(CASES[name], "none")
    for policy in POLICIES[1:]:
        for a, b in zip(gradients(CASES[name], policy), plain, strict=True):
            assert torch.equal(a, b), policy


class Living(TorchDispatchMode):
    """Float values that operations made and something still holds, but for those of `weights`."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.weights = weights
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves(found) if isinstance(one, torch.Tensor)]
        for tensor in tensors:
            if tensor.is_floating_point():
                storage = tensor.untyped_storage()
                if storage._cdata in self.weights:
                    continue
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes() // 4)
        return found

    def values(self) -> int:
        return sum(size for held, size in self.made.values() if not held.expired())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["vit", "resenc"])
def test_the_memory_of_each_policy_is_foretold(name: str, policy: Recompute) -> None:
    config, b = CASES[name], 2
    module, batch = module_of(config, policy), batch_of(config, b)
    with Living({p.untyped_storage()._cdata for p in module.parameters()}) as living:
        loss = module(batch).loss
    held = living.values() / b
    told = recompute_costs(config.method, config.encoder)[policy]
    count = resolved(way_of(config.method, config.encoder).activations)
    assert told.kept_values == count(config.method, config.encoder, policy)
    # One block is rebuilt later, on top of what is held now; a U-Net's largest is half of it all.
    if policy == "none":
        assert held == pytest.approx(told.kept_values, rel=0.1)
    else:
        assert {"vit": 0.5, "resenc": 0.3}[name] * told.kept_values < held < told.kept_values
    del loss


def test_products_that_each_policy_computes_again_are_foretold() -> None:
    config = CASES["vit"]
    costs = recompute_costs(config.method, config.encoder)
    plain = crop_flops(config.method, config.vit).training
    for policy in POLICIES:
        with FlopCounterMode(display=False) as counter, attention_kernels("math"):
            module_of(config, policy)(batch_of(config, 1)).loss.backward()
        extra = counter.get_total_flops() - plain
        assert extra == pytest.approx(costs[policy].extra_flops, rel=0.02, abs=1.0), policy


def test_costs_are_ordered_and_swin_has_two() -> None:
    for config in CASES.values():
        costs = list(recompute_costs(config.method, config.encoder).values())
        assert [cost.kept_values for cost in costs] == sorted(
            (cost.kept_values for cost in costs), reverse=True
        )
        assert [cost.extra_flops for cost in costs] == sorted(cost.extra_flops for cost in costs)
    swin = recipe("btcv-swin-simmim")
    assert list(recompute_costs(swin.method, swin.encoder)) == ["none", "full"]


def test_blocks_that_rebuild_all_or_nothing_refuse_what_lies_between() -> None:
    swin = SwinConfig(feature_size=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4), window=4)
    config = dataclasses.replace(
        recipe("btcv-swin-simmim"), vit=ViTConfig((32, 32, 32), (16, 16, 16)), swin=swin
    )
    with pytest.raises(ConfigError, match=r"all or nothing: set --parallel\.recompute full"):
        module_of(config, "selective")
    module_of(config, "full")


def test_configurations_of_before_said_yes_or_no() -> None:
    assert ParallelConfig(recompute=True).recompute == "full"  # pyright: ignore[reportArgumentType]
    assert ParallelConfig(recompute=False).recompute == "none"  # pyright: ignore[reportArgumentType]
