"""Files written in blocks hold what was given, with direct I/O or without."""

import errno
import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mim3d.dataio.storage import block_file
from mim3d.dataio.storage.block_file import BLOCK_BYTES, DIRECT, set_direct, write_all, write_file


def written(folder: Path, parts) -> bytes:
    file = folder / "out"
    write_file(str(file), parts)
    return file.read_bytes()


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0, 5],
        [BLOCK_BYTES],
        [BLOCK_BYTES - 1, 2],
        [3 * BLOCK_BYTES + 7, 1, BLOCK_BYTES],
        [70_001] * 200,
    ],
)
def test_every_byte_arrives_in_order(tmp_path, sizes):
    parts = [os.urandom(size) for size in sizes]
    assert written(tmp_path, parts) == b"".join(parts)
    assert written(tmp_path, tuple(parts[:2])) == b"".join(parts[:2])  # shorter than what stood


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.integers(0, 40), max_size=20))
def test_any_parts_in_small_blocks(tmp_path, sizes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_file, "BLOCK_BYTES", 16)
        parts = [os.urandom(size) for size in sizes]
        assert written(tmp_path, parts) == b"".join(parts)


def test_parts_may_change_once_the_next_is_asked_for(tmp_path):
    one = bytearray(BLOCK_BYTES // 3)

    def parts():
        for number in range(10):
            one[:] = bytes([number]) * len(one)
            yield one

    wanted = b"".join(bytes([n]) * len(one) for n in range(10))
    assert written(tmp_path, parts()) == wanted


@pytest.mark.parametrize("where", [1, 2, 3])
def test_a_failed_write_is_raised_and_nothing_writes_afterwards(tmp_path, monkeypatch, where):
    count = [0]
    real = os.write

    def failing(descriptor, data):
        count[0] += 1
        if count[0] == where:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", failing)
    with pytest.raises(OSError, match="No space"):
        written(tmp_path, [bytes(BLOCK_BYTES)] * 2 + [b"rest"])
    assert count[0] <= where + 1


def test_the_error_of_what_makes_the_parts_is_raised(tmp_path):
    def parts():
        yield bytes(2 * BLOCK_BYTES)
        raise KeyError("broken voxels")

    with pytest.raises(KeyError, match="broken voxels"):
        written(tmp_path, parts())


def test_a_refused_or_partial_direct_write_goes_on_plainly(tmp_path, monkeypatch):
    data = memoryview(os.urandom(10_000))
    with (tmp_path / "a").open("wb", buffering=0) as out:
        set_direct(out.fileno(), True)
        write_all(out.fileno(), data[1:])  # no direct write takes this address and length
        assert not fcntl.fcntl(out.fileno(), fcntl.F_GETFL) & DIRECT
    assert (tmp_path / "a").read_bytes() == data[1:]
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, part: real(descriptor, part[:3001]))
    with (tmp_path / "b").open("wb", buffering=0) as out:
        write_all(out.fileno(), data)
    assert (tmp_path / "b").read_bytes() == data
