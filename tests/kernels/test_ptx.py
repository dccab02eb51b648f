"""The compiled PTX of every kernel, run without a GPU on small cases, against the references.

Triton's interpreter runs the source; this runs what the GPU is given, and faults on what a GPU
would fault on or hide: accesses outside a tensor or off their width, races in shared memory,
barriers that not all threads reach. Faults are planted to see that it can.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from ptx_machine import run_launch, run_ptx
from ptx_memory import Fault, SharedMemory
from ptx_program import UnknownInstructionError, parse, split_operands

from mim3d.kernels import (
    assemble,
    assemble_kernel,
    decoder_tokens,
    gradient_scale,
    masked_loss,
    masked_loss_kernel,
    masked_norm,
    masked_norm_kernel,
    masking,
    patch_moments,
    patch_rows,
    resample,
)
from mim3d.kernels.backend import INTERPRETED, jit, tl
from mim3d.kernels.codegen import Launch, compile_launch, recorded

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

U8, I16, F16, BF16, F32 = (
    torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.float32,
)  # fmt: skip
CUBE, CROP = (16, 16, 16), (48, 32, 32)
FLIP = torch.tensor([[True, False, True], [False, True, False]])
START = torch.tensor([[-3, 2, 5], [9, -7, 1]])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def volume_of(dtype: torch.dtype, channels: int, crop: tuple[int, ...]) -> torch.Tensor:
    values = torch.randn(2, channels, *crop) * 200 + 400
    return values.clamp(0, 255 if dtype == U8 else 32767).to(dtype)


def ids_of(crop: tuple[int, ...], patch: tuple[int, ...], share: float) -> torch.Tensor:
    n = (crop[0] // patch[0]) * (crop[1] // patch[1]) * (crop[2] // patch[2])
    return torch.stack([torch.randperm(n)[: max(1, int(share * n))] for _ in range(2)])


def loss(
    capability: int, volume=I16, prediction=BF16, patch=CUBE, crop=CROP, channels=1, kind="l2",
    normalise=True, dense=False, flip=None, start=None, scale=None, weight=None, pad=0,
) -> None:  # fmt: skip
    voxels, ids = volume_of(volume, channels, crop), ids_of(crop, patch, 0.75)
    width = channels * patch[0] * patch[1] * patch[2] + pad
    shape = (2, channels, *crop) if dense else (2, ids.shape[1], width)
    predicted = torch.randn(shape).to(prediction)
    weights = None if weight is None else (torch.rand(2, 1, *crop) > 0.5).to(weight)
    rest: tuple[Any, ...] = (
        weights, scale, scale, flip, start, patch, crop, kind, 1.0, normalise, 1000.0, True,
    )  # fmt: skip
    with (
        recorded(masked_loss_kernel, "loss_kernel") as launches,
        recorded(patch_moments, "moments_kernel") as moments,
    ):
        masked_loss_kernel.launch_loss(predicted, voxels, ids, *rest)
    for launch in (*moments, *launches):
        run_launch(launch, capability)
    found = launches[0].arguments
    wanted, _, gradient = masked_loss.reference(predicted, voxels, ids, *rest)
    torch.testing.assert_close(found["p_partial"].sum(), wanted, rtol=1e-5, atol=0)
    worst = (found["p_gradient"].float() - gradient.float()).abs().max()
    precision = 2e-6 if prediction == F32 else 2**-7
    assert worst <= precision * gradient.float().abs().max()


def rows(
    capability: int, volume=I16, out=BF16, patch=CUBE, crop=CROP, channels=1, flip=None,
    start=None, scale=None,
) -> None:  # fmt: skip
    voxels, ids = volume_of(volume, channels, crop), ids_of(crop, patch, 0.25)
    given = (voxels, ids, scale, scale, flip, start, patch, crop, out)
    with recorded(patch_rows, "gather_kernel") as launches:
        found = patch_rows.launch_gather(*given)
    run_launch(launches[0], capability)
    assert torch.equal(found, patch_rows.reference(*given))


def crops(
    capability: int, stored=I16, out=BF16, shuffle="bit", side=16, unit=16, size=(32, 48, 32),
    block=65536, options=True, channels=1,
) -> None:  # fmt: skip
    per_axis = [-(-edge // side) + 1 for edge in size]
    n = 2 * channels * per_axis[0] * per_axis[1] * per_axis[2]
    chunks = torch.randint(0, 255, (n, side**3 * stored.itemsize), dtype=U8)
    table = torch.randperm(n).view(2, channels, *per_axis)
    table[0, 0, 0, 0, 0] = -1
    start = torch.randint(0, max(1, side // unit), (2, 3))
    per_channel = (torch.rand(2, channels) + 0.5, torch.rand(2, channels))
    box = torch.tensor([[[0, 0, 0], [20, 40, 60]]] * 2)
    pad, clip = torch.rand(2, channels) * 9, torch.tensor([[[-900.0, 20000.0]] * channels] * 2)
    extra = (box, pad, clip) if options else (None, None, None)
    given: tuple[Any, ...] = (
        chunks, table, start, *extra, *per_channel, FLIP if options else None, size, (side,) * 3,
        stored, shuffle, min(block, chunks.shape[1]), unit, out,
    )  # fmt: skip
    with recorded(assemble_kernel, "assemble_kernel") as launches:
        found = assemble_kernel.launch_assemble(*given)
    run_launch(launches[0], capability)
    torch.testing.assert_close(found, assemble.reference(*given), rtol=0, atol=0, equal_nan=True)


def masks(capability: int, n=216, kind="random", grid=(6, 6, 6)) -> None:
    samples = torch.arange(2) + (1 << 33)
    with recorded(masking, "rank_kernel") as launches:
        found = masking.launch_masks(samples, 5, n, n // 4, kind, grid, 2)
    run_launch(launches[0], capability)
    keys = masking.patch_keys(5, samples, kind, (1, 1, n) if kind == "random" else grid, 2)
    for got, wanted in zip(found, masking._split(keys, n // 4), strict=True):
        assert torch.equal(got, wanted)


def keys(capability: int, n=5000, kind="random", grid=(1, 1, 5000)) -> None:
    """Of crops of so many patches that keys are sorted by torch."""
    samples = torch.arange(2) + (1 << 33)
    with recorded(masking, "key_kernel") as launches:
        masking.launch_masks(samples, 5, n, n // 4, kind, grid, 2)
    run_launch(launches[0], capability)
    wanted = masking.patch_keys(5, samples, kind, grid, 2)
    assert torch.equal(launches[0].arguments["p_key"], wanted)


def tokens(capability: int, width=512, dtype=BF16) -> None:
    n, v = 27, 6
    visible, ids = torch.randn(2, v, width).to(dtype), torch.stack([torch.randperm(n)] * 2)
    table, mask = torch.randn(n, width), torch.randn(width)
    given = (visible, mask, table, ids[:, :v], ids[:, v:])
    with recorded(decoder_tokens, "tokens_kernel") as launches:
        found = decoder_tokens.assemble_tokens(*given, True)
    run_launch(launches[0], capability)
    assert torch.equal(found, decoder_tokens.assemble_tokens(*given, False))
    gradient = torch.randn(2, n, width).to(dtype)
    with recorded(decoder_tokens, "sums_kernel") as launches:
        sums = decoder_tokens.sum_tokens(gradient, ids[:, :v], ids[:, v:], True)
    for launch in launches:
        run_launch(launch, capability)
    wanted = decoder_tokens.sum_tokens(gradient, ids[:, :v], ids[:, v:], False)
    for got, true in zip(sums, wanted, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-4, atol=1e-4)


def norm(capability: int, width=32, dtype=BF16, masked=True) -> None:
    n, b = 70, 2
    features, gradient = torch.randn(b, n, width).to(dtype), torch.randn(b, n, width).to(dtype)
    visible = torch.rand(b, n) < 0.4 if masked else None
    weight, bias = torch.rand(width) + 0.5, torch.randn(width)

    def run(name: str, host: Callable[..., Any], *given: Any) -> Any:
        with recorded(masked_norm_kernel, name) as launches:
            found = host(*given)
        run_launch(launches[0], capability)
        return found

    with recorded(masked_norm_kernel, "merge_kernel") as merges:
        total, mean, scale = run(
            "moments_kernel", masked_norm_kernel.launch_moments, features, visible, 1e-5
        )
    run_launch(merges[0], capability)
    wanted = masked_norm.moments(features, visible, 1e-5, False)
    for got, true in zip((total, mean, scale), wanted, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-4, atol=1e-5)
    given = (visible, *wanted[1:], weight, bias, 0.01)
    out = run("apply_kernel", masked_norm_kernel.launch_apply, features, *given)
    near = 2**-6 if dtype == BF16 else 1e-4
    wanted_rows = masked_norm.normed_rows(features, *given, False)
    torch.testing.assert_close(out, wanted_rows, rtol=near, atol=near)
    given = (gradient, features, visible, *wanted, weight, bias, 0.01)
    with (
        recorded(masked_norm_kernel, "sums_kernel") as sums,
        recorded(masked_norm_kernel, "gradient_kernel") as gradients,
    ):
        masked_norm_kernel.launch_gradient(*given)
    run_launch(sums[0], capability)
    arguments = gradients[0].arguments
    for name, part in (("p_sum", "p_sum"), ("p_product", "p_product")):
        arguments[name].copy_(sums[0].arguments[part].sum(1))
    run_launch(gradients[0], capability)
    true, *totals = masked_norm.gradient_rows(*given, False)
    torch.testing.assert_close(arguments["p_out"], true, rtol=near, atol=near)
    for name, total in zip(("p_sum", "p_product"), totals, strict=True):
        torch.testing.assert_close(arguments[name], total, rtol=1e-3, atol=1e-3)


def scaling(capability: int, dtype=BF16, n=5000) -> None:
    gradient, factor = torch.randn(n).to(dtype), torch.tensor(0.3)
    wanted = (gradient.float() * factor).to(dtype)
    with recorded(gradient_scale, "scale_kernel") as launches:
        gradient_scale.launch_scale(gradient, factor)
    run_launch(launches[0], capability)
    assert torch.equal(gradient, wanted)


def turned(capability: int, stored=F32, channels=1, size=(11, 9, 21)) -> None:
    voxels = volume_of(stored, channels, (13, 10, 12))
    placing = torch.randn(2, 3, 4, dtype=torch.float64) * 0.3 + torch.eye(3, 4)
    placing[..., 3] = torch.randn(2, 3)
    extent = torch.tensor([[[-0.5] * 3, [11.5, 9.5, 8.5]], [[-3.5] * 3, [20.5, 9.5, 11.5]]])
    fill = torch.rand(2, channels) if stored == F32 else None
    given = (voxels, placing, extent.double(), fill, size)
    with recorded(resample, "resample_kernel") as launches:
        found = resample.launch_resample(*given)
    run_launch(launches[0], capability)
    assert torch.equal(found, resample.reference(*given))


SMALL, FACTORS = (24, 16, 24), torch.rand(2) + 0.5
CASES: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "loss": (loss, {}),
    "loss float32": (loss, {"volume": F32, "prediction": F32}),
    "loss raw l1": (loss, {"kind": "l1", "normalise": False}),
    "loss smooth l1, weight": (loss, {"kind": "smooth_l1", "weight": U8}),
    "loss patch 8": (loss, {"patch": (8,) * 3, "crop": SMALL}),
    "loss odd patch": (loss, {"patch": (6, 5, 3), "crop": (12, 10, 33)}),
    "loss patch 32": (loss, {"patch": (32,) * 3, "crop": (32, 32, 64)}),
    "loss dense": (loss, {"dense": True, "crop": (32, 32, 16)}),
    "loss flips and starts": (loss, {"flip": FLIP, "start": START, "scale": FACTORS}),
    "loss 3 channels": (loss, {"channels": 3, "crop": (32, 32, 16)}),
    "loss 3 channels dense": (loss, {"channels": 3, "dense": True, "crop": (16, 32, 16)}),
    "loss 3 channels, padded rows": (
        loss, {"channels": 3, "patch": (3, 5, 3), "crop": (12, 10, 9), "pad": 9},
    ),
    "loss 2 channels of patch 32": (
        loss, {"channels": 2, "patch": (32,) * 3, "crop": (32, 32, 64)},
    ),
    "rows": (rows, {}),
    "rows float32": (rows, {"volume": F32}),
    "rows flips and starts": (rows, {"flip": FLIP, "start": START, "scale": FACTORS}),
    "rows odd patch": (rows, {"patch": (6, 5, 3), "crop": (12, 10, 33)}),
    "rows 3 channels, padded": (rows, {"channels": 3, "patch": (3, 5, 3), "crop": (12, 10, 9)}),
    "crops": (crops, {}),
    "crops plain": (crops, {"options": False}),
    "crops 2 channels": (crops, {"channels": 2, "size": (32, 32, 16)}),
    "crops uint8": (crops, {"stored": U8, "out": F32, "options": False}),
    "crops int32": (crops, {"stored": torch.int32, "out": F32, "options": False}),
    "crops by bits, two blocks": (
        crops, {"side": 32, "block": 32768, "size": (32,) * 3, "options": False},
    ),
    "crops by bits, any start": (crops, {"unit": 1, "size": (16, 16, 32)}),
    "crops raw": (crops, {"shuffle": "none", "side": 48, "size": (48, 32, 48), "out": F32}),
    "crops by bytes": (crops, {"shuffle": "byte", "side": 32, "size": (32,) * 3}),
    "masks random": (masks, {}),
    "masks block": (masks, {"kind": "block"}),
    "masks grid": (masks, {"kind": "grid"}),
    "mask keys random": (keys, {}),
    "mask keys block": (keys, {"kind": "block", "grid": (10, 20, 25)}),
    "decoder tokens": (tokens, {}),
    "decoder tokens, odd": (tokens, {"width": 100, "dtype": F32}),
    "masked norm": (norm, {}),
    "masked norm, odd": (norm, {"width": 20, "dtype": F32, "masked": False}),
    "turned": (turned, {}),
    "turned 3 channels": (turned, {"channels": 3, "size": (5, 7, 6)}),
    "turned labels uint8": (turned, {"stored": U8}),
    "turned labels int16": (turned, {"stored": I16, "size": (6, 6, 32)}),
    "gradient scale": (scaling, {}),
    "gradient scale, odd": (scaling, {"dtype": F32, "n": 4999}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", CASES)
def test_compiled_kernels_give_what_the_references_give(name: str, capability: int) -> None:
    case, options = CASES[name]
    case(capability, **options)


@jit
def shifted_kernel(p_from, p_to, n, OFFSET: tl.constexpr, BLOCK: tl.constexpr):
    """A copy that begins OFFSET elements on."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_to + i, tl.load(p_from + i + OFFSET, mask=i < n), mask=i < n)


