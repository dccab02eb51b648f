from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mim3d.engine.distributed.config import ParallelConfig
from mim3d.engine.distributed.parallel import make_mesh, shard_group, shard_model
from mim3d.engine.distributed.process_group import process_ranks
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import SwinConfig, ViTConfig
from mim3d.engine.models.swin import SwinEncoder
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.training.config import OptimConfig
from mim3d.engine.training.optim import SCALE_START, ShardedOptimiser, decayed


@pytest.fixture
def ranks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with process_ranks(60.0) as joined:
        yield joined


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))


def sharded(
    ranks: Any,
    config: OptimConfig,
    scaled: bool = False,
    one_rank: Literal["whole", "sharded"] = "sharded",
) -> tuple[Any, ShardedOptimiser]:
    model = make_model()
    mesh = make_mesh(ranks.device, ranks.world, 1)
    shard_model(model, mesh, ParallelConfig(one_rank=one_rank), torch.float32)
    assert all(isinstance(p, DTensor) == (one_rank == "sharded") for p in model.parameters())
    optimiser = ShardedOptimiser(model.named_parameters(), config, shard_group(mesh), scaled=scaled)
    return model, optimiser


def whole(model):
    return {name: gathered(p).detach().clone() for name, p in model.named_parameters()}


def gathered(tensor: Any) -> torch.Tensor:
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


@pytest.mark.parametrize("one_rank", ["whole", "sharded"])
@pytest.mark.parametrize("decays", ["all", "matrices"])
def test_steps_equal_torchs_sgd_with_nesterov_and_clipping(ranks, decays, one_rank):
    config = OptimConfig(kind="sgd", momentum=0.99, weight_decay=0.1, decays=decays, clip_norm=0.5)
    model, optimiser = sharded(ranks, config, one_rank=one_rank)
    plain = make_model()
    on_vectors = 0.1 if decays == "all" else 0.0
    groups = [
        {"params": [p for p in plain.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in plain.parameters() if p.dim() < 2], "weight_decay": on_vectors},
    ]
    sgd = torch.optim.SGD(groups, lr=0.01, momentum=0.99, nesterov=True)
    for step in range(5):
        x, lr = torch.randn(3, 6), 0.01 / (step + 1)
        model(x).square().sum().backward()
        norm = optimiser.step(lr)
        plain(x).square().sum().backward()
        wanted = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        for group in sgd.param_groups:
            group["lr"] = lr
        sgd.step()
        sgd.zero_grad()
        torch.testing.assert_close(norm, wanted)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(whole(model)[name], p.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["adamw", "lamb", "sgd"])
def test_gradients_are_divided_by_what_counted_before_they_are_clipped(ranks, kind, scaled):
    config = OptimConfig(kind=kind, clip_norm=0.5)
    (model, optimiser), (other, plain) = (sharded(ranks, config, scaled) for _ in range(2))
    for counted in (0.25, 0.7, 1.0):
        x = torch.randn(3, 6)
        (model(x).square().mean() * counted * optimiser.loss_scale).backward()
        (other(x).square().mean() * plain.loss_scale).backward()
        norm = optimiser.step(0.01, torch.tensor(counted))
        torch.testing.assert_close(norm, plain.step(0.01))
    for name, weights in whole(other).items():
        torch.testing.assert_close(whole(model)[name], weights, rtol=1e-5, atol=1e-6)
    (model(x) * 0.0).sum().backward()
    assert optimiser.step(0.01, torch.tensor(0.0)) == 0
    assert not optimiser.bad_total and all(t.isfinite().all() for t in whole(model).values())


def test_sgd_keeps_its_momentum_and_skips_bad_gradients(ranks):
    model, optimiser = sharded(ranks, OptimConfig(kind="sgd", weight_decay=3e-5, clip_norm=12.0))
    model(torch.randn(3, 6)).sum().backward()
    optimiser.step(0.01)
    kept = {name: gathered(t).clone() for name, t in optimiser.state_tensors().items()}
    assert {f"optim.momentum_buffer.{name}" for name in optimiser.named} < set(kept)
    assert not any("exp_avg" in name for name in kept)
    weights = whole(model)
    (model(torch.randn(3, 6)).sum() * float("nan")).backward()
    optimiser.step(0.01)
    assert all(torch.equal(whole(model)[name], weights[name]) for name in weights)
    after = optimiser.state_tensors()
    for name in optimiser.named:
        key = f"optim.momentum_buffer.{name}"
        assert torch.equal(gathered(after[key]), kept[key])
    assert int(optimiser.bad_total) == 1
    optimiser.after_load()


def test_sgd_is_refused_where_it_cannot_be():
    with pytest.raises(ConfigError, match=r"runs on --optim\.impl torch"):
        OptimConfig(kind="sgd", impl="apex")
    with pytest.raises(ConfigError, match=r"optim\.momentum 1\.0 must lie in \[0, 1\)"):
        OptimConfig(kind="sgd", momentum=1.0)


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


