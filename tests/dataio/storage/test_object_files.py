"""Large objects: parts, what an S3 store says of them, and what comes back."""

import os
import urllib.request

import pytest
from s3_server import s3_environment

from mim3d.dataio.errors import StoreError, StoreRefusedError
from mim3d.dataio.storage.object_files import PART_BYTES, Listed, digest_file, part_bytes
from mim3d.dataio.storage.object_store import RemoteStore

pytest.importorskip("obstore")
moto_server = pytest.importorskip("moto.server")


@pytest.fixture
def store(monkeypatch):
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in s3_environment(port, host).items():
        monkeypatch.setenv(name, value)
    put = urllib.request.Request(f"http://{host}:{port}/large", method="PUT")
    urllib.request.urlopen(put).close()
    yield RemoteStore("s3://large/run")
    server.stop()


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
