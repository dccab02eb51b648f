"""On a GPU: real sizes against float64, CUDA graphs, no host syncs, compiled by inductor."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mim3d.kernels.assemble import assemble_crops
from mim3d.kernels.decoder_tokens import decoder_tokens
from mim3d.kernels.masked_loss import KINDS, masked_voxel_loss
from mim3d.kernels.masking import n_visible, patch_masks
from mim3d.kernels.nt_xent import nt_xent
from mim3d.kernels.patch_rows import gather_patch_rows

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
SIZES = {
    "96 p16": (4, 1, (96, 96, 96), (16, 16, 16)),
    "96 p8": (2, 1, (96, 96, 96), (8, 8, 8)),
    "192 p16": (1, 1, (192, 192, 192), (16, 16, 16)),
    "4 channels": (2, 4, (64, 96, 128), (16, 16, 16)),
    "120 p12": (2, 1, (120, 120, 120), (12, 12, 12)),
    "flat patches": (2, 1, (48, 96, 160), (8, 16, 16)),
    "patch 32": (2, 1, (96, 96, 96), (32, 32, 32)),
    "odd": (2, 3, (30, 35, 33), (6, 5, 3)),
}
DTYPES = (torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.float32)


def batch(b, channels, crop, patch, dtype=torch.int16, seed=0):
    """(volume, masks) on the GPU, mask ratio 0.75."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    shape = (b, channels, *crop)
    noise = torch.randn(shape, device=DEVICE, generator=generator) * 40 + 100
    n = (crop[0] // patch[0]) * (crop[1] // patch[1]) * (crop[2] // patch[2])
    sample = torch.arange(b, device=DEVICE)
    return noise.clamp(0, 255).to(dtype), patch_masks(seed, sample, n, n_visible(n, 0.75))


def compare_loss(prediction, volume, ids, patch, tolerance, **options):
    leaf = prediction.clone().requires_grad_()
    loss = masked_voxel_loss(leaf, volume, ids, patch, **options)
    loss.backward()
    wide = prediction.double().requires_grad_()
    truth = masked_voxel_loss(wide, volume, ids, patch, **options, backend="reference")
    truth.backward()
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0)
    error = (leaf.grad.double() - wide.grad).abs() / wide.grad.abs().max()
    # L1 jumps at 0: a difference that rounds to 0 or across it may have the other sign. That is one
    # in 1e5, but of few elements one or two happen all the same.
    jumps = 2 + 1e-5 * error.numel() if options.get("kind", "l1") == "l1" else 0
    assert (error > tolerance).sum() <= jumps


@pytest.mark.parametrize(
    ("size", "kind"), [*((size, "l1") for size in SIZES), *(("96 p16", kind) for kind in KINDS[1:])]
)
def test_loss_at_real_sizes(size, kind):
    b, channels, crop, patch = SIZES[size]
    volume, masks = batch(b, channels, crop, patch)
    width = channels * patch[0] * patch[1] * patch[2]
    tokens = torch.randn(b, masks.masked_ids.shape[1], width, device="cuda")
    dense = torch.randn(b, channels, *crop, device="cuda")
    for prediction in (tokens, dense):
        for normalise in (False, True):
            options: dict[str, Any] = {"kind": kind, "normalise_target": normalise}
            compare_loss(prediction, volume, masks.masked_ids, patch, 5e-6, **options)
            half = prediction.bfloat16()
            compare_loss(half, volume, masks.masked_ids, patch, 2**-8, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_of_every_volume_dtype_with_every_option(dtype):
    crop, patch = (96, 64, 80), (16, 16, 16)
    volume, masks = batch(2, 1, crop, patch, dtype)
    larger = torch.nn.functional.pad(volume, (5, 6, 7, 8, 9, 10))
    options: dict[str, Any] = {
        "start": torch.tensor([[9, 7, 5], [12, 0, 3]], device="cuda"),
        "flip": torch.tensor([[True, False, True], [False, True, False]], device="cuda"),
        "scale": torch.tensor([0.02, 0.01], device="cuda"),
        "shift": torch.tensor([-1.0, 0.5], device="cuda"),
        "weight": (larger > 90).to(torch.uint8),
        "crop_size": crop,
        "normalise_target": True,
    }
    prediction = torch.randn(2, masks.masked_ids.shape[1], 4096, device="cuda")
    compare_loss(prediction, larger, masks.masked_ids, patch, 5e-6, **options)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [*((size, torch.int16) for size in SIZES), *(("96 p16", dtype) for dtype in DTYPES)],
    ids=str,
)
def test_rows_have_the_references_bits(size, dtype):
    b, channels, crop, patch = SIZES[size]
    volume, masks = batch(b, channels, crop, patch, dtype)
    scale = torch.linspace(0.3, 1.7, b, device="cuda")
    shift = torch.linspace(-1, 1, b, device="cuda")
    flip = torch.ones(b, 3, dtype=torch.bool, device="cuda")
    for out in (torch.float32, torch.bfloat16):
        for flips in (None, flip):
            arguments = (volume, masks.visible_ids, patch)
            options: dict[str, Any] = {
                "scale": scale,
                "shift": shift,
                "flip": flips,
                "out_dtype": out,
            }
            rows = gather_patch_rows(*arguments, **options)
            assert torch.equal(rows, gather_patch_rows(*arguments, **options, backend="reference"))


