import copy

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mim3d.engine.config import OptimConfig, ParallelConfig
from mim3d.engine.errors import ConfigError
from mim3d.engine.optim import SCALE_START, ShardedOptimiser
from mim3d.engine.parallel import make_mesh, shard_group, shard_model
from mim3d.engine.process_group import process_ranks


@pytest.fixture
def ranks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with process_ranks(60.0) as joined:
        yield joined


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))


def sharded(ranks, config, scaled=False):
    model = make_model()
    mesh = make_mesh(ranks.device, ranks.world, 1)
    shard_model(model, mesh, ParallelConfig(), torch.float32)
    optimiser = ShardedOptimiser(model.named_parameters(), config, shard_group(mesh), scaled=scaled)
    return model, optimiser


def whole(model):
    return {name: p.full_tensor().detach().clone() for name, p in model.named_parameters()}


def gathered(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def test_steps_equal_torchs_adamw_with_clipping(ranks):
    config = OptimConfig(clip_norm=0.5, weight_decay=0.1)
    model, optimiser = sharded(ranks, config)
    plain = make_model()
    groups = [
        {"params": [p for p in plain.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in plain.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    for _ in range(5):
        x = torch.randn(3, 6)
        model(x).square().sum().backward()
        norm = optimiser.step(0.01)
        plain(x).square().sum().backward()
        wanted = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        adamw.step()
        adamw.zero_grad()
        torch.testing.assert_close(norm, wanted)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(whole(model)[name], p.detach(), rtol=1e-5, atol=1e-6)


def test_without_clipping_it_is_bitwise_torchs(ranks):
    model, optimiser = sharded(ranks, OptimConfig(clip_norm=0.0, weight_decay=0.0))
    plain = make_model()
    adamw = torch.optim.AdamW(
        plain.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    for _ in range(4):
        x = torch.randn(3, 6)
        model(x).square().sum().backward()
        optimiser.step(0.01)
        plain(x).square().sum().backward()
        adamw.step()
        adamw.zero_grad()
    for name, p in plain.named_parameters():
        assert torch.equal(whole(model)[name], p.detach())


def test_bad_gradients_change_nothing_and_are_counted(ranks):
    model, optimiser = sharded(ranks, OptimConfig())
    model(torch.randn(3, 6)).sum().backward()
    optimiser.step(0.01)
    weights = whole(model)
    state = {name: tensor.clone() for name, tensor in optimiser.state_tensors().items()}
    for bad in (float("nan"), float("inf")):
        (model(torch.randn(3, 6)).sum() * bad).backward()
        optimiser.step(0.01)
    assert optimiser.bad_total == 2
    assert optimiser.bad_in_row == 2
    for name, tensor in whole(model).items():
        assert torch.equal(tensor, weights[name])
    for name, tensor in optimiser.state_tensors().items():
        if name.startswith("optim.exp_avg") or name == "optim.steps_done":
            assert torch.equal(gathered(tensor), gathered(state[name])), name
    model(torch.randn(3, 6)).sum().backward()
    optimiser.step(0.01)
    assert optimiser.bad_in_row == 0
    assert optimiser.bad_total == 2
    assert optimiser.steps_done == 2


def test_the_loss_scale_falls_on_overflow_and_drops_out_of_the_update(ranks):
    config = OptimConfig(clip_norm=0.0, weight_decay=0.0)
    model, optimiser = sharded(ranks, config, scaled=True)
    twin, unscaled = sharded(ranks, config)
    x = torch.randn(3, 6)
    (model(x).sum() * optimiser.loss_scale).backward()
    twin(x).sum().backward()
    norms = optimiser.step(0.01), unscaled.step(0.01)
    torch.testing.assert_close(norms[0], norms[1])
    for name, tensor in whole(model).items():
        torch.testing.assert_close(tensor, whole(twin)[name])
    (model(x).sum() * float("inf")).backward()
    optimiser.step(0.01)
    assert optimiser.loss_scale == SCALE_START / 2


def test_state_round_trips_through_its_tensors(ranks):
    model, optimiser = sharded(ranks, OptimConfig())
    other, resumed = sharded(ranks, OptimConfig())
    for _ in range(3):
        model(torch.randn(3, 6)).square().sum().backward()
        optimiser.step(0.01)
    with torch.no_grad():
        for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
            mine.copy_(theirs)
        for name, tensor in resumed.state_tensors().items():
            tensor.copy_(optimiser.state_tensors()[name])
    resumed.after_load()
    x = torch.randn(3, 6)
    for net, opt in ((model, optimiser), (other, resumed)):
        net(x).square().sum().backward()
        opt.step(0.01)
    for name, tensor in whole(model).items():
        assert torch.equal(tensor, whole(other)[name])


def test_plain_parameters_are_refused(ranks):
    mesh = make_mesh(ranks.device, 1, 1)
    model = copy.deepcopy(make_model())
    with pytest.raises(ConfigError, match="fully_shard"):
        ShardedOptimiser(model.named_parameters(), OptimConfig(), shard_group(mesh))
