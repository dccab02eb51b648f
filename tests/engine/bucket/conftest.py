"""A bucket on moto's S3 server that lives as long as a test, and a corpus to train on."""

import urllib.request

import pytest
from s3_server import s3_environment
from small_run import make_corpus

from mim3d.dataio.waiting import TIMEOUT


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def endpoint(monkeypatch, tmp_path):
    """Address of the server, which clients of this process find; its bucket is `runs`."""
    pytest.importorskip("obstore")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    server.start()
    host, port = server.get_host_and_port()
    for name, value in s3_environment(port, host).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(TIMEOUT, "3")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path, method in (
        ("moto-api/reset", "POST"),
        ("runs", "PUT"),
    ):  # all servers share one store
        asked = urllib.request.Request(f"http://{host}:{port}/{path}", method=method)
        urllib.request.urlopen(asked).close()
    yield f"http://{host}:{port}"
    server.stop()
