"""Primus beside dynamic_network_architectures' own, and what only ours promises."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import prepare_torchvision
from torch.utils.flop_counter import FlopCounterMode

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.models.build import build_method
from mim3d.engine.models.config import MAEConfig, SimCLRConfig, SimMIMConfig
from mim3d.engine.models.flops import crop_flops, encoder_flops
from mim3d.engine.models.masked import MaskedMethod
from mim3d.engine.models.masks import draw_masks
from mim3d.engine.models.primus.blocks import PrimusBlock
from mim3d.engine.models.primus.config import PRIMUS_SIZES, PrimusConfig, primus
from mim3d.engine.models.primus.decoder import PatchDecoder
from mim3d.engine.models.primus.encoder import Primus3D
from mim3d.engine.models.primus.mae import PrimusMAE
from mim3d.engine.models.primus.names import from_reference, to_reference
from mim3d.engine.models.unetr import SegmentationNet

CROP = (32, 48, 24)
SMALL = PrimusConfig(CROP, (8, 8, 8), width=72, depth=2, heads=3)
SHAPES = [
    pytest.param(replace(SMALL, channels=c, registers=r), id=f"{c}-channels-{r}-registers")
    for c in (1, 3)
    for r in (0, 4)
] + [
    pytest.param(replace(SMALL, layer_scale=0.0, inner_norm=False), id="plain"),
    pytest.param(replace(SMALL, patch_size=(4, 8, 2), crop_size=(8, 32, 6)), id="anisotropic"),
]


def reference(config: PrimusConfig, classes: int = 2, kept: float = 0.0):
    """The reference with lively weights: fresh ones are too near 0 to show a wrong sum."""
    prepare_torchvision()
    from dynamic_network_architectures.architectures.primus import Primus

    torch.manual_seed(0)
    network = Primus(
        config.channels,
        config.width,
        config.patch_size,
        classes,
        config.depth,
        config.heads,
        input_shape=config.crop_size,
        num_register_tokens=config.registers,
        mlp_ratio=config.mlp_ratio,
        init_values=config.layer_scale or None,
        scale_attn_inner=config.inner_norm,
        patch_drop_rate=1.0 - kept if kept else 0.0,
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def their_tokens(network, volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What its forward pass has before the decoder, with the registers cut off."""
    tokens = network.down_projection(volume).flatten(2).transpose(1, 2)
    registers = network.register_tokens
    if registers is not None:
        tokens = torch.cat([registers.expand(len(tokens), -1, -1), tokens], 1)
    tokens, kept = network.eva(tokens)
    return tokens[:, 0 if registers is None else registers.shape[1] :], kept


def ours_from(network, config: PrimusConfig) -> Primus3D:
    encoder = Primus3D(config)
    encoder.load_state_dict(from_reference(network.state_dict(), config, "the reference"))
    return encoder


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("kept", [0.0, 0.25])
def test_tokens_and_gradients_are_the_references(config: PrimusConfig, kept: float) -> None:
    network = reference(config, kept=kept)
    encoder = ours_from(network, config)
    volume = torch.randn(2, config.channels, *config.crop_size)
    theirs, ids = their_tokens(network, volume)
    rows = encoder.all_rows(volume)
    if ids is not None:
        rows = rows.gather(1, ids[..., None].expand(-1, -1, rows.shape[-1]))
    ours = encoder.forward_rows(rows, ids)
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-5)
    upstream = torch.randn_like(theirs)
    (theirs * upstream).sum().backward()
    (ours * upstream).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    expected = from_reference(gradients, config, "the reference")
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None
        scale = float(expected[name].abs().max())
        difference = float((parameter.grad - expected[name]).abs().max())
        assert difference <= 1e-4 * max(scale, 1.0), name


