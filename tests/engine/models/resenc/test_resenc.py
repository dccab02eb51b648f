"""The U-Net beside dynamic_network_architectures' own, and what only ours promises."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import prepare_torchvision
from torch.utils.flop_counter import FlopCounterMode

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.arithmetic.recompute import set_recompute
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.models.config import MAEConfig, ViTConfig
from mim3d.engine.models.masks import draw_masks
from mim3d.engine.models.resenc.config import RESENC_L, ResEncConfig
from mim3d.engine.models.resenc.decoder import ResEncDecoder
from mim3d.engine.models.resenc.encoder import ResEncEncoder, coarser
from mim3d.engine.models.resenc.flops import decoder_flops, encoder_rest_flops, stem_flops
from mim3d.engine.models.resenc.methods import ResEncMAE, visible_voxels
from mim3d.engine.models.resenc.names import from_reference, to_reference
from mim3d.engine.models.resenc.network import ResEncNet

VIT = ViTConfig((16, 32, 24), (8, 8, 8), channels=2)
SMALL = ResEncConfig((6, 10, 10), (1, 2, 1), decoder_convs=2)
SPARSE = replace(SMALL, masking="sparse")
BIG = ViTConfig((160, 160, 160), (16, 16, 16))
MAE = MAEConfig(loss="l2", normalise_target=False, mask_ratio=0.6)


def reference(config: ResEncConfig, channels: int, outputs: int) -> Any:
    prepare_torchvision()
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    n = config.stages
    kernels: Any = [[3, 3, 3]] * n
    strides: Any = [[1, 1, 1]] + [[2, 2, 2]] * (n - 1)
    return ResidualEncoderUNet(
        channels, n, list(config.features), torch.nn.Conv3d, kernels, strides,
        list(config.blocks), outputs,
        [config.decoder_convs] * (n - 1), conv_bias=True, norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True}, deep_supervision=False,
    )  # fmt: skip


def ours(config: ResEncConfig = SMALL, vit: ViTConfig = VIT, outputs: int = 3) -> ResEncNet:
    torch.manual_seed(0)
    net = ResEncNet(ResEncEncoder(config, vit), ResEncDecoder(config, outputs))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def make_batch(image: torch.Tensor) -> Batch:
    zeros = torch.zeros(len(image), dtype=torch.int64)
    return Batch(image, None, None, zeros, zeros[:, None], torch.arange(len(image)), 0)


def test_weights_go_over_and_come_back_and_compute_the_same() -> None:
    net, theirs = ours(), reference(SMALL, 2, 3)
    given = to_reference(net.encoder.state_dict(), net.decoder.state_dict())
    theirs.load_state_dict(given, strict=True)
    back = from_reference(theirs.state_dict(), net.state_dict(), "the reference")
    assert all(torch.equal(back[name], tensor) for name, tensor in net.state_dict().items())
    net.load_state_dict(back, strict=True)
    volume = torch.randn(2, 2, *VIT.crop_size)
    found, wanted = net(volume), theirs(volume)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    net, theirs, volume = net.double(), theirs.double(), volume.double()
    upstream = torch.randn_like(found).double()
    net(volume).backward(upstream)
    theirs(volume).backward(upstream)
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in theirs.named_parameters(remove_duplicate=False)
    }
    expected = from_reference(gradients, net.state_dict(), "the reference's gradients")
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            scale = max(float(expected[name].abs().max()), 1.0)
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-9 * scale)


def test_resenc_l_is_the_published_one() -> None:
    with torch.device("meta"):
        theirs = reference(RESENC_L, 1, 1)
        net = ResEncNet(ResEncEncoder(RESENC_L, BIG), ResEncDecoder(RESENC_L, 1))
        given = to_reference(net.encoder.state_dict(), net.decoder.state_dict())
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 3) == 102.349
    wanted = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in given.items()} == wanted
    assert RESENC_L.is_published_l


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("decoder.transpconvs.0.bias"), "has no decoder.transpconvs.0.bias"),
        (lambda s: s.update({"encoder.stages.3.blocks.0.conv1.conv.weight": torch.ones(1)}),
         "holds encoder.stages.3.blocks.0.conv1.conv.weight"),
        (lambda s: s.update({"encoder.stem.convs.0.all_modules.0.bias": torch.ones(6)}),
         "encoder.stem.convs.0.conv.bias and .*0.bias differ"),
    ],
)  # fmt: skip
def test_a_strange_state_is_refused(change, message: str) -> None:
    net = ours()
    state = to_reference(net.encoder.state_dict(), net.decoder.state_dict())
    change(state)
    with pytest.raises(CheckpointError, match=message):
        from_reference(state, net.state_dict(), "there.pth")


@settings(max_examples=12)
@given(seed=st.integers(0, 2**31), edge=st.sampled_from([2, 4, 8, 16]))
def test_hidden_voxels_change_no_bit_at_any_scale(seed: int, edge: int) -> None:
    """Blocks smaller than the deepest cell too: a cell with anything visible is seen."""
    vit = replace(VIT, crop_size=(16, 32, 16), patch_size=(edge, edge, edge))
    generator = torch.Generator().manual_seed(seed)
    method = replace(MAE, mask_ratio=0.75)
    module = ResEncMAE(method, SPARSE, vit, seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    image = torch.randn(2, 2, *vit.crop_size, generator=generator)
    visible = visible_voxels(draw_masks(method, seed, make_batch(image), vit), vit)
    noise = torch.randn(image.shape, generator=generator) * 100.0
    with torch.no_grad():
        plain = module.encoder.maps(image, visible)
        for other in (torch.where(visible[:, None], image, noise),
                      torch.where(visible[:, None], image, float("nan"))):  # fmt: skip
            for a, b in zip(plain, module.encoder.maps(other, visible), strict=True):
                assert torch.equal(a, b)
    seen: torch.Tensor | None = visible
    for number, features in enumerate(plain):
        seen = coarser(seen) if number else seen
        assert seen is not None
        assert not features.movedim(1, -1)[~seen].any()
    assert any(features.any() for features in plain)


@pytest.mark.parametrize("config", [SMALL, SPARSE], ids=["dense", "sparse"])
def test_no_skip_carries_a_hidden_voxel_and_exactly_they_are_scored(config: ResEncConfig) -> None:
    module = ResEncMAE(MAE, config, VIT, 3).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    image = torch.randn(2, 2, *VIT.crop_size, dtype=torch.float64)
    masks = draw_masks(MAE, 3, make_batch(image), VIT)
    visible = visible_voxels(masks, VIT)[:, None].expand_as(image)
    with torch.no_grad():
        painted = module.predict(image, masks)
        moved = torch.where(visible, image, image + 5.0)
        assert torch.equal(module.predict(moved, masks), painted)
        seen = torch.where(visible, image + 0.5, image)
        assert not torch.equal(module.predict(seen, masks), painted)
    difference = (painted - image).square()[~visible].mean()
    assert module(make_batch(image)).loss.item() == pytest.approx(difference.item(), rel=1e-9)


def test_all_visible_sparse_is_the_dense_encoder() -> None:
    encoder = ours().encoder
    volume = torch.randn(1, 2, *VIT.crop_size)
    every = torch.ones(1, *VIT.crop_size, dtype=torch.bool)
    with torch.no_grad():
        for a, b in zip(encoder.maps(volume), encoder.maps(volume, every), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [SMALL, SPARSE], ids=["dense", "sparse"])
def test_it_learns_a_smooth_volume_far_below_the_mean_of_a_patch(config: ResEncConfig) -> None:
    vit = replace(VIT, crop_size=(16, 16, 16), patch_size=(4, 4, 4))
    torch.manual_seed(0)
    module = ResEncMAE(replace(MAE, mask_ratio=0.5), config, vit)
    z, y, x = torch.meshgrid(*(torch.linspace(0, 3, 16) for _ in range(3)), indexing="ij")
    image = torch.stack([torch.sin(z + y), torch.cos(x)])[None].repeat(2, 1, 1, 1, 1)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.02, momentum=0.9, nesterov=True)
    for step in range(120):
        batch = make_batch(image)
        batch.sample = torch.arange(2) + 2 * step
        optimiser.zero_grad()
        module(batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 12)
        optimiser.step()
    batch = make_batch(image)
    loss, floor = module(batch).loss.item(), float(module.baselines(batch)["nearest_patch"])
    assert loss < 0.5 * floor


def test_recomputation_gives_the_same_gradients() -> None:
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        module = ResEncMAE(MAE, SPARSE, VIT)
        for part in module.modules():
            if recompute:
                set_recompute(part)
        module(make_batch(torch.ones(1, 2, *VIT.crop_size).cumsum(-1))).loss.backward()
        found.append([p.grad for p in module.parameters() if p.requires_grad])
    for a, b in zip(*found, strict=True):
        assert a is not None and torch.equal(a, b)


def test_flops_are_those_that_torch_counts() -> None:
    net = ours(outputs=2)
    volume = torch.zeros(1, 2, *VIT.crop_size)
    with FlopCounterMode(display=False) as counter:
        net(volume).sum().backward()
    stem = stem_flops(SMALL, VIT)
    rest = encoder_rest_flops(SMALL, VIT) + decoder_flops(SMALL, VIT, 2)
    assert counter.get_total_flops() == pytest.approx(2 * stem + 3 * rest, rel=1e-6)


def test_resenc_l_costs_what_is_published() -> None:
    rest = encoder_rest_flops(RESENC_L, BIG) + decoder_flops(RESENC_L, BIG, 1)
    assert 2 * stem_flops(RESENC_L, BIG) + 3 * rest == pytest.approx(8.40e12, rel=0.005)


def test_weights_begin_as_the_references_do() -> None:
    torch.manual_seed(0)
    theirs = reference(SMALL, 2, 3)
    theirs.apply(theirs.initialize)
    net = ResEncNet(ResEncEncoder(SMALL, VIT), ResEncDecoder(SMALL, 3))
    mine = to_reference(net.encoder.state_dict(), net.decoder.state_dict())
    for name, tensor in theirs.state_dict().items():
        if tensor.numel() > 500:
            assert float(mine[name].std()) == pytest.approx(float(tensor.std()), rel=0.15), name
        else:
            assert math.isclose(float(mine[name].mean()), float(tensor.mean()), abs_tol=0.2), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(SMALL, blocks=(1, 2)), "as long as one another"),
        (lambda: replace(SMALL, blocks=(1, 2, 0)), "must be at least 1"),
        (lambda: ResEncEncoder(SMALL, replace(VIT, crop_size=(16, 8, 8), patch_size=(2, 2, 2)))(
            torch.zeros(1, 2, 8, 8, 8)), r"given to an encoder for \(b, 2, 16, 8, 8\)"),
        (lambda: ResEncEncoder(RESENC_L, VIT), "a multiple of 32"),
        (lambda: ResEncEncoder(SMALL, replace(VIT, patch_size=(8, 8, 12))), "powers of two"),
    ],
)  # fmt: skip
def test_what_cannot_be_halved_is_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
