"""Visible-patch rows against an independent formulation, for every dtype, layout and geometry."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import DTYPES, random_ids, random_volume

from mim3d.kernels.addressing import layout_of
from mim3d.kernels.patch_grid import grid_shape, row_width
from mim3d.kernels.patch_rows import gather_patch_rows


def voxel_by_voxel(volume, ids, patch, crop, start, flip, scale, shift):
    """Rows (b, v, c*p) float64 by a plain loop over patches and slices."""
    b, c = volume.shape[:2]
    _, gy, gx = grid_shape(crop, patch)
    out = torch.zeros(b, ids.shape[1], c * patch[0] * patch[1] * patch[2], dtype=torch.float64)
    padding = [n for s in reversed(crop) for n in (s, s)]
    for i in range(b):
        padded = torch.nn.functional.pad(volume[i].double(), padding)
        first = [int(start[i, a]) + crop[a] for a in range(3)]
        box = padded[(slice(None), *(slice(f, f + s) for f, s in zip(first, crop, strict=True)))]
        box = torch.flip(box, [a + 1 for a in range(3) if flip[i, a]])
        for j, patch_id in enumerate(ids[i].tolist()):
            place = (patch_id // (gy * gx), patch_id // gx % gy, patch_id % gx)
            cut = tuple(slice(q * p, q * p + p) for q, p in zip(place, patch, strict=True))
            out[i, j] = (box[(slice(None), *cut)] * scale[i] + shift[i]).flatten()
    return out


GEOMETRIES = {
    "whole": ((1, 8, 8, 16), (4, 4, 8), None, False, False),
    "two channels, odd patch": ((2, 6, 10, 9), (3, 5, 3), None, False, False),
    "one voxel patches": ((1, 2, 3, 4), (1, 1, 1), None, False, False),
    "flipped": ((1, 8, 6, 8), (4, 3, 4), None, True, False),
    "cropped at starts": ((2, 9, 10, 11), (2, 2, 4), (4, 6, 8), False, True),
    "flipped and overhanging": ((1, 5, 6, 7), (2, 3, 4), (8, 6, 8), True, True),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_rows_are_the_patches_voxels(where, name):
    backend, device = where
    shape, patch, crop_size, flips, starts = GEOMETRIES[name]
    crop = crop_size or shape[1:]
    volume = random_volume((2, *shape))
    n = torch.tensor(grid_shape(crop, patch)).prod().item()
    ids = random_ids(2, int(n), min(5, int(n)))
    scale, shift = torch.tensor([0.25, 3.0]), torch.tensor([0.5, -1.0])
    flip = torch.tensor([[True, False, True], [False, True, True]]) if flips else None
    start = torch.tensor([[1, -2, 2], [3, 2, 1]]) if starts else None
    options = {"scale": scale, "shift": shift, "flip": flip, "start": start}
    moved = {key: None if t is None else t.to(device) for key, t in options.items()}
    rows = gather_patch_rows(
        volume.to(device), ids.to(device), patch, **moved, crop_size=crop_size,
        out_dtype=torch.float32, backend=backend,
    )  # fmt: skip
    wanted = voxel_by_voxel(
        volume, ids, patch, crop,
        torch.zeros(2, 3) if start is None else start,
        torch.zeros(2, 3, dtype=torch.bool) if flip is None else flip, scale, shift,
    )  # fmt: skip
    count = wanted.shape[2]
    assert rows.shape == (2, ids.shape[1], row_width(shape[0], patch))
    torch.testing.assert_close(rows[..., :count].cpu().double(), wanted, rtol=1e-6, atol=1e-4)
    assert not rows[..., count:].any()


@pytest.mark.parametrize("patch", [(3, 5, 3), (2, 2, 4)])
def test_every_channel_may_have_an_intensity_of_its_own(where, patch):
    """(3, 5, 3) has rows padded after the last channel, (2, 2, 4) has none."""
    backend, device = where
    volume, ids = random_volume((2, 3, 6, 10, 12)), random_ids(2, 12, 5)
    scale, shift = torch.rand(2, 3), torch.rand(2, 3) - 0.5
    rows = gather_patch_rows(
        volume.to(device), ids.to(device), patch, scale=scale.to(device), shift=shift.to(device),
        out_dtype=torch.float32, backend=backend,
    )  # fmt: skip
    values = volume.float() * scale.view(2, 3, 1, 1, 1) + shift.view(2, 3, 1, 1, 1)
    truth = gather_patch_rows(values, ids, patch, backend="reference")
    assert torch.equal(rows.cpu(), truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_volume_dtype_gives_the_references_bits(where, dtype):
    backend, device = where
    volume, ids = random_volume((2, 1, 8, 8, 16), dtype), random_ids(2, 8, 3)
    scale = torch.tensor([0.37, 1.9])
    arguments = {"patch_size": (4, 4, 8), "scale": scale, "out_dtype": torch.float32}
    truth = gather_patch_rows(volume, ids, **arguments, backend="reference")
    arguments["scale"] = scale.to(device)
    rows = gather_patch_rows(volume.to(device), ids.to(device), **arguments, backend=backend)
    assert torch.equal(rows.cpu(), truth)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rows(where, dtype):
    backend, device = where
    volume, ids = random_volume((1, 1, 8, 8, 8), torch.float32), random_ids(1, 8, 4)
    rows = gather_patch_rows(
        volume.to(device), ids.to(device), (4, 4, 4), out_dtype=dtype, backend=backend
    )
    truth = gather_patch_rows(volume, ids, (4, 4, 4), backend="reference")
    relative = 2**-7 if backend == "triton" and device == "cpu" else 2**-8
    torch.testing.assert_close(rows.cpu().float(), truth, rtol=relative, atol=0)
    assert rows.dtype == dtype


@pytest.mark.parametrize("layout", ["channels_last", "permuted", "sliced", "expanded", "offset"])
def test_strides_do_not_matter(where, layout):
    backend, device = where
    dense = random_volume((2, 2, 8, 8, 8)).to(device)
    if layout == "expanded":
        dense = dense[:1].expand(2, 2, 8, 8, 8)
    strided = {
        "channels_last": lambda v: v.to(memory_format=torch.channels_last_3d),
        "permuted": lambda v: v.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0),
        "sliced": lambda v: torch.cat([v, v], 4)[..., 8:],
        "expanded": lambda v: v,
        "offset": lambda v: torch.cat([v.flatten()[:1], v.flatten()])[1:].view(v.shape),
    }[layout](dense)
    ids = random_ids(2, 8, 2).to(device)
    rows = gather_patch_rows(strided, ids, (4, 4, 4), out_dtype=torch.float32, backend=backend)
    truth = gather_patch_rows(
        dense.contiguous(), ids, (4, 4, 4), out_dtype=torch.float32, backend="reference"
    )
    assert torch.equal(rows, truth)


@pytest.mark.parametrize("channels", [1, 2])
def test_one_channel_stored_last_is_read_as_wide_as_one_stored_first(channels):
    """DALI's volumes are (b, z, y, x, c): with one channel only the strides look different."""
    last = torch.zeros(2, 32, 32, 32, channels, dtype=torch.int16).permute(0, 4, 1, 2, 3)
    assert layout_of(last, (16, 16, 16)).align == (16 if channels == 1 else 1)
    first = last.clone(memory_format=torch.contiguous_format)
    assert layout_of(first, (16, 16, 16)).align == 16
    assert layout_of(first[:1, :, :, :, :16], (16, 16, 16)).align == 16