@jit
def sum_kernel(p_from, p_to, BLOCK: tl.constexpr):
    """A sum over four warps, which meet in shared memory."""
    tl.store(p_to, tl.sum(tl.load(p_from + tl.arange(0, BLOCK)), axis=0))


def copy_of(offset: int) -> tuple[Launch, torch.Tensor]:
    source, target = torch.arange(4096, dtype=F32), torch.zeros(4096)
    arguments = {"p_from": source, "p_to": target, "n": 4096, "OFFSET": offset, "BLOCK": 1024}
    return Launch(shifted_kernel, arguments, {"num_warps": 4}, (4,)), target


def test_a_sound_copy_and_a_sound_sum_run() -> None:
    launch, target = copy_of(0)
    run_launch(launch)
    assert torch.equal(target, torch.arange(4096, dtype=F32))
    launch, found = sum_of()
    run_launch(launch)
    assert found.item() == 1024 * 1023 / 2


def sum_of() -> tuple[Launch, torch.Tensor]:
    found = torch.zeros(1)
    arguments = {"p_from": torch.arange(1024, dtype=F32), "p_to": found, "BLOCK": 1024}
    return Launch(sum_kernel, arguments, {"num_warps": 4}, (1,)), found


def test_an_access_outside_its_tensor_is_a_fault() -> None:
    launch, _ = copy_of(64)
    with pytest.raises(Fault, match="load of 16 bytes outside every tensor"):
        run_launch(launch)
    run_launch(launch, blocks=[(0, 0)])  # the first blocks stay inside


