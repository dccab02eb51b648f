"""Corpora on gs://, against a server that speaks Google's XML interface (see `gcs_server`).

That server is moto's S3 behind a translation of what differs. Google itself, its OAuth and its
https were not there: the client is told to leave OAuth out, by the variables a user would set.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from gcs_server import GcsDialect, gcs_environment, gcs_server
from s3_server import make_bucket

from mim3d.dataio.convert.run import convert
from mim3d.dataio.errors import CorpusError, SourceError, StoreError
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.phantom import make_cohort
from mim3d.dataio.storage import bucket as client
from mim3d.dataio.storage import lease
from mim3d.dataio.storage.object_store import RemoteStore
from mim3d.dataio.storage.remote import read_remote_bytes
from mim3d.engine.commands.cli import main

obstore = pytest.importorskip("obstore")
pytest.importorskip("moto.server")

CONFIG = LoaderConfig(crop_size=(24, 24, 24), micro_batch=3, threads=2, augment="mim")
VOLUMES = 4


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, GcsDialect]]:
    with gcs_server() as (address, dialect):
        make_bucket(address, "bucket")
        yield address, dialect


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("gcs") / "cohort", VOLUMES)


@pytest.fixture
def dialect(server, monkeypatch) -> GcsDialect:
    """The server, with this process and its children sent there for gs://."""
    address, dialect = server
    for name, value in gcs_environment(address).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dialect, "writes_left", None)
    monkeypatch.setattr(lease, "GIVE_UP_S", 120.0)  # of a busy machine's server
    return dialect


@pytest.fixture
def root(dialect, cohort, request) -> str:
    """Address of a folder with the cohort under raw/."""
    root = f"gs://bucket/{request.node.name.replace('[', '-').rstrip(']')}"
    store = RemoteStore(f"{root}/raw")
    for file in cohort.rglob("*"):
        if file.is_file():
            store.replace(file.relative_to(cohort).as_posix(), [file.read_bytes()])
    return root


def objects(address: str) -> dict[str, bytes]:
    store = RemoteStore(address)
    return {key: store.get(key) for key in store.walk()}


@pytest.mark.slow
def test_from_bucket_to_bucket_verified_and_unchanged_when_run_again(root):
    corpus = f"{root}/corpus.zarr"
    assert main(["convert", f"{root}/raw", corpus, "--workers", "2"]) == 0
    checked = verify(corpus, sources=True)
    assert checked.problems == ()
    assert checked.n_volumes == VOLUMES
    assert checked.n_chunks > 0
    before = objects(corpus)
    again = convert(discover(f"{root}/raw").sources, corpus, workers=1)
    assert (again.n_unchanged, again.n_converted) == (VOLUMES, 0)
    assert objects(corpus) == before
    shard = next(key for key in before if "/0/c" in key)
    damaged = bytearray(before[shard])
    damaged[len(damaged) // 3] ^= 1
    RemoteStore(corpus).replace(shard, [bytes(damaged)])
    assert [problem.where.endswith(shard) for problem in verify(corpus).problems] == [True]


@pytest.mark.slow
@pytest.mark.parametrize(("writes", "fewest", "most"), [(8, 0, 0), (20, 1, 3), (33, 4, 4)])
def test_a_run_that_lost_its_bucket_is_completed_as_if_it_had_not(
    root, dialect, monkeypatch, writes, fewest, most
):
    monkeypatch.setattr("mim3d.dataio.corpus.writer.COMMIT_INTERVAL_S", 0.0)
    sources = discover(f"{root}/raw").sources
    convert(sources, f"{root}/whole.zarr", workers=1)
    corpus = f"{root}/corpus.zarr"
    dialect.writes_left = writes
    with pytest.raises(StoreError, match="run the same command again"):
        convert(sources, corpus, workers=1)
    dialect.writes_left = None
    assert RemoteStore(corpus).exists(".lock")  # it could not even be taken down
    with pytest.raises(CorpusError, match="is writing to it"):
        convert(sources, corpus, workers=1)

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(UTC) + timedelta(seconds=lease.LEASE_S + 1)

    monkeypatch.setattr(lease, "datetime", Later)
    report = convert(sources, corpus, workers=1)
    assert report.n_volumes == VOLUMES
    assert fewest <= report.n_unchanged <= most
    assert objects(corpus) == objects(f"{root}/whole.zarr")


@pytest.mark.slow
def test_crops_from_gs_equal_those_from_disk(root, cohort, tmp_path):
    convert(discover(str(cohort)).sources, tmp_path / "here.zarr", workers=1)
    convert(discover(f"{root}/raw").sources, f"{root}/there.zarr", workers=1)
    with (
        Loader(tmp_path / "here.zarr", CONFIG) as here,
        Loader(f"{root}/there.zarr", CONFIG) as there,
    ):
        for _ in range(3):
            assert torch.equal(next(here).image, next(there).image)
        assert there.metrics()["bytes_read"] > 0


def test_sources_on_gs_and_what_is_wrong_with_them(root, cohort):
    found = discover(f"{root}/raw")
    assert (found.layout, len(found.sources)) == ("msd", VOLUMES)
    image = found.sources[0].images[0]
    assert image.startswith("gs://bucket/")
    here = cohort / "imagesTr" / image.rsplit("/", 1)[1]
    assert read_remote_bytes(image, 1 << 24) == here.read_bytes()
    for path, budget, code in ((image, 100, "over-budget"), (f"{root}/raw/no.nii", 100, "missing")):
        with pytest.raises(SourceError) as error:
            read_remote_bytes(path, budget)
        assert error.value.code == code


def test_what_is_large_is_uploaded_in_parts_and_listed_in_pages(root, dialect):
    store = RemoteStore(f"{root}/store")
    large = np.random.default_rng(0).integers(0, 256, 12_000_000, np.uint8).tobytes()
    dialect.seen.clear()
    store.replace("large", [large])
    assert any("uploadId" in request for request in dialect.seen)
    assert store.get("large") == large
    assert store.tail("large", 7) == large[-7:]
    names = {f"many/{i:04d}": [b"x"] for i in range(1005)}
    store.put_folder("v1", names)
    assert sorted(store.walk("v1")) == sorted(f"v1/{name}" for name in names)
    assert any("continuation-token" in request for request in dialect.seen)


def test_plain_http_is_only_by_word(root, monkeypatch):
    monkeypatch.setattr(client, "MAX_RETRIES", 0)
    monkeypatch.delenv("GOOGLE_ALLOW_HTTP")
    with pytest.raises(StoreError, match="http: set GOOGLE_ALLOW_HTTP=true"):
        RemoteStore(f"{root}/raw").replace("a", [b""])
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    with pytest.raises(StoreError):
        RemoteStore(f"{root}/raw").replace("b", [b""])
