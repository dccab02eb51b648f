"""Training from a bucket: against moto's S3 server on loopback."""

import time
from collections.abc import Callable
from dataclasses import replace

import obstore
import pytest
import torch
from s3_server import s3_server, use_s3

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.remote.link import Link

CONFIG = LoaderConfig(crop_size=(24, 24, 24), micro_batch=3, threads=2, augment="mim")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    root = tmp_path_factory.mktemp("remote") / "c.zarr"
    return corpus_of(root, [anatomy_like((40, 40, 40), i) for i in range(3)])


@pytest.fixture(scope="module")
def server():
    with s3_server("corpora") as address:
        yield address


@pytest.fixture
def bucket(server, local, monkeypatch):
    """Address of a corpus on an S3 server."""
    use_s3(server, monkeypatch)
    store = obstore.store.S3Store("corpora", endpoint=server, client_options={"allow_http": True})
    for file in local.rglob("*"):
        if file.is_file():
            obstore.put(store, f"mr/{file.relative_to(local)}", file.read_bytes())
    return "s3://corpora/mr", store


def test_crops_from_a_bucket_equal_those_from_disk(bucket, local):
    address, _ = bucket
    with Loader(local, CONFIG) as here, Loader(address, CONFIG) as there:
        for _ in range(4):
            assert torch.equal(next(here).image, next(there).image)
        assert there.metrics()["bytes_read"] > 0


def test_a_resident_remote_corpus_is_fetched_once(bucket):
    with Loader(bucket[0], replace(CONFIG, cache="host", snap=32)) as loader:
        for _ in range(20):
            next(loader)
        metrics = loader.metrics()
    assert metrics["cache_hits"] > metrics["cache_misses"]


def test_a_second_run_reads_from_the_disk(bucket, local, tmp_path):
    whole = replace(CONFIG, crop_size=(40, 40, 40))
    config = replace(whole, cache=f"disk:{tmp_path / 'kept'}")
    with Loader(bucket[0], config) as loader:
        for _ in range(2):
            next(loader)
    with Loader(bucket[0], config) as again, Loader(local, whole) as here:
        for _ in range(10):
            assert torch.equal(next(again).image, next(here).image)
        metrics = again.metrics()
    assert metrics["remote_requests"] == metrics["cache_misses"] == 0
    assert metrics["cache_hits"] > 0


def test_chunks_of_a_bucket_are_kept_unless_told_otherwise(bucket, monkeypatch):
    monkeypatch.setattr(Link, "latency_bytes", 1 << 16)  # a busy machine's would join far more
    with Loader(bucket[0], CONFIG) as loader:
        next(loader)
        assert loader.metrics()["cache_bytes"] > 0
    with Loader(bucket[0], replace(CONFIG, cache="none")) as loader:
        next(loader)
        # What is needed counts once a read has landed whole, and batches ahead are under way.
        assert until(lambda: over_read(loader) <= 1 << 16)
        assert "cache_bytes" not in loader.metrics()


def over_read(loader: Loader) -> float:
    """Bytes read beyond one and a half times what was needed."""
    metrics = loader.metrics()
    return metrics["remote_bytes_read"] - 1.5 * metrics["remote_bytes_needed"]


def until(happened: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Whether it happened; a moment later it may be otherwise again."""
    deadline = time.monotonic() + seconds
    while not (found := happened()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def test_what_is_missing_is_named(bucket):
    address, store = bucket
    with pytest.raises(CorpusError, match="nothing: no corpus here"):
        Loader("s3://corpora/nothing", CONFIG)
    obstore.delete(store, "mr/v0001/0/c.0.0.0")
    with Loader(address, CONFIG) as loader, pytest.raises(CorpusError, match="not in the store"):
        for _ in range(3):
            next(loader)


def test_what_is_wrong_is_told_of_the_address_not_of_a_folder_that_is_gone(bucket):
    address, _ = bucket
    with pytest.raises(CorpusError, match=r"^s3://corpora/mr: has no label 'seg'"):
        Loader(address, replace(CONFIG, label="seg"))
    with pytest.raises(CorpusError, match=r"^s3://corpora/mr: has no subject nobody"):
        Loader(address, CONFIG, subjects=["nobody"])


def test_a_shortened_object_is_noticed(bucket, local):
    address, store = bucket
    for name in ("v0000", "v0001", "v0002"):
        whole = (local / name / "0/c.0.0.0").read_bytes()
        obstore.put(store, f"mr/{name}/0/c.0.0.0", whole[:100])
    short = r"has \d+ of \d+ bytes at .+ --mend`"
    with Loader(address, CONFIG) as loader, pytest.raises(CorpusError, match=short):
        next(loader)
