import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.models.config import (
    MAEConfig,
    SimCLRConfig,
    SimMIMConfig,
    SwinConfig,
    ViTConfig,
)
from mim3d.engine.models.flops import crop_flops, encoder_flops, peak_bf16, run_flops
from mim3d.engine.models.swin import SwinEncoder
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.pretrain.recipes import recipe


def make_batch(b, shape):
    zeros = torch.zeros(b, dtype=torch.int64)
    first, second = torch.randn(2, b, *shape).unbind(0)
    return Batch(first, second, None, zeros, torch.zeros(b, 3).long(), torch.arange(b), 0)


def training_step(model, batch):
    def run():
        model(batch).loss.backward()

    return run


def counted(run):
    """FLOPs that torch counts; its counter sees attention only in the mathematical form."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("ratio", [0.25, 0.75])
@pytest.mark.parametrize("name", ["demo-mae", "demo-simmim", "demo-simclr"])
def test_training_flops_equal_torchs_count(name, ratio):
    config = recipe(name)
    if not isinstance(config.method, SimCLRConfig):
        method = dataclasses.replace(config.method, mask_ratio=ratio)
        config = dataclasses.replace(config, method=method)
    model, b = config.build(), 4
    batch = make_batch(b, (1, 32, 32, 32))
    own = counted(training_step(model, batch)) / b
    # NT-Xent's similarities are left out: they are no work of the model.
    assert crop_flops(config.method, config.vit).training == pytest.approx(own, rel=1e-5)


def test_encoder_flops_on_a_non_cubic_crop():
    vit = ViTConfig((16, 24, 32), (8, 8, 16), channels=2, width=24, depth=2, heads=2)
    model, volume = ViT3D(vit), torch.randn(2, 2, 16, 24, 32)
    assert encoder_flops(vit).forward == counted(lambda: model(volume)) / 2
    assert encoder_flops(vit).training == counted(lambda: model(volume).sum().backward()) / 2


@pytest.mark.slow
@pytest.mark.parametrize("window", [4, 7])
def test_swin_flops_are_within_two_percent(window):
    """Relative position terms are not counted; the rest must agree."""
    vit = ViTConfig((32, 32, 64), (16, 16, 16))
    swin = SwinConfig(feature_size=12, window=window)
    config = dataclasses.replace(recipe("btcv-swin-simmim"), vit=vit, swin=swin)
    model, batch = config.build(), make_batch(1, (1, 32, 32, 64))
    own = counted(training_step(model, batch))
    assert run_flops(config.method, vit, swin) == pytest.approx(own, rel=0.02)
    assert isinstance(model.encoder, SwinEncoder)


@pytest.mark.parametrize(
    ("size", "crop", "patch", "mae", "simmim", "simclr"),
    [
        ((768, 12, 12), 96, 16, 67e9, 123e9, 239e9),
        ((1024, 24, 16), 96, 16, 138e9, 416e9, 821e9),
        ((1024, 24, 16), 160, 16, 691e9, 2157e9, 4264e9),
        ((768, 12, 12), 96, 8, 653e9, 1219e9, 2430e9),
        ((768, 12, 12), 160, 8, 5837e9, 11193e9, 22347e9),
    ],
)
def test_known_sizes(size, crop, patch, mae, simmim, simclr):
    """Published-size models agree with a hand computation that rounds embeddings up."""
    vit = ViTConfig((crop,) * 3, (patch,) * 3, 1, *size)
    assert crop_flops(MAEConfig(), vit).training == pytest.approx(mae, rel=0.03)
    assert crop_flops(SimMIMConfig(mask_ratio=0.75), vit).training == pytest.approx(
        simmim, rel=0.03
    )
    assert crop_flops(SimCLRConfig(), vit).training == pytest.approx(simclr, rel=0.03)


def test_peaks_by_device_name():
    assert peak_bf16("NVIDIA H200") == 989.4e12
    assert peak_bf16("NVIDIA H100 PCIe") == 756e12
    assert peak_bf16("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_bf16("NVIDIA L40S") == 362e12
    assert peak_bf16("Some CPU") is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA L40", 181e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA GB200", 2.5e15),
        ("NVIDIA L400", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_one_device_is_not_taken_for_another(name, peak):
    assert peak_bf16(name) == peak


@pytest.mark.parametrize("crop", [(96, 96, 96), (64, 96, 128)])
def test_the_papers_swin_encoder_to_the_last_operation(crop):
    """Counted by torch on tensors without memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = recipe("btcv-swin-simmim")
    vit = dataclasses.replace(config.vit, crop_size=crop)
    assert config.swin is not None
    encoder = SwinEncoder(config.swin, vit)

    def forward():
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            encoder(torch.empty(1, 1, *crop))

    assert encoder_flops(vit, config.swin).forward == counted(forward)