@pytest.mark.parametrize("config", SHAPES)
def test_a_state_goes_over_and_comes_back(config: PrimusConfig) -> None:
    encoder, decoder = Primus3D(config), PatchDecoder(config, 3)
    network = reference(config, classes=3)
    given = to_reference(encoder.state_dict(), config)
    given |= {f"up_projection.{name}": tensor for name, tensor in decoder.state_dict().items()}
    given["mask_token"] = torch.zeros(1, 1, config.width)
    network.load_state_dict(given, strict=True)
    back = from_reference(network.state_dict(), config, "the reference")
    assert back.keys() == encoder.state_dict().keys()
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(back[name], tensor), name
    volume = torch.randn(1, config.channels, *config.crop_size)
    ours = SegmentationNet(encoder, decoder).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(volume), network.eval()(volume), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", PRIMUS_SIZES)
def test_published_sizes_are_the_references(size: str) -> None:
    prepare_torchvision()
    from dynamic_network_architectures.architectures import primus as theirs

    config = primus(size, 32)
    with torch.device("meta"):
        network = getattr(theirs, f"Primus{size}")(1, 2, (8, 8, 8), (32, 32, 32))
        ours = to_reference(Primus3D(config).state_dict(), config)
        state = network.state_dict()
    wanted = {n: t.shape for n, t in state.items() if n.startswith(("eva.", "down_projection."))}
    assert {name: tensor.shape for name, tensor in ours.items()} == wanted
    assert config.size_name == size
    assert replace(config, registers=1).size_name is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("eva.norm.bias"), "has no eva.norm.bias"),
        (lambda s: s.update({"eva.blocks.2.norm1.weight": s["eva.norm.bias"]}), "vit.depth 2"),
        (
            lambda s: s.update({"down_projection.proj.weight": torch.zeros(72, 2, 8, 8, 8)}),
            r"\(72, 2, 8, 8, 8\), and vit.width, vit.channels and vit.patch_size make \(72, 1,",
        ),
    ],
)
def test_a_strange_state_is_refused(change, message: str) -> None:
    state = to_reference(Primus3D(SMALL).state_dict(), SMALL)
    change(state)
    with pytest.raises(CheckpointError, match=message):
        from_reference(state, SMALL, "there.pth")


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), kept=st.integers(1, 72), registers=st.sampled_from([0, 2]))
def test_rotary_positions_follow_ids(seed: int, kept: int, registers: int) -> None:
    config = replace(SMALL, registers=registers)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(1)
    encoder = Primus3D(config)
    ids = torch.randperm(config.n_patches, generator=generator)[:kept][None]
    order = torch.randperm(kept, generator=generator)
    rows = torch.randn(1, kept, config.row_width, generator=generator)
    with torch.no_grad():
        plain = encoder.forward_rows(rows, ids)
        mixed = encoder.forward_rows(rows[:, order], ids[:, order])
    torch.testing.assert_close(mixed, plain[:, order], rtol=1e-4, atol=1e-5)


def test_where_a_patch_stands_matters_without_learned_positions() -> None:
    encoder = Primus3D(SMALL)
    assert encoder.pos_embed is not None
    torch.nn.init.zeros_(encoder.pos_embed)
    for block in encoder.blocks:
        assert isinstance(block, PrimusBlock)
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.5)
    rows = torch.randn(1, 3, SMALL.row_width)
    here, there = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 9, 40]])
    moved = encoder.forward_rows(rows, here) - encoder.forward_rows(rows, there)
    assert float(moved.detach().abs().max()) > 1e-3


METHODS = [MAEConfig(decoder_width=36, decoder_depth=1, decoder_heads=2), SimMIMConfig()]


def make_batch(image: torch.Tensor, second: torch.Tensor | None = None) -> Batch:
    zeros = torch.zeros(len(image), dtype=torch.int64)
    return Batch(image, second, None, zeros, zeros[:, None], torch.arange(len(image)), 0)