@pytest.mark.parametrize("kind", ["adamw", "lamb"])
def test_a_whole_model_learns_what_a_sharded_one_does(ranks, kind):
    """Bit for bit, and each reads the other's state."""
    config = OptimConfig(kind=kind, clip_norm=0.5)
    pairs = [sharded(ranks, config, one_rank=how) for how in ("sharded", "whole")]
    for i_step in range(6):
        if i_step == 3:
            states = [optimiser.state_tensors() for _, optimiser in pairs]
            assert states[0].keys() == states[1].keys()
            with torch.no_grad():
                for name, tensor in states[1].items():
                    tensor.copy_(gathered(states[0][name]))
            pairs[1][1].after_load()
        x = torch.randn(3, 6)
        norms = []
        for model, optimiser in pairs:
            model(x).square().sum().backward()
            norms.append(optimiser.step(0.01))
        assert torch.equal(*norms)
    for name, tensor in whole(pairs[0][0]).items():
        assert torch.equal(tensor, whole(pairs[1][0])[name])


def lamb_by_hand(weight, grad, state, lr, decay):
    """Algorithm 2 of You et al. 2020 in float64, with bias correction."""
    state["step"] += 1
    state["m"] = 0.9 * state["m"] + 0.1 * grad
    state["v"] = 0.95 * state["v"] + 0.05 * grad**2
    update = state["m"] / (1 - 0.9 ** state["step"])
    update = update / ((state["v"] / (1 - 0.95 ** state["step"])).sqrt() + 1e-8) + decay * weight
    ratio = weight.norm() / update.norm() if decay else 1.0
    return weight - lr * ratio * update


def test_lamb_is_the_papers(ranks):
    model, optimiser = sharded(ranks, OptimConfig(kind="lamb", weight_decay=0.1, clip_norm=0.0))
    twin = {name: tensor.double() for name, tensor in whole(model).items()}
    states = {name: {"step": 0, "m": 0.0, "v": 0.0} for name in twin}
    for _ in range(4):
        model(torch.randn(3, 6)).square().sum().backward()
        grads = {name: gathered(p.grad).double() for name, p in model.named_parameters()}
        optimiser.step(0.01)
        for name, grad in grads.items():
            decay = 0.1 if twin[name].dim() >= 2 else 0.0
            twin[name] = lamb_by_hand(twin[name], grad, states[name], 0.01, decay)
    for name, tensor in whole(model).items():
        torch.testing.assert_close(tensor.double(), twin[name], rtol=2e-6, atol=1e-7)


def test_lamb_passes_over_bad_gradients_and_zero_weights(ranks):
    model, optimiser = sharded(ranks, OptimConfig(kind="lamb"))
    with torch.no_grad():
        model[2].weight.zero_()
    model(torch.randn(3, 6)).square().sum().backward()
    optimiser.step(0.01)
    weights = whole(model)
    # A weight of norm 0 has no ratio: it takes the plain step of Adam, lr times the sign.
    torch.testing.assert_close(weights["2.weight"].abs(), torch.full((4, 8), 0.01))
    (model(torch.randn(3, 6)).sum() * float("nan")).backward()
    optimiser.step(0.01)
    assert optimiser.bad_total == 1
    assert optimiser.steps_done == 1
    for name, tensor in whole(model).items():
        assert torch.equal(tensor, weights[name])
    model(torch.randn(3, 6)).sum().backward()
    optimiser.step(0.01)
    moved = whole(model)["2.weight"]
    assert torch.isfinite(moved).all()
    assert not torch.equal(moved, weights["2.weight"])


def test_plain_parameters_over_ranks_are_refused(ranks, monkeypatch):
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group=None: 2)
    with pytest.raises(ConfigError, match="fully_shard"):
        ShardedOptimiser(make_model().named_parameters(), OptimConfig(), ranks.control)


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True), (True, True)])
def test_a_loss_scale_stays_with_its_precision(ranks, before, after):
    """A run may go on in another precision; its gradients must keep their size."""
    _, first = sharded(ranks, OptimConfig(), scaled=before)
    _, second = sharded(ranks, OptimConfig(), scaled=after)
    if before:
        first.loss_scale.fill_(2.0**10)
    for name, tensor in first.state_tensors().items():
        second.state_tensors()[name].copy_(tensor)
    second.after_load()
    wanted = 1.0 if not after else 2.0**10 if before else SCALE_START
    assert second.loss_scale == wanted


def test_positions_norms_and_mask_tokens_do_not_decay() -> None:
    """As in SimMIM's own code, for learned positions of a ViT and the bias tables of a Swin."""
    vit = ViTConfig(crop_size=(16, 16, 16), patch_size=(8, 8, 8), width=24, depth=1, heads=2)
    swin = SwinConfig(depths=(1, 1, 1, 1), feature_size=12, window=2)
    found = {
        name: decayed(name, parameter)
        for model in (
            ViT3D(replace(vit, position="learned")),
            SwinEncoder(swin, replace(vit, crop_size=(32, 32, 32))),
        )
        for name, parameter in model.named_parameters()
    }
    tables = [name for name in found if name.endswith("relative_position_bias_table")]
    assert len(tables) == 4
    assert not any(found[name] for name in [*tables, "pos_embed"])
    assert all(found[name] for name in found if name.endswith(("qkv.weight", "fc1.weight")))
    assert not any(found[name] for name in found if name.endswith("bias"))