@given(
    st.tuples(*[st.integers(1, 4)] * 3), st.tuples(*[st.integers(1, 3)] * 3), st.integers(1, 3),
    st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_reference_on_any_grid(patch, grid, channels, seed):
    crop = tuple(p * g for p, g in zip(patch, grid, strict=True))
    volume, n = random_volume((1, channels, *crop), seed=seed), grid[0] * grid[1] * grid[2]
    ids = random_ids(1, n, n, seed)
    none, no_flip = torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool)
    rows = gather_patch_rows(volume, ids, patch, out_dtype=torch.float64, backend="reference")
    wanted = voxel_by_voxel(volume, ids, patch, crop, none, no_flip, torch.ones(1), torch.zeros(1))
    assert torch.equal(rows[..., : wanted.shape[2]], wanted)


VOLUME, IDS = torch.zeros(2, 1, 8, 8, 8), torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"volume": VOLUME[0]}, r"volume has shape \(1, 8, 8, 8\)"),
        ({"volume": VOLUME.to(torch.int32)}, "volume has dtype torch.int32"),
        ({"volume": VOLUME.clone().requires_grad_()}, "requires a gradient"),
        ({"patch_ids": IDS[:1]}, r"patch_ids has shape \(1, 3\)"),
        ({"patch_ids": IDS.int()}, "patch_ids has dtype torch.int32"),
        ({"patch_size": (3, 4, 4)}, r"\(3, 4, 4\) does not divide crop_size \(8, 8, 8\)"),
        ({"patch_size": (4, 4)}, r"patch_size is \(4, 4\)"),
        ({"scale": torch.ones(3)}, r"scale has shape \(3,\)"),
        ({"flip": torch.zeros(2, 3)}, "flip has shape .* and dtype torch.float32"),
        ({"crop_size": (16, 8, 8)}, r"crop_size \(16, 8, 8\) is larger than the volume"),
        ({"out_dtype": torch.int16}, "out_dtype is torch.int16"),
        ({"patch_ids": IDS.to("meta")}, "patch_ids is on meta but what it goes with on cpu"),
        ({"flip": torch.zeros(2, 3, dtype=torch.bool, device="meta")}, "flip is on meta"),
        ({"patch_ids": IDS + 8}, r"patch_ids reach from 8 to 8; they must lie in \[0, 8\)"),
        ({"patch_ids": IDS - 1}, "patch_ids reach from -1 to -1"),
        ({"patch_size": 4}, "patch_size is 4; three sizes are needed"),
        ({"patch_size": (4.5, 4, 4)}, r"patch_size is \(4.5, 4, 4\)"),
        ({"shift": torch.ones(2, requires_grad=True)}, "shift requires a gradient"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"volume": VOLUME, "patch_ids": IDS, "patch_size": (4, 4, 4)} | change
    with pytest.raises(ValueError, match=message):
        gather_patch_rows(**arguments)