@pytest.mark.parametrize("method", METHODS, ids=["mae", "simmim"])
@pytest.mark.parametrize("crop", [CROP, (16, 24, 8)])
def test_scored_voxels_are_the_complement_of_what_the_encoder_saw(method, crop) -> None:
    """A voxel of a patch moves the loss's target, or the prediction, and never both."""
    config = replace(SMALL, crop_size=crop, registers=2)
    module = build_method(method, config, None, 0).double()
    assert isinstance(module, MaskedMethod)
    image = torch.randn(2, 1, *crop, dtype=torch.float64)
    masks = draw_masks(method, module.mask_seed, make_batch(image), config)
    with torch.no_grad():
        painted = module.predict(image, masks)
    scored, seen = (torch.zeros(2, config.n_patches, dtype=torch.bool) for _ in range(2))
    for place in range(config.n_patches):
        corner = torch.unravel_index(torch.tensor(place), config.grid)
        z, y, x = (int(i) * p + p // 2 for i, p in zip(corner, config.patch_size, strict=True))
        moved = image.clone()
        moved[:, :, z, y, x] += 0.5
        with torch.no_grad():
            differs = (module.predict(moved, masks) != painted).flatten(1).any(1)
        seen[:, place] = differs
        for sample in range(2):
            alone = image.clone()
            alone[sample] = moved[sample]
            scored[sample, place] = held_loss(module, alone, painted) != held_loss(
                module, image, painted
            )
    assert torch.equal(scored, ~seen)
    assert torch.equal(scored, masks.masked)


def held_loss(module: MaskedMethod, image: torch.Tensor, painted: torch.Tensor) -> float:
    """The loss where the prediction does not move."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "predict", lambda volume, masks: painted)
        return module(make_batch(image)).loss.item()


def test_simclr_trains_it() -> None:
    config = replace(SMALL, crop_size=(16, 16, 16), registers=1, drop_path=0.5)
    module = build_method(SimCLRConfig(), config, None, 0)
    two = torch.randn(2, 2, 1, 16, 16, 16)
    module(make_batch(*two)).loss.backward()
    assert all(p.grad is not None for p in module.parameters())


def test_a_skipped_branch_keeps_the_mean_and_is_never_skipped_when_scored() -> None:
    config = replace(SMALL, drop_path=0.4)
    block = Primus3D(config).blocks[-1]
    assert isinstance(block, PrimusBlock)
    output = torch.ones(20_000, 1, 1)
    found = block.kept(output)
    assert sorted(found.unique().tolist()) == pytest.approx([0.0, 1 / 0.6])
    assert abs(float(found.mean()) - 1.0) < 0.03
    with torch.no_grad():
        assert torch.equal(block.kept(output), output)
    block.eval()
    assert torch.equal(block.kept(output), output)


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, registers=4)])
def test_flops_are_those_that_torch_counts(config: PrimusConfig) -> None:
    encoder = Primus3D(config)
    tokens = config.n_patches + config.registers
    attention = config.depth * 4.0 * tokens**2 * config.width  # which torch does not count on a CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(1, config.channels, *config.crop_size))
    counted = counter.get_total_flops()
    counts_attention = counted > encoder_flops(config).forward - attention + 1.0
    total = counted if counts_attention else counted + attention
    assert total == pytest.approx(encoder_flops(config).forward, rel=1e-2)


def test_openmind_primus_m_costs_what_is_published() -> None:
    method = MAEConfig(decoder_width=864, decoder_depth=2, decoder_heads=12)
    assert crop_flops(method, primus("M", 160)).training == pytest.approx(4.62e12, rel=0.1)


def test_weights_begin_as_the_references_do() -> None:
    prepare_torchvision()
    from dynamic_network_architectures.architectures.primus import PrimusS

    torch.manual_seed(0)
    config = primus("S", 16)
    ours = to_reference(Primus3D(config).state_dict(), config)
    theirs = PrimusS(1, 2, (8, 8, 8), (16, 16, 16)).state_dict()
    for name, tensor in ours.items():
        found, wanted = float(tensor.float().std()), float(theirs[name].float().std())
        if math.isfinite(wanted) and tensor.numel() > 1000:
            assert found == pytest.approx(wanted, rel=0.1, abs=1e-9), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(SMALL, width=24), "a multiple of 18"),
        (lambda: replace(SMALL, registers=-1), "vit.registers -1"),
        (lambda: replace(SMALL, drop_path=1.0), "vit.drop_path 1.0"),
        (lambda: PrimusMAE(MAEConfig(), SMALL), "method.decoder_width to a multiple of 96"),
        (lambda: PatchDecoder(replace(SMALL, patch_size=(8, 6, 8)), 2), "--head unetr"),
    ],
)
def test_what_cannot_be_turned_is_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
