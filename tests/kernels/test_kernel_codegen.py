"""Every kernel at every shipped configuration, compiled for three GPUs on a machine with none.

No stack (nothing spills), registers under a ceiling that keeps enough warps resident, and, wherever
the layout allows it, all voxels moved 16 bytes at a time.
"""

import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

from mim3d.kernels import (
    assemble_kernel,
    decoder_tokens,
    gradient_scale,
    masked_loss_kernel,
    masked_norm_kernel,
    masking,
    patch_moments,
    patch_rows,
    resample,
)
from mim3d.kernels.codegen import Launch, compile_launch, recorded
from mim3d.kernels.masked_loss_kernel import launch_loss

CAPABILITIES = (80, 90, 100)
U8, I16, F16, BF16, F32 = (
    torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.float32,
)  # fmt: skip
CUBE8, CUBE16, CUBE32 = (8, 8, 8), (16, 16, 16), (32, 32, 32)
SCALE, FLIP = torch.ones(2), torch.zeros(2, 3, dtype=torch.bool)
START = torch.zeros(2, 3, dtype=torch.int64)


def voxels_of(dtype, channels, crop, layout="first") -> torch.Tensor:
    """A volume (2, c, z, y, x) whose channels come first or last, or that begins at one voxel."""
    if layout == "last":
        return torch.zeros(2, *crop, channels, dtype=dtype).permute(0, 4, 1, 2, 3)
    begin = 1 if layout == "begun at one" else 0
    line = torch.zeros(begin + 2 * channels * crop[0] * crop[1] * crop[2], dtype=dtype)
    return line[begin:].view(2, channels, *crop)