def test_an_access_off_its_width_is_a_fault() -> None:
    """An offset that the compiler was not told of: as if a volume began at an odd address."""
    launch, _ = copy_of(0)
    code = compile_launch(launch, 90)
    moved = re.sub(r"(ld\.global\.v4\.b32[^\[]*\[ %rd\d+ \+ )0", r"\g<1>4", code.ptx)
    assert moved != code.ptx
    with pytest.raises(Fault, match="misaligned global load of 16 bytes"):
        run_ptx(moved, code.shared, launch)


def test_a_barrier_that_is_left_out_is_a_race() -> None:
    launch, _ = sum_of()
    code = compile_launch(launch, 90)
    assert code.ptx.count("bar.sync") >= 1
    with pytest.raises(Fault, match="race: shared byte"):
        run_ptx(re.sub(r"bar\.sync[^;]*;", "", code.ptx), code.shared, launch)


def test_a_barrier_that_some_threads_pass_by_is_a_fault() -> None:
    launch, _ = sum_of()
    code = compile_launch(launch, 90)
    early = "setp.lt.u32 %p99, %tid.x, 32;\n\t@%p99 ret;\n\tbar.sync"
    with pytest.raises(Fault, match="a barrier that not every thread reaches"):
        run_ptx(code.ptx.replace("bar.sync", early, 1), code.shared, launch)


