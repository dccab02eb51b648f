import gzip
import random
import struct
import subprocess
import sys
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.dataio.errors import SourceError
from mim3d.dataio.nifti import libdeflate
from mim3d.dataio.nifti.gzip_stream import SLACK, inflate, inflate_members, peek

NOISE = random.Random(0).randbytes(10_000)
PAYLOAD = NOISE[:3000] + bytes(5000) + NOISE[3000:3100]
ZIPPED = gzip.compress(PAYLOAD, 6, mtime=0)


def code_of(data: bytes, expected: int = len(PAYLOAD)) -> str:
    with pytest.raises(SourceError) as caught:
        inflate(data, expected, "x.nii.gz")
    return caught.value.code


@pytest.fixture(params=["libdeflate", "isal"])
def way(request, monkeypatch) -> str:
    """With libdeflate, and where it cannot be had."""
    if request.param == "isal":
        monkeypatch.setattr(libdeflate, "library", lambda: None)
    elif libdeflate.library() is None:
        pytest.skip("the deflate package shows no symbols of libdeflate here")
    return request.param


def test_one_member():
    assert bytes(inflate(ZIPPED, len(PAYLOAD), "x")) == PAYLOAD


def test_exactly_one_intact_member():
    def whole(data: bytes, limit: int) -> bytes | None:
        found = libdeflate.inflate_whole(memoryview(data), limit)
        return None if found is None else bytes(found)

    if libdeflate.library() is None:
        pytest.skip("the deflate package shows no symbols of libdeflate here")
    assert whole(ZIPPED, len(PAYLOAD)) == whole(ZIPPED, 3 << 20) == PAYLOAD
    assert whole(ZIPPED, len(PAYLOAD) - 1) is None
    assert whole(ZIPPED + b"\0", 3 << 20) is None
    assert whole(ZIPPED + ZIPPED, 3 << 20) is None
    assert whole(ZIPPED[:-1], 3 << 20) is None
    for position in range(12, len(ZIPPED)):
        damaged = bytearray(ZIPPED)
        damaged[position] ^= 4
        # A bit of a code that no symbol uses may change nothing; one of the CRC or of the length,
        # the last 8 bytes, may not.
        found = whole(bytes(damaged), 3 << 20)
        assert found is None or (found == PAYLOAD and position < len(ZIPPED) - 8), position


def test_both_ways_give_the_same_and_may_be_written(way):
    for data in (ZIPPED, gzip.compress(PAYLOAD[:9]) + gzip.compress(PAYLOAD[9:])):
        found = inflate(data, len(PAYLOAD), "x")
        assert bytes(found) == PAYLOAD
        assert not found.readonly
    half = gzip.compress(PAYLOAD[:50], mtime=0)
    assert bytes(inflate(half + half, 100, "x")) == PAYLOAD[:50] * 2
    assert code_of(ZIPPED + b"left over") == "trailing-garbage"
    assert code_of(ZIPPED[:2000]) in {"truncated", "corrupt-gzip"}


@pytest.mark.parametrize("cut", [1, 1000, 4000, 8000])
def test_members_as_bgzip_writes_them(cut):
    data = gzip.compress(PAYLOAD[:cut]) + gzip.compress(PAYLOAD[cut:]) + gzip.compress(b"")
    assert bytes(inflate(data, len(PAYLOAD), "x")) == PAYLOAD
    assert bytes(inflate(data + bytes(512), len(PAYLOAD), "x")) == PAYLOAD


def test_equal_members_are_not_mistaken_for_one():
    half = gzip.compress(PAYLOAD, mtime=0)
    assert bytes(inflate_members(half + half, 3 * len(PAYLOAD), "x")) == PAYLOAD * 2


def test_every_cut_is_told():
    for length in [*range(200, len(ZIPPED), 97), len(ZIPPED) - 1]:
        assert code_of(ZIPPED[:length]) in {"truncated", "corrupt-gzip"}


def test_garbage_after_the_end():
    assert code_of(ZIPPED + b"left over") == "trailing-garbage"


def test_longer_than_declared():
    data = gzip.compress(bytes(4 * SLACK) + NOISE)
    assert code_of(data, 5000) == "too-long"


def test_wrong_length_field():
    data = ZIPPED[:-4] + struct.pack("<I", 7)
    assert code_of(data) == "corrupt-gzip"


def test_implausible_ratio_needs_no_memory():
    assert code_of(ZIPPED, len(ZIPPED) * 2000) == "implausible-ratio"


def test_peek_reads_the_front_of_a_damaged_file():
    assert peek(ZIPPED[:2000], 100, "x") == PAYLOAD[:100]
    with pytest.raises(SourceError):
        peek(b"\x1f\x8b" + bytes(50), 100, "x")


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 8 * len(ZIPPED) - 1))
def test_a_flipped_bit_is_found_or_changes_nothing(bit):
    damaged = bytearray(ZIPPED)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        assert bytes(inflate(bytes(damaged), len(PAYLOAD), "x")) == PAYLOAD
    except SourceError as error:
        assert "x" in str(error)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=5000), st.integers(0, 9))
def test_any_content(content, level):
    assert bytes(inflate(gzip.compress(content, level), len(content), "x")) == content


BOMB = """
import resource, sys
from mim3d.dataio.nifti.file import read_nifti
from mim3d.dataio.errors import SourceError
import isal, deflate, nibabel
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
try:
    read_nifti(sys.argv[1], 8 << 30)
except SourceError as error:
    print(error.code)
"""


def bomb(header_voxels: tuple[int, int, int], zeros: int) -> bytes:
    import nibabel as nib
    import numpy as np

    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header["dim"][:4] = [3, *header_voxels]
    header["vox_offset"] = 352
    header.set_sform(np.eye(4), 1)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    data = squeeze.compress(header.binaryblock + bytes(4))
    for _ in range(zeros >> 20):
        data += squeeze.compress(bytes(1 << 20))
    return data + squeeze.flush()


@pytest.mark.parametrize(
    ("dims", "zeros", "code"),
    [
        ((10, 10, 10), 1 << 30, "too-long"),
        ((1200, 1200, 1250), 1 << 20, "implausible-ratio"),
        ((20000, 20000, 20000), 1 << 20, "over-budget"),
    ],
)
def test_bombs_are_refused_before_memory_is_taken(tmp_path, dims, zeros, code):
    file = tmp_path / "bomb.nii.gz"
    file.write_bytes(bomb(dims, zeros))
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(file)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == code, done.stderr
