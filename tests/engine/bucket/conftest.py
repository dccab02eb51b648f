"""A bucket on moto's S3 server that each test finds empty, and a corpus to train on."""

import pytest
from s3_server import ask, make_bucket, s3_server, use_s3
from small_run import make_corpus

from mim3d.dataio.waiting import TIMEOUT


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def server():
    with s3_server() as address:
        yield address


@pytest.fixture
def endpoint(server, monkeypatch, tmp_path):
    """Address of the server, which clients of this process find; it has one bucket, `runs`."""
    use_s3(server, monkeypatch)
    monkeypatch.setenv(TIMEOUT, "60")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ask(f"{server}/moto-api/reset", "POST")
    make_bucket(server, "runs")
    return server
