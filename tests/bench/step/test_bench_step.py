import pytest
import torch

from mim3d.bench.step.options import LR
from mim3d.bench.step.peers import PEERS, EagerMAE, MedMIM, NnsslMAE
from mim3d.bench.step.plain import plain_step
from mim3d.bench.step.stage import main
from mim3d.dataio.loader.batch import Batch
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import MAEConfig, ViTConfig
from mim3d.engine.models.mae import MAE
from mim3d.engine.models.masks import draw_masks
from mim3d.engine.training.config import OptimConfig

VIT = ViTConfig((8, 12, 16), (4, 6, 4), channels=2, width=24, depth=1, heads=2)


@pytest.mark.parametrize("loss", ["l1", "l2", "smooth_l1"])
@pytest.mark.parametrize("normalise", [False, True])
def test_the_eager_recipe_is_the_same_function(monkeypatch, loss, normalise):
    """Given the same masks, both formulations have the same loss and the same gradients."""
    config = MAEConfig(
        decoder_width=24, decoder_depth=1, decoder_heads=2, loss=loss, normalise_target=normalise
    )
    torch.manual_seed(0)
    fused, eager = MAE(config, VIT), EagerMAE(config, VIT)
    eager.load_state_dict(fused.state_dict())
    volume = torch.randn(2, 2, 8, 12, 16)
    zeros = torch.zeros(2, dtype=torch.int64)
    batch = Batch(volume, None, None, zeros, torch.zeros(2, 3).long(), torch.arange(2), 0)
    masks = draw_masks(config, 0, batch, VIT)
    order = torch.cat([masks.visible_ids, masks.masked_ids], dim=1)
    noise = torch.zeros(2, 16).scatter_(1, order, torch.arange(16.0).expand(2, -1))
    fused(batch).loss.backward()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: noise)
        out = eager(batch)
    out.loss.backward()
    torch.testing.assert_close(out.loss, fused(batch).loss)
    for (name, mine), theirs in zip(fused.named_parameters(), eager.parameters(), strict=True):
        assert mine.grad is not None, name
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


ONE = ViTConfig((8, 12, 16), (4, 6, 4), channels=1, width=24, depth=1, heads=2)


def batch_of(volume: torch.Tensor) -> Batch:
    zeros = torch.zeros(2, dtype=torch.int64)
    return Batch(volume, None, None, zeros, torch.zeros(2, 3).long(), torch.arange(2), 0)


@pytest.mark.parametrize(("kind", "loss"), [(MedMIM, "l1"), (NnsslMAE, "l2")])
def test_the_yardsticks_are_our_mae_with_their_loss(monkeypatch, kind, loss):
    """Of raw voxels, as their sources have it; the order of their decoder's tokens is theirs."""
    config = MAEConfig(
        decoder_width=24, decoder_depth=1, decoder_heads=2, loss=loss, normalise_target=False
    )
    torch.manual_seed(0)
    fused, theirs = MAE(config, ONE), kind(config, ONE)
    theirs.load_state_dict(fused.state_dict())
    batch = batch_of(torch.randn(2, 1, 8, 12, 16))
    masks = draw_masks(config, 0, batch, ONE)
    ids = [masks.masked_ids, masks.visible_ids]  # MIM-Med3D's order, the others' is the reverse
    order = torch.cat(ids if kind is MedMIM else ids[::-1], dim=1)
    noise = torch.zeros(2, 16).scatter_(1, order, torch.arange(16.0).expand(2, -1))
    fused(batch, 0.5).loss.backward()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: noise)
        out = theirs(batch, 0.5)
    out.loss.backward()
    torch.testing.assert_close(out.loss, fused(batch, 0.5).loss)
    for (name, mine), other in zip(fused.named_parameters(), theirs.parameters(), strict=True):
        assert other.grad is not None, name
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_the_plain_step_moves_weights_as_adamw_does(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    torch.manual_seed(0)
    module = MAE(MAEConfig(decoder_width=24, decoder_depth=1, decoder_heads=2), ONE)
    before = [p.detach().clone() for p in module.parameters()]
    batch = batch_of(torch.randn(2, 1, 8, 12, 16))
    step = plain_step(module, batch, OptimConfig(weight_decay=0.0), torch.float32, 2)
    assert step() == 0.0
    moved = [float((p - b).abs().max()) for p, b in zip(module.parameters(), before, strict=True)]
    assert max(moved) == pytest.approx(LR, rel=0.1)  # the first step is the rate, whatever the loss
    assert all(p.grad is None for p in module.parameters())


SHORT = ["--steps", "1", "--rounds", "1", "--warmup", "1", "--global-batch", "2"]


@pytest.mark.slow
def test_the_bench_runs_here(capsys, tmp_path):
    figures = main([*SHORT, "--peers", "--profile", str(tmp_path)]).figures
    assert {"crops_per_s", "outside_share", "over_eager", "tflops_per_s"} <= figures.keys()
    assert 0 <= figures["data_stall_share"] <= 1
    assert figures["fed_by"] == "loader"
    assert figures["chunks_per_crop"]["decoded"] == figures["chunks_per_crop"]["touched"] > 1
    assert set(PEERS) < figures["cpu_seconds"].keys()
    assert figures["ratios"]["over MIM-Med3D"]["resolved"] is False  # of one round
    told = capsys.readouterr().out
    assert "unresolved: one round tells nothing" in told
    assert "chunks that a crop touches decoded" in told
    profile = (tmp_path / "profile.txt").read_text()
    assert "== eager recipe, 3 steps" in profile
    assert "mim3d::masked_voxel_loss" in profile


@pytest.mark.parametrize("recipe", ["demo-mae", "demo-simclr"])
def test_without_a_loader_noise_is_stepped(recipe):
    figures = main([*SHORT, "--recipe", recipe, "--no-loader"]).figures
    assert figures["fed_by"] == "memory"
    assert set(figures["seconds"]) == {"model", "in memory"}
    assert "data_stall_share" not in figures


def test_peers_need_mae():
    with pytest.raises(ConfigError, match="is no MAE"):
        main(["--recipe", "demo-simclr", "--peers"])