def test_float64_rows_are_never_made_silently_by_the_other_backend(where):
    _, device = where
    arguments, wide = (VOLUME.to(device), IDS.to(device), (4, 4, 4)), torch.float64
    assert gather_patch_rows(*arguments, out_dtype=wide).dtype == wide
    with pytest.raises(ValueError, match="backend='triton' cannot run"):
        gather_patch_rows(*arguments, out_dtype=wide, backend="triton")


def test_registration_is_sound(where):
    backend, device = where
    volume, ids = random_volume((2, 1, 4, 4, 4)).to(device), random_ids(2, 8, 2).to(device)
    optional = (torch.ones(2, device=device), None, None, None)
    arguments = (volume, ids, *optional, (2, 2, 2), (4, 4, 4), torch.float32, backend == "triton")
    torch.library.opcheck(torch.ops.mim3d.gather_patch_rows.default, arguments)


def test_compiles_as_one_graph(where):
    backend, device = where

    def rows(volume, ids):
        return gather_patch_rows(volume + 1, ids, (2, 2, 4), backend=backend) * 2

    volume = random_volume((2, 1, 4, 4, 8), torch.float32).to(device)
    ids = random_ids(2, 8, 2).to(device)
    compiled = torch.compile(rows, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(volume, ids), rows(volume, ids))