def loss(
    volume=I16, prediction=BF16, patch=CUBE16, crop=(96, 96, 96), channels=1, kind="l1",
    normalise=True, dense=False, weight=None, scale=None, flip=None, start=None, gradient=True,
    layout="first",
) -> list[Launch]:  # fmt: skip
    voxels = voxels_of(volume, channels, crop, layout)
    n = (crop[0] // patch[0]) * (crop[1] // patch[1]) * (crop[2] // patch[2])
    ids = torch.arange(n // 2).expand(2, n // 2).contiguous()
    width = channels * patch[0] * patch[1] * patch[2]
    shape = (2, channels, *crop) if dense else (2, n // 2, width)
    weights = None if weight is None else torch.zeros(2, 1, *crop, dtype=weight)
    with (
        recorded(masked_loss_kernel, "loss_kernel") as launches,
        recorded(patch_moments, "moments_kernel") as moments,
    ):
        launch_loss(
            torch.empty(shape, dtype=prediction), voxels, ids, weights, scale, scale, flip, start,
            patch, crop, kind, 1.0, normalise, 1000.0, gradient,
        )  # fmt: skip
    return launches + moments


def rows(
    volume=I16, out=BF16, patch=CUBE16, crop=(96, 96, 96), channels=1, scale=None, flip=None,
    start=None, layout="first",
) -> list[Launch]:  # fmt: skip
    voxels = voxels_of(volume, channels, crop, layout)
    ids = torch.zeros(2, 4, dtype=torch.int64)
    with recorded(patch_rows, "gather_kernel") as launches:
        patch_rows.launch_gather(voxels, ids, scale, scale, flip, start, patch, crop, out)
    return launches


def crops(
    stored=I16, out=F32, unit=16, size=(96, 96, 96), shuffle="byte", side=32, **options
) -> list[Launch]:
    chunks = torch.empty(8, side**3 * stored.itemsize, dtype=U8)
    table = torch.zeros(2, 1, 4, 4, 4, dtype=torch.int64)
    box, pad, clip, scale, shift, flip = (
        options.get(name) for name in ("box", "pad", "clip", "scale", "shift", "flip")
    )
    with recorded(assemble_kernel, "assemble_kernel") as launches:
        assemble_kernel.launch_assemble(
            chunks, table, START, box, pad, clip, scale, shift, flip,
            size, (side,) * 3, stored, shuffle, 65536, unit, out,
        )  # fmt: skip
    return launches


def masks(n=216, kind="random", grid=(6, 6, 6)) -> list[Launch]:
    with (
        recorded(masking, "rank_kernel") as ranks,
        recorded(masking, "key_kernel") as keys,
    ):
        masking.launch_masks(torch.arange(2), 7, n, n // 4, kind, grid, 2)
    return ranks + keys


def tokens(width=512, dtype=BF16) -> list[Launch]:
    visible, n, v = torch.empty(2, 54, width, dtype=dtype), 216, 54
    ids = torch.arange(n).expand(2, n)
    with (
        recorded(decoder_tokens, "tokens_kernel") as forward,
        recorded(decoder_tokens, "sums_kernel") as backward,
    ):
        decoder_tokens.assemble_tokens(
            visible, torch.empty(width), torch.empty(n, width), ids[:, :v], ids[:, v:], True
        )
        gradient = torch.empty(2, n, width, dtype=dtype)
        decoder_tokens.sum_tokens(gradient, ids[:, :v], ids[:, v:], True)
    return forward + backward


NORM_KERNELS = (
    *("moments_kernel", "merge_kernel", "apply_kernel", "sums_kernel", "gradient_kernel"),
)


def norm(width=32, dtype=BF16, masked=True, n=4096) -> list[Launch]:
    features = torch.empty(2, n, width, dtype=dtype)
    visible = torch.ones(2, n, dtype=torch.bool) if masked else None
    vectors, moments = torch.ones(width), torch.ones(2, width)
    with ExitStack() as stack:
        found = [stack.enter_context(recorded(masked_norm_kernel, name)) for name in NORM_KERNELS]
        masked_norm_kernel.launch_moments(features, visible, 1e-5)
        given = (visible, moments, moments, vectors, vectors, 0.01)
        masked_norm_kernel.launch_apply(features, *given)
        masked_norm_kernel.launch_gradient(features, features, visible, moments, *given[1:])
    return [launch for launches in found for launch in launches]


def scaling(dtype=BF16, b=2) -> list[Launch]:
    with recorded(gradient_scale, "scale_kernel") as launches:
        gradient_scale.launch_scale(torch.empty(b, 162, 4096, dtype=dtype), torch.ones(()))
    return launches


def turned(stored=F32, channels=1) -> list[Launch]:
    boxes = torch.empty(2, channels, 128, 120, 136, dtype=stored)
    placing, extent = torch.zeros(2, 3, 4).double(), torch.zeros(2, 2, 3).double()
    fill = torch.zeros(2, channels) if stored == F32 else None
    with recorded(resample, "resample_kernel") as launches:
        resample.launch_resample(boxes, placing, extent, fill, (96, 96, 96))
    return launches


ALL: dict[str, Any] = {"scale": SCALE, "flip": FLIP, "start": START}
EVERY_OPTION: dict[str, Any] = {
    "box": torch.zeros(2, 2, 3, dtype=torch.int64), "pad": SCALE, "clip": torch.ones(2, 2),
    "scale": SCALE, "shift": SCALE, "flip": FLIP,
}  # fmt: skip
BITS = {"shuffle": "bit", "side": 16}
# name: (launches, register ceiling, whether all voxels move in 16-byte accesses)
CONFIGURATIONS: dict[str, tuple[Callable[[], list[Launch]], int, bool]] = {
    "loss int16": (loss, 80, True),
    "loss uint8": (lambda: loss(U8), 80, False),
    "loss float16 volume": (lambda: loss(F16), 80, True),
    "loss bfloat16 volume": (lambda: loss(BF16), 80, True),
    "loss float32": (lambda: loss(F32, F32), 96, True),
    "loss float16 prediction": (lambda: loss(I16, F16), 80, True),
    "loss without gradient": (lambda: loss(gradient=False), 80, True),
    "loss raw": (lambda: loss(normalise=False), 80, True),
    "loss l2": (lambda: loss(kind="l2"), 80, True),
    "loss smooth l1": (lambda: loss(kind="smooth_l1"), 128, True),
    "loss intensity": (lambda: loss(scale=SCALE), 80, True),
    "loss flip": (lambda: loss(scale=SCALE, flip=FLIP), 96, False),
    "loss start": (lambda: loss(scale=SCALE, start=START), 128, False),
    "loss every option": (lambda: loss(**ALL, weight=U8, kind="smooth_l1"), 208, False),
    "loss weight": (lambda: loss(weight=U8), 96, False),
    "loss weight, patch 32": (lambda: loss(weight=U8, patch=CUBE32), 96, False),
    "loss patch 8": (lambda: loss(patch=CUBE8), 112, True),
    "loss patch 8, 120 voxels wide": (lambda: loss(patch=CUBE8, crop=(120, 120, 120)), 112, True),
    "loss patch 8 x 16 x 16": (lambda: loss(patch=(8, 16, 16)), 96, True),
    "loss patch 12": (lambda: loss(patch=(12, 12, 12)), 112, False),
    "loss patch 32": (lambda: loss(patch=CUBE32), 96, True),
    "loss 2 channels": (lambda: loss(channels=2), 80, True),
    "loss 4 channels": (lambda: loss(channels=4), 80, True),
    "loss 4 channels, patch 12": (lambda: loss(channels=4, patch=(12, 12, 12)), 112, False),
    "loss 4 channels dense": (lambda: loss(channels=4, dense=True), 96, True),
    "loss 4 channels, patch 32": (lambda: loss(channels=4, patch=CUBE32), 96, True),
    "loss 3 channels, rows padded": (lambda: loss(channels=3, patch=(6, 6, 6)), 128, False),
    "loss one channel last": (lambda: loss(layout="last"), 80, True),
    "loss 4 channels last": (lambda: loss(channels=4, layout="last"), 112, False),
    "loss begun at one voxel": (lambda: loss(layout="begun at one"), 80, False),
    "loss dense": (lambda: loss(dense=True), 96, True),
    "loss dense float32": (lambda: loss(F32, F32, dense=True), 112, True),
    "rows int16": (rows, 64, True),
    "rows uint8": (lambda: rows(U8), 64, True),
    "rows float32": (lambda: rows(F32), 64, True),
    "rows bfloat16": (lambda: rows(BF16), 64, True),
    "rows to float32": (lambda: rows(out=F32), 64, True),
    "rows to float16": (lambda: rows(F16, F16), 64, True),
    "rows intensity": (lambda: rows(scale=SCALE), 64, True),
    "rows flip": (lambda: rows(scale=SCALE, flip=FLIP), 80, False),
    "rows every option": (lambda: rows(**ALL), 112, False),
    "rows patch 8": (lambda: rows(patch=CUBE8, scale=SCALE), 96, True),
    "rows patch 12": (lambda: rows(patch=(12, 12, 12)), 80, False),
    "rows 4 channels": (lambda: rows(channels=4), 64, True),
    "rows 3 channels, padded": (lambda: rows(channels=3, patch=(6, 6, 6)), 96, False),
    "rows one channel last": (lambda: rows(layout="last"), 64, True),
    "rows begun at one voxel": (lambda: rows(layout="begun at one"), 64, False),
    "crops int16": (crops, 64, False),
    "crops int16 to bfloat16": (lambda: crops(out=BF16, scale=SCALE, shift=SCALE), 64, False),
    "crops uint8 labels": (lambda: crops(U8, U8), 64, False),
    "crops float32": (lambda: crops(F32, scale=SCALE), 64, False),
    "crops by bits": (lambda: crops(out=BF16, scale=SCALE, **BITS), 40, False),
    "crops by bits, uint8": (lambda: crops(U8, out=BF16, scale=SCALE, **BITS), 40, False),
    "crops by bits, every option": (lambda: crops(**EVERY_OPTION, **BITS), 112, False),
    "crops by bits, chunks of two blocks": (
        lambda: crops(F32, shuffle="bit", scale=SCALE),
        64,
        False,
    ),
    "crops by bits, any start": (lambda: crops(unit=1, **BITS), 144, False),
    "crops any start": (lambda: crops(unit=1), 112, False),
    "crops every option": (lambda: crops(**EVERY_OPTION), 168, False),
    "crops raw, each one chunk": (
        lambda: crops(shuffle="none", side=96, **EVERY_OPTION),
        168,
        False,
    ),
    "turned": (turned, 96, False),
    "turned labels": (lambda: turned(U8), 80, False),
    "masks random": (masks, 96, False),
    "masks block": (lambda: masks(kind="block"), 128, False),
    "masks grid": (lambda: masks(1728, "grid", (12, 12, 12)), 96, False),
    "masks 8000 patches": (lambda: masks(8000, grid=(1, 1, 8000)), 96, False),
    "decoder tokens": (tokens, 96, False),
    "decoder tokens 768": (lambda: tokens(768), 96, False),
    "masked norm": (norm, 128, False),
    "masked norm 320": (lambda: norm(320, n=125), 128, False),
    "masked norm, all visible": (lambda: norm(64, masked=False), 128, False),
    "masked norm float32": (lambda: norm(32, F32), 128, False),
    "gradient scale": (scaling, 64, False),
    "gradient scale float32": (lambda: scaling(F32), 64, False),
    "gradient scale, 64 crops": (lambda: scaling(b=64), 64, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_compiles_without_stack_under_its_register_ceiling(name: str) -> None:
    make, ceiling, wide = CONFIGURATIONS[name]
    launches = make()
    assert launches
    for launch in launches:
        for capability in CAPABILITIES:
            code = compile_launch(launch, capability)
            about = f"{name} sm_{capability}: {code.registers} registers"
            assert code.stack == 0, about
            assert code.registers <= ceiling, about
            if wide:
                assert moved_wide(launch, code.accesses("ld"), code.warps), about


def moved_wide(launch: Launch, loads: dict[int, int], warps: int) -> bool:
    """Whether 16-byte loads cover the tile's volume and prediction exactly."""
    arguments = launch.arguments
    elements = arguments.get("ROWS", 1) * arguments["BLOCK"]
    names = ("p_volume", "p_prediction")
    tensors = [arguments[name] for name in names if arguments.get(name) is not None]
    tile = elements * sum(tensor.dtype.itemsize for tensor in tensors)
    return loads[16] * 16 * 32 * warps >= tile


@pytest.mark.slow
def test_snapped_starts_read_byte_planes_16_at_a_time() -> None:
    (launch,) = crops(out=BF16, scale=SCALE, shift=SCALE)
    code = compile_launch(launch, 90)
    voxels = launch.arguments["SEGMENTS"] * launch.arguments["LANES"]
    assert code.accesses("ld")[16] * 16 * 32 * code.warps == 2 * voxels
    assert code.accesses("st")[16] * 16 * 32 * code.warps == 2 * voxels


@pytest.mark.slow
def test_snapped_starts_read_bit_planes_16_voxels_at_a_time() -> None:
    (launch,) = crops(out=BF16, scale=SCALE, **BITS)
    code = compile_launch(launch, 90)
    runs_per_thread = launch.arguments["SEGMENTS"] // (32 * code.warps)
    assert code.accesses("ld")[2] == 16 * runs_per_thread
    assert not code.accesses("ld")[1]
    # All planes are asked for before the first is used; the one barrier is where words change
    # hands for stores of 16 bytes.
    loads = [place.start() for place in re.finditer(r"ld\.global\.b16", code.ptx)]
    assert len(loads) == 16 * runs_per_thread
    assert max(loads) < code.ptx.index("xor.b32")
    assert code.ptx.count("bar.sync") == 1
    voxels = launch.arguments["SEGMENTS"] * launch.arguments["LANES"]
    assert code.accesses("st")[16] * 16 * 32 * code.warps == 2 * voxels


@pytest.mark.slow
def test_maps_are_read_and_written_16_bytes_at_a_time() -> None:
    """Of the element-wise passes, that is: those that move whole maps."""
    for launch in norm():
        code = compile_launch(launch, 90)
        element = launch.arguments["p_features"].dtype.itemsize if "p_features" in (
            launch.arguments) else 0  # fmt: skip
        if "p_out" in launch.arguments:
            tile = launch.arguments["ROWS"] * launch.arguments["BLOCK"] * element
            assert code.accesses("st")[16] * 16 * 32 * code.warps == tile
            assert code.accesses("ld")[16] * 16 * 32 * code.warps >= tile


@pytest.mark.slow
def test_intensity_is_never_fused_where_both_paths_must_give_the_same_bits() -> None:
    for (launch,) in (crops(scale=SCALE, shift=SCALE), rows(scale=SCALE), turned()):
        ptx = compile_launch(launch, 90).ptx
        assert "fma.rn" not in ptx
        assert "mul" in ptx


@pytest.mark.slow
def test_per_sample_factors_are_loaded_once_per_row() -> None:
    (launch,) = rows(patch=CUBE8, scale=SCALE)
    assert compile_launch(launch, 90).accesses("ld")[4] <= 2 * launch.arguments["ROWS"]


def test_a_spill_would_be_seen() -> None:
    """The check can fail: 16,384 elements on one warp do not fit its registers."""
    (launch,) = loss(patch=(16, 32, 32))
    starved = Launch(launch.kernel, launch.arguments, {"num_warps": 1}, launch.grid)
    assert compile_launch(starved, 90).stack > 0