@pytest.mark.parametrize("kind", ["random", "block", "grid"])
@pytest.mark.parametrize("grid", [(6, 6, 6), (12, 12, 12), (16, 16, 16), (20, 20, 20)])
def test_masks_have_the_references_bits(kind, grid):
    n = grid[0] * grid[1] * grid[2]
    sample = torch.arange(16, device="cuda") * 2**33 + 5
    options: dict[str, Any] = {"kind": kind, "grid": grid, "unit": 2}
    masks = patch_masks(2**40 + 9, sample, n, n // 4, **options)
    truth = patch_masks(2**40 + 9, sample.cpu(), n, n // 4, **options)
    assert torch.equal(masks.visible_ids.cpu(), truth.visible_ids)
    assert torch.equal(masks.masked_ids.cpu(), truth.masked_ids)
    assert torch.equal(masks.masked.cpu(), truth.masked)


@pytest.mark.parametrize("shuffle", ["byte", "bit"])
@pytest.mark.parametrize("unit", [1, 16])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32], ids=str)
def test_crops_have_the_references_bits(dtype, unit, shuffle):
    generator = torch.Generator().manual_seed(0)
    voxels = (torch.randn(2 * 64, 32**3, generator=generator) * 40 + 100).clamp(0, 255).to(dtype)
    chunks, table = voxels.view(torch.uint8), torch.randperm(128).view(2, 1, 4, 4, 4)
    per_sample: dict[str, Any] = {
        "clip": torch.tensor([[5.0, 200.0], [0.0, 180.0]]),
        "scale": torch.tensor([0.37, 1.7]), "shift": torch.tensor([-0.1, 0.3]),
    }  # fmt: skip
    start = torch.tensor([[1, 0, 1], [0, 2, 2]]) * (16 // unit)
    for out in (torch.float32, torch.bfloat16):
        options: dict[str, Any] = {
            "crop_size": (96, 96, 96), "chunk_size": (32, 32, 32), "dtype": dtype,
            "start_unit": unit, "out_dtype": out, "shuffle": shuffle,
        }  # fmt: skip
        moved = {key: value.cuda() for key, value in per_sample.items()}
        crops = assemble_crops(chunks.cuda(), table.cuda(), start.cuda(), **options, **moved)
        truth = assemble_crops(chunks, table, start, **options, **per_sample)
        torch.testing.assert_close(crops.cpu(), truth, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_decoder_tokens_at_real_size(dtype):
    masks = patch_masks(0, torch.arange(32, device="cuda"), 216, 54)
    shapes = ((32, 54, 512), (512,), (216, 512))
    leaves = [torch.randn(s, device="cuda", dtype=dtype).requires_grad_() for s in shapes]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    tokens, truth = (
        decoder_tokens(visible, mask_token, positions, masks.visible_ids, masks.masked_ids)
        for visible, mask_token, positions in (leaves, wide)
    )
    relative = 2**-8 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(tokens.double(), truth, rtol=relative, atol=1e-6)
    gradient = torch.randn_like(tokens)
    got = torch.autograd.grad(tokens, leaves, gradient)
    wanted = torch.autograd.grad(truth, wide, gradient.double())
    for a, b in zip(got, wanted, strict=True):
        assert (a.double() - b).abs().max() <= relative * b.abs().max()


def chain(volume, sample, prediction):
    """Mask, gather and score: what a step asks of the kernels."""
    masks = patch_masks(3, sample, 216, 54)
    rows = gather_patch_rows(volume, masks.visible_ids, (16, 16, 16), out_dtype=torch.bfloat16)
    loss = masked_voxel_loss(
        prediction, volume, masks.masked_ids, (16, 16, 16), normalise_target=True
    )
    return rows, loss


def chain_inputs():
    volume, _ = batch(4, 1, (96, 96, 96), (16, 16, 16))
    prediction = torch.randn(4, 162, 4096, device="cuda", dtype=torch.bfloat16)
    return volume, torch.arange(4, device="cuda"), prediction.requires_grad_()


def test_no_host_sync():
    volume, sample, prediction = chain_inputs()
    chain(volume, sample, prediction)[1].backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        chain(volume, sample, prediction)[1].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cuda_graph_replays_with_new_samples():
    volume, sample, prediction = chain_inputs()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(chain(volume, sample, prediction)[1], prediction)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows, loss = chain(volume, sample, prediction)
        (gradient,) = torch.autograd.grad(loss, prediction)
    for first in (0, 100):
        sample.copy_(torch.arange(first, first + 4, device="cuda"))
        graph.replay()
        new_rows, new_loss = chain(volume, sample, prediction)
        (new_gradient,) = torch.autograd.grad(new_loss, prediction)
        assert torch.equal(rows, new_rows)
        assert torch.equal(loss, new_loss)
        assert torch.equal(gradient, new_gradient)


@pytest.mark.slow
def test_inductor_compiles_the_chain_as_one_graph():
    volume, sample, prediction = chain_inputs()
    compiled = torch.compile(chain, fullgraph=True)
    rows, loss = compiled(volume, sample, prediction)
    (gradient,) = torch.autograd.grad(loss, prediction)
    truth_rows, truth = chain(volume, sample, prediction)
    assert torch.equal(rows, truth_rows) and torch.equal(loss, truth)
    assert torch.equal(gradient, torch.autograd.grad(truth, prediction)[0])


def test_backward_in_place_is_exact_for_a_loss_scale():
    volume, masks = batch(2, 1, (32, 32, 32), (16, 16, 16))
    prediction = torch.randn(2, masks.masked_ids.shape[1], 4096, device="cuda").requires_grad_()
    grads = []
    for factor in (1.0, 1024.0):
        loss = masked_voxel_loss(prediction, volume, masks.masked_ids, (16, 16, 16))
        grads.append(torch.autograd.grad(loss * factor, prediction)[0])
    assert torch.equal(grads[0] * 1024, grads[1])


def operations() -> dict[str, Callable[[], tuple[torch.Tensor, ...]]]:
    """Every operation with its backward, over tensors that are made once."""
    crop, patch = (96, 96, 96), (16, 16, 16)
    volume, masks = batch(4, 1, crop, patch)
    sample = torch.arange(4, device=DEVICE)
    dense = torch.randn(4, 1, *crop, device=DEVICE).requires_grad_()
    tokens = torch.randn(4, 162, 4096, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
    large_volume, large = batch(1, 4, (96, 96, 96), (32, 32, 32))
    large_tokens = torch.randn(1, 21, 131072, device=DEVICE).requires_grad_()
    learned = [
        torch.randn(shape, device=DEVICE).requires_grad_()
        for shape in ((4, 54, 512), (512,), (216, 512))
    ]
    chunks = torch.randint(0, 255, (64, 2 * 32**3), dtype=torch.uint8, device=DEVICE)
    table = torch.arange(64, device=DEVICE).view(1, 1, 4, 4, 4)
    start = torch.ones(1, 3, dtype=torch.int64, device=DEVICE)
    flip = torch.ones(4, 3, dtype=torch.bool, device=DEVICE)

    def with_gradient(prediction, image, ids, size, **options):
        loss = masked_voxel_loss(prediction, image, ids, size, **options)
        return (loss, *torch.autograd.grad(loss * 2, prediction))

    def random_masks(n):
        masks = patch_masks(7, sample, n, n // 4)
        return masks.visible_ids, masks.masked_ids, masks.masked

    def learned_tokens():
        visible, mask_token, positions = learned
        tokens = decoder_tokens(visible, mask_token, positions, masks.visible_ids, masks.masked_ids)
        return (tokens, *torch.autograd.grad(tokens.square().sum(), learned))

    ids = masks.masked_ids
    return {
        "ranked masks": lambda: random_masks(216),
        "sorted masks": lambda: random_masks(8000),
        "rows": lambda: (gather_patch_rows(volume, masks.visible_ids, patch, flip=flip),),
        "token loss": lambda: with_gradient(tokens, volume, ids, patch, normalise_target=True),
        "dense loss": lambda: with_gradient(dense, volume, ids, patch, kind="l2", flip=flip),
        "chunked loss": lambda: with_gradient(
            large_tokens, large_volume, large.masked_ids, (32, 32, 32), normalise_target=True
        ),
        "learned tokens": learned_tokens,
        "crops": lambda: (
            assemble_crops(
                chunks, table, start, crop_size=crop, chunk_size=(32, 32, 32),
                dtype=torch.int16, start_unit=16,
            ),
        ),
    }  # fmt: skip


OPERATIONS = (
    "ranked masks", "sorted masks", "rows", "token loss", "dense loss", "chunked loss",
    "learned tokens", "crops",
)  # fmt: skip


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_repeats_and_neither_waits_nor_leaves_its_stream(name):
    """Same bits again in deterministic mode, on a busy side stream, and from a captured graph."""
    run = operations()[name]
    first = run()
    torch.cuda.synchronize()
    torch.use_deterministic_algorithms(True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)
    assert same(first, again)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    delay = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    with torch.cuda.stream(stream):
        delay.zero_()
        beside = run()
        done = torch.cuda.Event()
        done.record()
    done.synchronize()
    assert same(first, beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()
    for tensor in kept:
        tensor.detach().zero_()
    graph.replay()
    assert same(first, kept)


@pytest.mark.parametrize("offset", [1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32], ids=str)
def test_memory_that_begins_anywhere(dtype, offset):
    """A view whose first voxel is not aligned to 16 bytes is read all the same."""
    memory = (torch.randn(offset + 2 * 32**3, device=DEVICE) * 40 + 100).clamp(0, 255).to(dtype)
    volume = memory[offset:].view(2, 1, 32, 32, 32)
    masks = patch_masks(0, torch.arange(2, device=DEVICE), 8, 3)
    rows = gather_patch_rows(volume, masks.visible_ids, (16, 16, 16), out_dtype=torch.float32)
    whole = volume.clone()
    assert torch.equal(
        rows, gather_patch_rows(whole, masks.visible_ids, (16, 16, 16), out_dtype=torch.float32)
    )
    line = torch.randn(offset + 2 * 5 * 4096, device=DEVICE)
    prediction = line[offset:].view(2, 5, 4096)
    compare_loss(prediction, volume, masks.masked_ids, (16, 16, 16), 5e-6, normalise_target=True)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_on_another_device_than_the_current_one():
    volume, sample, prediction = chain_inputs()
    rows, loss = chain(volume, sample, prediction)
    assert torch.cuda.current_device() == 0
    there = (volume.to("cuda:1"), sample.to("cuda:1"), prediction.detach().to("cuda:1"))
    other_rows, other_loss = chain(there[0], there[1], there[2])
    assert other_rows.device.index == 1
    assert torch.equal(rows.cpu(), other_rows.cpu())
    assert torch.equal(loss.detach().cpu(), other_loss.cpu())
    assert torch.cuda.current_device() == 0


def test_more_than_2_to_the_31_elements():
    """Offsets are 64-bit: the last patch of a 5 GB volume is read and scored where it lies."""
    volume = torch.zeros(3, 1, 1024, 1024, 1024, dtype=torch.uint8, device="cuda")
    volume[-1, :, -16:, -16:, -16:] = 7
    ids = torch.full((3, 1), 64**3 - 1, device="cuda")
    rows = gather_patch_rows(volume, ids, (16, 16, 16), out_dtype=torch.float32)
    assert rows.amax((1, 2)).tolist() == [0, 0, 7]
    loss = masked_voxel_loss(torch.zeros(3, 1, 4096, device="cuda"), volume, ids, (16, 16, 16))
    assert loss.item() == pytest.approx(7 / 3)


def test_nt_xent_on_a_gpu():
    first, second = torch.randn(2, 64, 128, device="cuda").unbind()
    truth = nt_xent(first.double(), second.double(), 0.1)
    torch.testing.assert_close(nt_xent(first, second, 0.1).double(), truth, rtol=1e-5, atol=0)
