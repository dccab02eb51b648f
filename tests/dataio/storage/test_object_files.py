"""Large objects: parts, what an S3 store says of them, and what comes back."""

import os

import pytest
from s3_server import s3_server, use_s3

from mim3d.dataio.errors import StoreError, StoreRefusedError
from mim3d.dataio.storage.object_files import PART_BYTES, Listed, digest_file, part_bytes
from mim3d.dataio.storage.object_store import RemoteStore


@pytest.fixture(scope="module")
def address():
    with s3_server("large") as found:
        yield found


@pytest.fixture
def store(address, monkeypatch):
    use_s3(address, monkeypatch)
    return RemoteStore("s3://large/run")


@pytest.mark.parametrize(
    "nbytes", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, 2 * PART_BYTES + 7]
)
def test_a_file_goes_and_comes_back_and_its_e_tag_is_foretold(nbytes, store, tmp_path):
    file, back = tmp_path / "file", tmp_path / "new" / "back"
    file.write_bytes(os.urandom(nbytes))
    store.send("a/object", file)
    digest = digest_file(file)
    assert store.about("a/object") == store.listed("a")["a/object"]
    assert store.about("a/object") == Listed(nbytes, digest.e_tag)
    store.fetch("a/object", back, nbytes)
    assert back.read_bytes() == file.read_bytes()
    assert digest_file(back) == digest
    assert [path.name for path in back.parent.iterdir()] == ["back"]


def test_parts_are_never_too_many():
    for nbytes in (PART_BYTES, 9_000 * PART_BYTES + 1, 5 << 40):
        assert -(-nbytes // part_bytes(nbytes)) <= 9_000


def test_what_is_not_there(store, tmp_path):
    assert store.about("none") is None
    for nbytes in (3, 2 * PART_BYTES):
        with pytest.raises(FileNotFoundError):
            store.fetch("none", tmp_path / "none", nbytes)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_bytes(b"x")
    other = RemoteStore("s3://no-such-bucket/run")
    for act in (lambda: other.send("k", tmp_path / "file"), other.listed, lambda: other.get("k")):
        with pytest.raises(StoreRefusedError, match="there is no such bucket; create it"):
            act()


def test_an_object_shorter_than_it_was_listed(store, tmp_path):
    store.put("short", b"x" * 100)
    with pytest.raises(StoreError, match="short"):
        store.fetch("short", tmp_path / "short", PART_BYTES + 1)
    assert not list(tmp_path.iterdir())
