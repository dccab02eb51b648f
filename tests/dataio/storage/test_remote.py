"""Object stores: S3, GCS (both by moto's server) and a plain HTTP server on loopback."""

import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from gcs_server import gcs_environment, gcs_server
from loopback import folder_server, serving
from s3_server import make_bucket, s3_server, use_s3

from mim3d.dataio import waiting
from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.quarantine import parse_quarantine
from mim3d.dataio.errors import CorpusError, Mim3dError, SourceError, StoreError
from mim3d.dataio.reader.corpus import Corpus, opened_corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.phantom import make_cohort
from mim3d.dataio.storage import bucket as client
from mim3d.dataio.storage import lease, remote
from mim3d.dataio.storage.object_store import RemoteStore
from mim3d.dataio.storage.remote import read_remote_bytes
from mim3d.dataio.storage.store import LocalStore, Store
from mim3d.engine.commands.cli import main

pytest.importorskip("obstore")
pytest.importorskip("moto.server")


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch) -> None:
    """On a busy machine answers take seconds: locks are taken down all the same, rather than left
    to free themselves, and nobody is told of it on the standard error."""
    monkeypatch.setattr(lease, "GIVE_UP_S", 120.0)
    monkeypatch.setattr(waiting, "TELL_S", 600.0)


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    """moto's S3 server."""
    with s3_server() as address:
        yield address


@pytest.fixture
def s3(s3_address, monkeypatch, request) -> str:
    """Address of a fresh bucket."""
    use_s3(s3_address, monkeypatch)
    bucket = f"bucket-{abs(hash(request.node.nodeid)) % 10**9}"
    make_bucket(s3_address, bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="module")
def gcs_address() -> Iterator[str]:
    """A server that speaks Google Cloud Storage's XML interface."""
    with gcs_server() as (address, _):
        yield address


@pytest.fixture
def gs(gcs_address, monkeypatch, request) -> str:
    """Address of a fresh bucket there."""
    for name, value in gcs_environment(gcs_address).items():
        monkeypatch.setenv(name, value)
    bucket = f"google-{abs(hash(request.node.nodeid)) % 10**9}"
    make_bucket(gcs_address, bucket)
    return f"gs://{bucket}"