def test_shared_memory_knows_who_touched_what_since_the_last_barrier() -> None:
    memory = SharedMemory(64, threads=64)
    first, second, place = np.array([0]), np.array([1]), np.array([8], np.uint64)
    data = np.ones((1, 4), np.uint8)
    memory.store(place, data, first)
    memory.store(place, data, first)  # a warp's own order is kept
    with pytest.raises(Fault, match="written by warp 0 and written by warp 1"):
        memory.store(place, data, second)
    memory.barrier()
    assert memory.load(place, 4, second).tolist() == [[1, 1, 1, 1]]
    memory.load(place, 4, first)  # any number may read
    with pytest.raises(Fault, match="read by one warp and overwritten by another"):
        memory.store(place, data, first)
    with pytest.raises(Fault, match="misaligned shared access"):
        memory.load(place, 16, first)
    with pytest.raises(Fault, match="shared byte 67 of 64"):
        memory.load(np.array([64], np.uint64), 4, first)


def test_a_wrong_instruction_gives_a_wrong_result() -> None:
    launch, found = sum_of()
    code = compile_launch(launch, 90)
    run_ptx(code.ptx.replace("add.f32", "sub.f32", 1), code.shared, launch)
    assert found.item() != 1024 * 1023 / 2


def test_an_instruction_that_is_not_known_is_refused() -> None:
    launch, _ = copy_of(0)
    code = compile_launch(launch, 90)
    with pytest.raises(UnknownInstructionError, match="popc"):
        run_ptx(re.sub(r"\bshl\.b32", "popc.b32", code.ptx), code.shared, launch)


def test_parsing() -> None:
    text = """.visible .entry k(.param .u64 .ptr .global .align 1 k_param_0)
    .reqntid 128
    {
    .reg .b32 %r<3>;
    $L__1: // a label
    @!%p1 st.global.v2.b32 [ %rd1 + 8 ], { %r1, %r2 };
    bra $L__1;
    }"""
    program = parse(text)
    assert (program.parameters, program.threads) == (("k_param_0",), 128)
    assert program.labels == {"$L__1": 0}
    store, branch = program.code
    assert store.parts == ("st", "global", "v2", "b32") and store.negated
    assert store.operands == ("[ %rd1 + 8 ]", "{ %r1, %r2 }") and branch.operands == ("$L__1",)
    assert split_operands("%r1|%p2, -1, [%rd1]") == ("%r1|%p2", "-1", "[%rd1]")
