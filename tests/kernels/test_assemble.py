"""Crops from chunks shuffled by bytes or bits, against slices of the volume they were cut from."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.kernels.assemble import assemble_crops, unshuffle

STORED = {
    "uint8": torch.uint8, "int8": torch.int8, "uint16": torch.uint16, "int16": torch.int16,
    "int32": torch.int32, "float16": torch.float16, "float32": torch.float32,
}  # fmt: skip


def shuffled(chunk: np.ndarray, block: int, bits: bool = False) -> np.ndarray:
    """Bytes of a chunk as blosc's shuffle leaves them, block by block."""
    raw = chunk.tobytes()
    blocks = (np.frombuffer(raw[i : i + block], np.uint8) for i in range(0, len(raw), block))
    voxels = (b.reshape(-1, chunk.itemsize) for b in blocks)
    return np.concatenate([(bit_planes(v) if bits else v.T).ravel() for v in voxels])


def bit_planes(voxels: np.ndarray) -> np.ndarray:
    """Row k holds bit k of every voxel (n, itemsize), eight to a byte, the first one lowest."""
    numbers = [int.from_bytes(voxel.tobytes(), "little") for voxel in voxels]
    rows = np.zeros((8 * voxels.shape[1], len(voxels) // 8), np.uint8)
    for place, number in enumerate(numbers):
        for k in range(len(rows)):
            rows[k, place // 8] |= (number >> k & 1) << place % 8
    return rows


def chunked(volumes: np.ndarray, chunk, block=None, bits=False):
    """(chunks, table) of volumes (b, c, z, y, x) whose sizes are multiples of the chunk."""
    b, c = volumes.shape[:2]
    counts = [s // k for s, k in zip(volumes.shape[2:], chunk, strict=True)]
    rows, table = [], np.zeros((b, c, *counts), np.int64)
    order = np.random.default_rng(1).permutation(table.size)
    for row, place in enumerate(order):
        index = np.unravel_index(place, table.shape)
        cut = tuple(slice(i * k, i * k + k) for i, k in zip(index[2:], chunk, strict=True))
        voxels = np.ascontiguousarray(volumes[index[0], index[1]][cut])
        rows.append(shuffled(voxels, block, bits) if block else np.frombuffer(voxels, np.uint8))
        table[index] = row
    return torch.from_numpy(np.stack(rows)), torch.from_numpy(table)


def random_voxels(shape, dtype="int16", seed=0):
    values = np.random.default_rng(seed).normal(size=shape) * 60
    return np.abs(values).astype(dtype) if dtype[0] == "u" else values.astype(dtype)


@pytest.mark.parametrize("shuffle", ["byte", "bit"])
@pytest.mark.parametrize("unit", [1, 16])
@pytest.mark.parametrize("dtype", STORED)
def test_crops_are_the_volumes_voxels(where, dtype, unit, shuffle):
    backend, device = where
    chunk, crop = (4, 8, 16), (6, 10, 32)
    volumes = random_voxels((2, 1, 12, 16, 64), dtype)
    chunks, table = chunked(volumes, chunk, 256, shuffle == "bit")
    start = torch.tensor([[5, 6, 9], [0, 2, 16]]) if unit == 1 else torch.tensor([[0, 0, 1]] * 2)
    crops = assemble_crops(
        chunks.to(device), table.to(device), start.to(device), crop_size=crop, chunk_size=chunk,
        dtype=STORED[dtype], shuffle=shuffle, block_bytes=256, start_unit=unit, backend=backend,
    )  # fmt: skip
    for i, row in enumerate((start * unit).tolist()):
        cut = tuple(slice(s, s + k) for s, k in zip(row, crop, strict=True))
        assert np.array_equal(crops[i].cpu().numpy(), volumes[i][(slice(None), *cut)].astype("f4"))


@pytest.mark.parametrize(("shuffle", "chunk"), [("byte", (5, 6, 7)), ("bit", (5, 8, 7))])
def test_every_option_at_once_gives_the_references_bits(where, shuffle, chunk):
    backend, device = where
    volumes = random_voxels((2, 2, 10, 2 * chunk[1], 21))
    chunks, table = chunked(volumes, chunk, 128, shuffle == "bit")
    table[0, 0, 1, 1, 1] = -1
    pitched = torch.zeros(len(chunks), chunks.shape[1] + 13, dtype=torch.uint8)
    pitched[:, : chunks.shape[1]] = chunks
    per_sample: dict[str, Any] = {
        "box": torch.tensor([[[0, 0, 3], [9, 12, 18]], [[1, 1, 1], [9, 9, 9]]]),
        "pad": torch.tensor([-3.5, 7.0]),
        "clip": torch.tensor([[-30.0, 40.0], [-10.0, 90.0]]),
        "scale": torch.tensor([0.37, 1.7]),
        "shift": torch.tensor([-0.1, 0.3]),
        "flip": torch.tensor([[True, False, True], [False, True, False]]),
    }
    start = torch.tensor([[-2, 1, 1], [3, 0, 15]])
    shape: dict[str, Any] = {
        "crop_size": (9, 10, 11),
        "chunk_size": chunk,
        "dtype": torch.int16,
        "shuffle": shuffle,
    }
    crops = assemble_crops(
        pitched.to(device)[:, : chunks.shape[1]], table.to(device), start.to(device), **shape,
        **{k: t.to(device) for k, t in per_sample.items()}, block_bytes=128, backend=backend,
    )  # fmt: skip
    truth = assemble_crops(
        chunks, table, start, **shape, **per_sample, block_bytes=128, backend="reference"
    )
    assert torch.equal(crops.cpu(), truth)
    assert truth.std() > 1


def test_intensity_is_clip_then_scale_then_shift_inside_the_box():
    volumes = random_voxels((1, 1, 4, 4, 4))
    chunks, table = chunked(volumes, (2, 2, 2), 16)
    crops = assemble_crops(
        chunks, table, torch.tensor([[1, 1, -1]]), crop_size=(2, 2, 4), chunk_size=(2, 2, 2),
        dtype=torch.int16, block_bytes=16, box=torch.tensor([[[0, 0, 0], [4, 4, 4]]]),
        pad=torch.tensor([100.0]), clip=torch.tensor([[-20.0, 50.0]]), scale=torch.tensor([0.5]),
        shift=torch.tensor([1.0]), flip=torch.tensor([[False, False, True]]), backend="reference",
    )  # fmt: skip
    wanted = np.full((2, 2, 4), 100.0)
    wanted[..., 1:] = volumes[0, 0, 1:3, 1:3, :3]
    wanted = wanted.clip(-20, 50)[..., ::-1] * 0.5 + 1
    assert np.allclose(crops[0, 0].numpy(), wanted)


@pytest.mark.parametrize("shuffle", ["none", "byte", "bit"])
def test_a_batch_of_which_nothing_was_stored_reads_as_zeros(where, shuffle):
    backend, device = where
    crops = assemble_crops(
        torch.zeros(0, 16, dtype=torch.uint8, device=device),
        torch.full((1, 1, 1, 1, 1), -1, device=device),
        torch.zeros(1, 3, dtype=torch.int64, device=device), crop_size=(2, 2, 2),
        chunk_size=(2, 2, 2), dtype=torch.int16, shuffle=shuffle, block_bytes=16,
        shift=torch.tensor([3.0], device=device), backend=backend,
    )  # fmt: skip
    assert torch.equal(crops.cpu(), torch.full((1, 1, 2, 2, 2), 3.0))


def test_a_box_may_be_open(where):
    """Bounds beyond 32 bits are bounds all the same."""
    backend, device = where
    volumes = random_voxels((1, 1, 4, 4, 4))
    chunks, table = chunked(volumes, (2, 2, 2), 16)
    end = torch.iinfo(torch.int64).max
    crops = assemble_crops(
        chunks.to(device), table.to(device), torch.zeros(1, 3, dtype=torch.int64, device=device),
        crop_size=(4, 4, 4), chunk_size=(2, 2, 2), dtype=torch.int16, block_bytes=16,
        box=torch.tensor([[[-(2**40), 0, 1], [end, 2**32, end]]], device=device),
        pad=torch.tensor([7.0], device=device), backend=backend,
    )  # fmt: skip
    wanted = volumes[0, 0].astype("f4")
    wanted[..., 0] = 7
    assert np.array_equal(crops[0, 0].cpu().numpy(), wanted)


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_labels_stay_integers(where, dtype):
    backend, device = where
    volumes = random_voxels((1, 1, 8, 8, 16), dtype)
    chunks, table = chunked(volumes, (4, 4, 8))
    labels = assemble_crops(
        chunks.to(device), table.to(device), torch.tensor([[1, 2, 3]], device=device),
        crop_size=(4, 4, 8), chunk_size=(4, 4, 8), dtype=STORED[dtype], shuffle="none",
        out_dtype=STORED[dtype], backend=backend,
    )  # fmt: skip
    assert np.array_equal(labels[0, 0].cpu().numpy(), volumes[0, 0, 1:5, 2:6, 3:11])


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 9), st.integers(1, 40), st.booleans())
@settings(max_examples=40, deadline=None)
def test_unshuffle_undoes_shuffle(itemsize, per_block, elements, bits):
    eight = 8 if bits else 1
    per_block, elements = per_block * eight, elements * eight
    raw = np.random.default_rng(0).integers(0, 256, elements * itemsize, dtype=np.uint8)
    planes = shuffled(raw.view(f"V{itemsize}"), per_block * itemsize, bits)
    back = unshuffle(torch.from_numpy(planes.copy())[None], itemsize, per_block * itemsize, bits)
    assert np.array_equal(back[0].numpy(), raw)


@pytest.mark.parametrize("bits", [False, True])
def test_blosc_itself_lays_planes_so(bits):
    """Noise is stored as it is, so the frame shows blosc's own order."""
    blosc = pytest.importorskip("numcodecs.blosc")
    # The high byte is constant, so the whole is compressed; the low one is not.
    voxels = np.random.default_rng(0).integers(0, 256, (16, 16, 16), dtype=np.int16)
    kind = blosc.BITSHUFFLE if bits else blosc.SHUFFLE
    frame = bytes(blosc.compress(voxels, b"lz4", 5, kind, 65536))
    ours = shuffled(voxels, 65536, bits)
    assert ours[:4096].tobytes() in frame
    back = unshuffle(torch.from_numpy(ours.copy())[None], 2, 65536, bits)
    assert back[0].numpy().tobytes() == voxels.tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunks": torch.zeros(1, 9, dtype=torch.uint8)}, r"chunks has shape \(1, 9\)"),
        ({"dtype": torch.float64}, "dtype is torch.float64"),
        ({"table": torch.zeros(1, 1, 1, dtype=torch.int64)}, r"table has shape \(1, 1, 1\)"),
        ({"start": torch.zeros(2, 3, dtype=torch.int64)}, r"start has shape \(2, 3\)"),
        ({"pad": torch.zeros(1)}, "box and pad belong together"),
        ({"out_dtype": torch.int16, "scale": torch.ones(1)}, "out_dtype torch.int16 is an integer"),
        ({"block_bytes": 3}, "block_bytes"),
        ({"table": torch.zeros(1, 1, 1, 1, 1, device="meta").long()}, "table is on meta"),
        ({"out_dtype": torch.complex64}, "out_dtype is torch.complex64"),
        ({"table": torch.ones(1, 1, 1, 1, 1).long()}, r"table's rows reach from 1 to 1; .*\[-1, 1"),
        ({"table": torch.full((1, 1, 1, 1, 1), -2)}, "table's rows reach from -2 to -2"),
        ({"table": torch.zeros(1, 1, 0, 1, 1).long()}, r"table has shape \(1, 1, 0, 1, 1\)"),
        ({"scale": torch.ones(1, requires_grad=True)}, "scale requires a gradient"),
        ({"shuffle": "bits"}, "shuffle is 'bits'"),
        ({"shuffle": "bit", "block_bytes": 8}, "chunks of 16 bytes in blocks of 8"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments: dict[str, Any] = {
        "chunks": torch.zeros(1, 16, dtype=torch.uint8),
        "table": torch.zeros(1, 1, 1, 1, 1, dtype=torch.int64),
        "start": torch.zeros(1, 3, dtype=torch.int64),
        "crop_size": (2, 2, 2), "chunk_size": (2, 2, 2), "dtype": torch.int16,
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        assemble_crops(**arguments)


def test_registration_is_sound(where):
    backend, device = where
    chunks, table = chunked(random_voxels((1, 1, 4, 4, 4)), (2, 2, 2), 16)
    optional = (None,) * 7
    geometry = (
        (2, 2, 2),
        (2, 2, 2),
        torch.int16,
        "byte",
        16,
        1,
        torch.float32,
        backend == "triton",
    )
    start = torch.ones(1, 3, dtype=torch.int64, device=device)
    torch.library.opcheck(
        torch.ops.mim3d.assemble_crops.default,
        (chunks.to(device), table.to(device), start, *optional[:6], *geometry),
    )
