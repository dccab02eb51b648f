"""Flipping any bit of a corpus: reading raises or the bit carries nothing; verify finds it."""

import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.bench.corpora import anatomy_like
from mim3d.dataio.chunks.codec import ChunkCodec
from mim3d.dataio.chunks.shard_writer import ShardStream
from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.names import MANIFEST, TABLE
from mim3d.dataio.corpus.quarantine import QUARANTINE
from mim3d.dataio.corpus.seen_files import SEEN
from mim3d.dataio.errors import ChunkError, CorpusError
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.source import Source
from mim3d.engine.commands.cli import main


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    rng = np.random.default_rng(0)
    made = []
    for i in range(2):
        voxels = rng.integers(0, 90, (40, 33, 20), np.int16)
        for name, content in (("i", voxels), ("l", (voxels > 50).astype(np.uint8))):
            nib.save(nib.Nifti1Image(content, np.eye(4)), folder / f"{name}{i}.nii.gz")
        label = {"seg": str(folder / f"l{i}.nii.gz")}
        made.append(Source(f"v{i}", (str(folder / f"i{i}.nii.gz"),), label))
    (folder / "bad.nii.gz").write_bytes(b"bad")
    made.append(Source("bad", (str(folder / "bad.nii.gz"),)))
    convert(made, folder / "c", Conversion(chunk=32), workers=1)
    return folder / "c"


def flipped(root: Path, file: Path, bit: int):
    content = file.read_bytes()
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    file.write_bytes(bytes(damaged))
    return content


def files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file() and p.name != SEEN)


def test_intact(root):
    found = verify(root, sources=True)
    assert (found.n_volumes, found.problems) == (2, ())
    assert found.n_chunks == 2 * 2 * (1 * 2 * 2)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_found(root, data):
    file = data.draw(st.sampled_from(files(root)))
    bit = data.draw(st.integers(0, 8 * file.stat().st_size - 1))
    content = flipped(root, file, bit)
    try:
        problems = verify(root).problems
        assert problems, f"bit {bit} of {file} changed and nothing was said"
        assert all(p.where and p.code and p.detail for p in problems)
    finally:
        file.write_bytes(content)


def test_a_damaged_chunk_is_named_with_its_volume(root):
    shard = root / "v1" / "0" / "c.0.0.0"
    content = flipped(root, shard, 8 * (shard.stat().st_size - 200))
    try:
        (problem,) = verify(root).problems
        assert (problem.where, problem.code) == ("v1/0/c.0.0.0", "bad-chunk")
        assert "chunk 3" in problem.detail
        with pytest.raises(Exception, match=r"checksum|crc32c|CRC"):
            _ = zarr.open_array(str(root / "v1" / "0"), mode="r")[...]
    finally:
        shard.write_bytes(content)


@pytest.mark.parametrize(
    "victim",
    [*(f"mim3d/{n}" for n in (MANIFEST, TABLE, QUARANTINE, "zarr.json")), "v0/0/zarr.json"],
)
def test_a_missing_file_is_found(root, victim, tmp_path):
    copy = tmp_path / "c"
    shutil.copytree(root, copy)
    (copy / victim).unlink()
    code = "bad-root" if victim == "mim3d/zarr.json" else "missing"
    assert any(p.code == code for p in verify(copy).problems)


def test_a_volume_without_a_line_and_a_line_without_a_volume(root, tmp_path):
    copy = tmp_path / "c"
    shutil.copytree(root, copy)
    shutil.copytree(copy / "v0", copy / "v9")
    shutil.rmtree(copy / "v1")
    codes = {(p.where.split("/")[0], p.code) for p in verify(copy).problems}
    assert {("v9", "orphan"), ("v1", "missing")} <= codes


def test_changed_sources_are_told_on_request(root, tmp_path):
    source = Path(Corpus.open(root).records[0].sources[0])
    content = source.read_bytes()
    try:
        source.write_bytes(content + bytes(8))
        assert [p.code for p in verify(root, sources=True).problems] == ["source-changed"]
        source.unlink()
        assert [p.code for p in verify(root, sources=True).problems] == ["source-gone"]
        assert not verify(root).problems
    finally:
        source.write_bytes(content)


def test_a_changed_source_that_cannot_be_converted_is_told_with_the_reason(tmp_path, capsys):
    """Else its remedy would be one that changes nothing, again and again."""
    image, corpus = tmp_path / "raw" / "p1.nii.gz", tmp_path / "c"
    image.parent.mkdir()
    nib.save(nib.Nifti1Image(anatomy_like((20, 18, 22), 1), np.eye(4)), image)
    assert main(["convert", str(image.parent), str(corpus)]) == 0
    image.write_bytes(image.read_bytes()[:5000])
    assert main(["verify", str(corpus), "--sources"]) == 3
    again = re.search(r"run the same `mim3d (convert)` again, which", capsys.readouterr().out)
    assert again
    assert main([again[1], str(image.parent), str(corpus)]) == 3
    capsys.readouterr()
    assert main(["verify", str(corpus), "--sources"]) == 3
    told = capsys.readouterr().out
    assert f"kept the volume as it is, for {image}: the gzip stream ends early" in told
    assert "convert` again" not in told


def test_no_corpus(tmp_path):
    with pytest.raises(CorpusError, match="not a corpus"):
        verify(tmp_path)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(["lz4", "zstd"]), st.sampled_from(["uint8", "int16", "float32"]))
def test_any_flipped_bit_of_a_chunk_is_refused(data, compressor, dtype):
    codec = ChunkCodec(compressor, dtype, (8, 8, 8))
    chunk = np.random.default_rng(0).integers(0, 50, (8, 8, 8)).astype(dtype)
    encoded = codec.encode(chunk)
    assert np.array_equal(codec.decode(encoded, "here"), chunk)
    damaged = bytearray(encoded)
    damaged[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ChunkError, match="here"):
        codec.decode(bytes(damaged), "here")


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 21)] * 3),
    channels=st.integers(1, 3),
    flips=st.tuples(*[st.booleans()] * 3),
    order=st.permutations(range(3)),
    dtype=st.sampled_from(["u1", "<i2", ">i2", ">f4", "<u4", "<f8", "i1", ">u8"]),
    side=st.integers(4, 9),
)
def test_any_view_is_stored_voxel_for_voxel(
    tmp_path_factory, shape, channels, flips, order, dtype, side
):
    import tensorstore

    from mim3d.dataio.chunks.codec import shard_metadata
    from mim3d.dataio.corpus.ome import json_bytes

    rng = np.random.default_rng(0)
    steps = tuple(slice(None, None, -1 if flip else None) for flip in flips)
    base = rng.integers(0, 100, (channels, *shape)).astype(dtype)
    view = np.stack(list(base)).transpose(0, *(axis + 1 for axis in order))[(slice(None), *steps)]
    voxels = view if channels > 1 else view[0]
    sides = (1,) * (voxels.ndim - 3) + (side,) * 3
    name = voxels.dtype.newbyteorder("=").name
    codec = ChunkCodec("lz4", name, sides)
    folder = tmp_path_factory.mktemp("view")
    names = ("c", "z", "y", "x")[4 - voxels.ndim :]
    (folder / "zarr.json").write_bytes(json_bytes(shard_metadata(voxels.shape, codec, names, {})))
    place = folder.joinpath("c", *"0" * voxels.ndim)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"".join(map(bytes, ShardStream(voxels, codec))))
    spec = {"driver": "zarr3", "kvstore": f"file://{folder}/"}
    got = tensorstore.open(spec).result().read().result()
    assert got.dtype.name == name and np.array_equal(got, voxels)
