import math

import pytest
import torch

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import SimCLRConfig, SwinConfig, ViTConfig
from mim3d.engine.models.simclr import SimCLR
from mim3d.engine.models.swin import SwinEncoder
from mim3d.engine.models.vit import ViT3D

VIT = ViTConfig((8, 8, 8), (4, 4, 4), width=24, depth=1, heads=2)


def make_batch(first, second):
    b = first.shape[0]
    zeros = torch.zeros(b, dtype=torch.int64)
    return Batch(first, second, None, zeros, torch.zeros(b, 3).long(), torch.arange(b), 0)


def make_model():
    torch.manual_seed(0)
    return SimCLR(SimCLRConfig(projection_hidden=32, projection_width=16), ViT3D(VIT), VIT.width)


def test_loss_is_that_of_the_definition():
    model = make_model().double()
    first, second = torch.randn(2, 3, 1, 8, 8, 8, dtype=torch.float64).unbind(0)
    z = torch.cat([model.project(first), model.project(second)])
    z = torch.nn.functional.normalize(z, dim=-1)
    logits = z @ z.T / model.config.temperature
    logits.fill_diagonal_(-math.inf)
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor([3, 4, 5, 0, 1, 2]))
    out = model(make_batch(first, second), measure=True)
    assert out.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert out.metrics["chance"].item() == pytest.approx(math.log(5))


def test_it_learns_to_tell_crops_apart():
    model = make_model()
    first = torch.randn(6, 1, 8, 8, 8)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        batch = make_batch(first, first + 0.1 * torch.randn_like(first))
        optimiser.zero_grad()
        model(batch).loss.backward()
        optimiser.step()
    out = model(make_batch(first, first + 0.1 * torch.randn_like(first)), measure=True)
    assert out.loss < 0.3 * out.metrics["chance"]


def test_one_view_is_refused():
    with pytest.raises(ConfigError, match="two views"):
        make_model()(make_batch(torch.zeros(2, 1, 8, 8, 8), None))


def test_temperature_must_be_positive():
    with pytest.raises(ConfigError, match="temperature 0"):
        SimCLRConfig(temperature=0.0)


@pytest.mark.slow
def test_swin_encoder_serves_too():
    vit = ViTConfig((32, 32, 64), (16, 16, 16), width=12, depth=1, heads=2)
    swin = SwinConfig(feature_size=12)
    encoder = SwinEncoder(swin, vit)
    volume = torch.randn(2, 1, 32, 32, 64)
    assert encoder(volume).shape == (2, 2, swin.width)
    model = SimCLR(SimCLRConfig(), encoder, swin.width)
    model(make_batch(volume, volume.flip(2))).loss.backward()
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_swin_needs_multiples_of_32():
    with pytest.raises(ConfigError, match="multiple of 32"):
        SwinEncoder(SwinConfig(), ViTConfig((32, 48, 32), (16, 16, 16)))
