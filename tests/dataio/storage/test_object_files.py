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


@pytest.mark.parametrize(
    ("nbytes", "listed"),
    [(100, PART_BYTES + 1), (100, 101), (PART_BYTES + 1, PART_BYTES + 2), (101, 100)],
)
def test_an_object_that_is_not_as_it_was_listed(nbytes, listed, store, tmp_path):
    store.put("short", b"x" * nbytes)
    with pytest.raises(StoreError, match=r"short.* run the same command again"):
        store.fetch("short", tmp_path / "short", listed)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_a_part_of_what_it_is_given(store, tmp_path, monkeypatch):
    whole, plain = os.urandom(PART_BYTES + 7), os.pwrite
    store.put("object", whole)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: plain(fd, data[: 3 << 20], at))
    store.fetch("object", tmp_path / "back", len(whole))
    assert (tmp_path / "back").read_bytes() == whole


def test_folders_named_as_what_is_appended(address, monkeypatch):
    use_s3(address, monkeypatch)
    store = RemoteStore("s3://large/x.parts/corpus")
    store.replace("a", [b"12"])
    store.append("a", b"3")
    assert list(store.walk()) == ["a"]
    assert store.sizes() == {"a": 2}