@pytest.fixture(params=["s3", "gs"])
def bucket(request) -> str:
    """Address of a fresh bucket of either kind."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def upload(s3):
    """Copy a local folder to the bucket and return its address."""

    def copy(folder, prefix: str = "raw") -> str:
        store = RemoteStore(f"{s3}/{prefix}")
        for file in folder.rglob("*"):
            if file.is_file():
                store.replace(file.relative_to(folder).as_posix(), [file.read_bytes()])
        return f"{s3}/{prefix}"

    return copy


@pytest.fixture
def http_root(tmp_path) -> Iterator[str]:
    """Address of a plain HTTP server that serves tmp_path/served."""
    (tmp_path / "served").mkdir()
    with serving(folder_server(tmp_path / "served")) as address:
        yield address


@pytest.fixture(params=["local", "s3", "gs"])
def store(request, tmp_path) -> Store:
    """All kinds of store: they must keep the same promises."""
    if request.param == "local":
        (tmp_path / "corpus").mkdir()
        return LocalStore(tmp_path / "corpus")
    return RemoteStore(request.getfixturevalue(request.param) + "/some/corpus")


def test_the_verbs_of_a_store(store):
    assert store.folders() == []
    store.replace("zarr.json", [b"{", b"}"])
    store.replace("v1/0/c.0.0.0", [b"0123456789"])
    store.replace("v10/0/c.0.0.0", [b""])
    assert store.get("zarr.json") == b"{}"
    assert store.tail("v1/0/c.0.0.0", 4) == b"6789"
    assert store.tail("v1/0/c.0.0.0", 99) == b"0123456789"
    assert store.tail("v10/0/c.0.0.0", 4) == b""
    assert store.exists("zarr.json")
    assert not store.exists("v1")
    assert sorted(store.walk("v1")) == ["v1/0/c.0.0.0"]
    assert sorted(store.walk()) == ["v1/0/c.0.0.0", "v10/0/c.0.0.0", "zarr.json"]
    assert store.folders() == ["v1", "v10"]
    store.delete("v1")
    assert store.folders() == ["v10"]
    store.delete("nothing")
    with pytest.raises(FileNotFoundError):
        store.get("v1/0/c.0.0.0")
    for bad in ("../x", "a//b", "/etc/passwd", ""):
        with pytest.raises(StoreError):
            store.replace(bad, [b""])


def test_a_folder_is_replaced_as_a_whole(store):
    store.put_folder("v1", {"zarr.json": [b"{}"], "0/c/0": [b"12", b"34"], "old": [b"x"]})
    assert store.get("v1/0/c/0") == b"1234"
    store.put_folder("v1", {"zarr.json": [b"[]"], "0/c/0": [b"5"]})
    assert sorted(store.walk()) == ["v1/0/c/0", "v1/zarr.json"]
    assert store.get("v1/zarr.json") == b"[]"


def test_appending_survives_and_a_put_replaces_it(store):
    for i in range(12):
        store.append("manifest.jsonl", b"%d\n" % i)
    assert store.exists("manifest.jsonl")
    assert store.get("manifest.jsonl") == b"".join(b"%d\n" % i for i in range(12))
    store.replace("manifest.jsonl", [b"sorted\n"])
    assert store.get("manifest.jsonl") == b"sorted\n"
    store.append("manifest.jsonl", b"more\n")
    assert store.get("manifest.jsonl") == b"sorted\nmore\n"
    assert "manifest.jsonl" not in store.folders()
    store.delete("manifest.jsonl")
    assert not store.exists("manifest.jsonl")
    store.append("manifest.jsonl", b"anew\n")
    store.delete("manifest.jsonl")
    assert not store.exists("manifest.jsonl")
    assert list(store.walk()) == []


def test_a_bucket_that_is_not_there_is_one_line(bucket, tmp_path, capsys):
    nowhere = f"{bucket}-else/corpus"
    with pytest.raises(StoreError, match="no such bucket"):
        RemoteStore(nowhere).replace("a", [b""])
    cohort = make_cohort(tmp_path / "cohort", 1)
    assert main(["convert", str(cohort), nowhere]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(f"mim3d convert: {nowhere}: there is no such bucket")
    assert "\n" not in printed


def test_two_writers_the_second_refuses(store):
    with store.lock(), pytest.raises(CorpusError, match="process"), store.lock():
        pass
    with store.lock():
        pass
    assert sorted(store.walk()) == []


def test_a_dead_writers_lock_is_taken_after_its_lease(bucket, monkeypatch):
    store = RemoteStore(f"{bucket}/corpus")
    store.replace(".lock", [b"process 1 on elsewhere, seen 0\n"])
    with pytest.raises(CorpusError, match="process 1 on elsewhere"), store.lock():
        pass

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(UTC) + timedelta(seconds=lease.LEASE_S + 1)

    monkeypatch.setattr(lease, "datetime", Later)
    with store.lock():
        assert b"elsewhere" not in store.get(".lock")
    assert not store.exists(".lock")


def test_a_held_lock_is_renewed_and_a_lost_one_left_alone(bucket, monkeypatch):
    monkeypatch.setattr(lease, "LEASE_S", 0.4)
    store = RemoteStore(f"{bucket}/corpus")
    with store.lock():
        first = store.get(".lock")
        deadline = time.monotonic() + 120
        while store.get(".lock") == first and time.monotonic() < deadline:
            time.sleep(0.05)
        assert store.get(".lock") != first
        store.replace(".lock", [b"process 2 on elsewhere, seen 0\n"])
    assert store.get(".lock").startswith(b"process 2")


def test_who_stood_still_and_lost_the_lock_writes_nothing_more(bucket):
    """Though the thread that renews has not looked yet."""
    store = RemoteStore(f"{bucket}/corpus")
    with store.lock():
        store.put("a", b"mine")
        assert store._held is not None
        store.put(".lock", b"process 2 on elsewhere, seen 0\n")
        store._held.seen -= lease.LEASE_S + 1
        for write in (
            lambda: store.put("a", b"mine too"),
            lambda: store.put_folder("b", {"c": [b"1"]}),
            lambda: store.delete("a"),
            lambda: store.append("a", b"2"),
        ):
            with pytest.raises(CorpusError, match=r"took it over.*run the same command again"):
                write()
    assert store.get("a") == b"mine"
    with pytest.raises(CorpusError, match="process 2"), store.lock():
        pass


@pytest.mark.parametrize("lost_answer", [True, False])
def test_a_lock_that_nobody_took_over_is_kept(bucket, lost_answer):
    """Of a write whose answer is lost the store has another version than its holder knows."""
    store = RemoteStore(f"{bucket}/corpus")
    held = lease.Lease(store.store, store.key(".lock"), store.url)
    ours = b"process 1, seen 0, " + held.token.encode()
    if lost_answer:
        store.put(".lock", ours)
    held.take()
    if lost_answer:
        store.put(".lock", ours)
    else:
        store.delete(".lock")  # by hand
    assert held.renewed()
    assert store.get(".lock").startswith(held.holder.encode())
    assert held.renewed()
    held.give_up()
    assert held.renewed()
    assert not store.exists(".lock")


def test_a_lock_that_another_may_have_held_is_not_made_anew(bucket):
    """Nor one that another holds."""
    store = RemoteStore(f"{bucket}/corpus")
    held = lease.Lease(store.store, store.key(".lock"), store.url)
    held.take()
    store.delete(".lock")
    with store.lock():
        assert not held.renewed()
    held.seen -= lease.LEASE_S
    assert not held.renewed()
    assert not store.exists(".lock")
    held.give_up()


def test_a_lock_whose_holder_forgot_it_is_not_renewed_for_ever(bucket, monkeypatch):
    monkeypatch.setattr(lease, "LEASE_S", 0.4)
    store = RemoteStore(f"{bucket}/corpus")
    others = set(threading.enumerate())

    def renewing() -> list[threading.Thread]:
        return [t for t in set(threading.enumerate()) - others if t.name == "mim3d-lease"]

    held = lease.Lease(store.store, store.key(".lock"), store.url)
    held.take()
    assert renewing()
    del held
    deadline = time.monotonic() + 120
    while renewing() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not renewing()
    store.delete(".lock")


def test_sources_by_address(s3, upload, tmp_path):
    root = upload(make_cohort(tmp_path / "cohort", 2))
    found = discover(root)
    assert (found.layout, len(found.sources), len(found.skipped)) == ("msd", 2, 0)
    image = found.sources[0].images[0]
    local = tmp_path / "cohort" / "imagesTr" / "phantom_000.nii.gz"
    assert image == f"{root}/imagesTr/phantom_000.nii.gz"
    assert read_remote_bytes(image, 1 << 20) == local.read_bytes()
    assert len(discover(f"{root}/imagesTr/*_001.nii.gz").sources) == 1
    assert discover(image).sources[0].images == (image,)


def test_what_is_wrong_with_an_address_is_told(s3, upload, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "files" / "big.nii.gz").write_bytes(b"x" * 1000)
    root = upload(tmp_path / "files")
    for name, code in {"empty": "empty", "big": "over-budget", "none": "missing"}.items():
        with pytest.raises(SourceError) as error:
            read_remote_bytes(f"{root}/{name}.nii.gz", 100)
        assert error.value.code == code
        assert "\n" not in str(error.value)
    with pytest.raises(SourceError, match="no NIfTI"):
        discover(f"{s3}/nothing/here")


def test_an_unreachable_server_is_one_line(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setattr(client, "MAX_RETRIES", 1)
    client.bucket.cache_clear()
    with pytest.raises(SourceError) as error:
        read_remote_bytes("s3://nowhere/x.nii", 100)
    assert error.value.code == "unreadable"
    assert "\n" not in str(error.value)
    with pytest.raises(StoreError, match="nowhere"):
        RemoteStore("s3://nowhere/c").replace("a", [b""])
    client.bucket.cache_clear()


def test_http_is_allowed_here_and_elsewhere_by_the_variable_that_is_named(
    s3, tmp_path, monkeypatch, capsys
):
    cohort = str(make_cohort(tmp_path / "cohort", 1))
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
    command = ["convert", cohort, f"{s3}/corpus"]
    assert main(command) == 2
    written = capsys.readouterr().err.strip()
    with pytest.raises(Mim3dError) as opened, opened_corpus(f"{s3}/corpus"):
        pass
    with pytest.raises(SourceError) as listed:
        discover(f"{s3}/raw")
    for told in (written, str(opened.value), str(listed.value)):
        assert "the endpoint is http: set AWS_ALLOW_HTTP=true" in told
        assert "\n" not in told
    found = re.search(r"set (\w+)=(true)", written)
    assert found is not None
    monkeypatch.setenv(found[1], found[2])
    assert main(command) == 0
    monkeypatch.delenv("AWS_ALLOW_HTTP")  # the server is on loopback
    with opened_corpus(f"{s3}/corpus") as (corpus, _):
        assert len(corpus.records) == 1


@pytest.mark.parametrize(
    ("endpoint", "allowed"),
    [
        ("http://127.0.0.1:9", True),
        ("http://localhost:9", True),
        ("http://[::1]:9", True),
        ("http://127.0.0.1.example.org", False),
        ("http://store.lan:9000", False),
        ("http://[broken", False),
        ("https://127.0.0.1", False),
        ("", False),
    ],
)
def test_only_loopback_needs_no_word(endpoint, allowed, monkeypatch):
    monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert client.plain_http("s3://lab") is allowed
    assert not client.plain_http("gs://lab")


def test_http_sources_by_list_but_not_by_listing(http_root, tmp_path):
    make_cohort(tmp_path / "served" / "cohort", 2)
    found = discover(f"{http_root}/cohort/dataset.json")
    assert (found.layout, len(found.sources)) == ("msd", 2)
    address = found.sources[1].labels["seg"]
    local = tmp_path / "served" / "cohort" / "labelsTr" / "phantom_001.nii.gz"
    assert read_remote_bytes(address, 1 << 20) == local.read_bytes()
    with pytest.raises(SourceError, match="cannot be listed over http"):
        discover(f"{http_root}/cohort")
    with pytest.raises(SourceError, match="no such object"):
        read_remote_bytes(f"{http_root}/cohort/none.nii", 100)
    with pytest.raises(StoreError, match="not written"):
        RemoteStore(http_root)


def download(address: str, folder: Path) -> Path:
    store = RemoteStore(address)
    for key in store.walk():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(store.get(key))
    return folder


def voxels_of(corpus: Corpus) -> dict[str, np.ndarray]:
    reader = ShardReader(corpus.table, corpus.root)
    table = corpus.table
    return {
        table.shard_path(row): reader.read_box(row, (0, 0, 0), reader.array(row).shape)
        for row in range(len(table.arrays))
    }


@pytest.mark.slow
def test_bucket_to_bucket_is_the_corpus_of_local_files(s3, upload, tmp_path):
    cohort = make_cohort(tmp_path / "cohort", 5)
    local = convert(discover(str(cohort)).sources, tmp_path / "local.zarr", workers=1)
    root = upload(cohort)
    corpora = f"{s3}/corpora/c.zarr"
    assert main(["convert", root, corpora, "--workers", "2"]) == 0
    again = convert(discover(root).sources, corpora, workers=1)
    assert (again.n_unchanged, again.n_converted) == (5, 0)
    fetched = Corpus.open(download(corpora, tmp_path / "fetched.zarr"))
    ours = voxels_of(Corpus.open(tmp_path / "local.zarr"))
    theirs = voxels_of(fetched)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert sum(r.shard_bytes for r in fetched.records) > 0
    assert local.n_volumes == len(fetched.records) == 5
    assert fetched.records[0].sources[0].startswith("s3://")


@pytest.mark.slow
def test_a_damaged_upload_is_quarantined_and_the_rest_arrives(s3, upload, tmp_path):
    cohort = make_cohort(tmp_path / "cohort", 3)
    whole = (cohort / "imagesTr" / "phantom_001.nii.gz").read_bytes()
    (cohort / "imagesTr" / "phantom_001.nii.gz").write_bytes(whole[: len(whole) // 2])
    report = convert(discover(upload(cohort)).sources, f"{s3}/c.zarr", workers=1)
    assert (report.n_volumes, report.n_quarantined) == (2, 1)
    assert report.rejections[0].path.endswith("phantom_001.nii.gz")
    assert len(parse_quarantine(RemoteStore(f"{s3}/c.zarr").get("mim3d/quarantine.jsonl"))) == 1


def test_a_bucket_folder_that_is_no_corpus_is_refused(s3, tmp_path):
    RemoteStore(f"{s3}/mine").replace("thesis.txt", [b"precious"])
    cohort = make_cohort(tmp_path / "cohort", 1)
    with pytest.raises(CorpusError, match=r"thesis\.txt"):
        convert(discover(str(cohort)).sources, f"{s3}/mine", workers=1)
    assert RemoteStore(f"{s3}/mine").get("thesis.txt") == b"precious"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("file:///data/corpus.zarr", "goes by its path: /data/corpus.zarr"),
        ("s3:/bucket/key", "is not SCHEME://BUCKET/KEY"),
    ],
)
def test_an_address_that_is_none_is_told(address, expected):
    with pytest.raises(SourceError, match=expected):
        remote.locate(address)
