"""moto's S3 server on loopback, and the environment in which clients find it."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def s3_server(*buckets: str) -> Iterator[str]:
    """Address of a server with these buckets; all servers of a process share one store."""
    pytest.importorskip("obstore")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    try:
        for bucket in buckets:
            make_bucket(address, bucket)
        yield address
    finally:
        server.stop()


def use_s3(address: str, patch: pytest.MonkeyPatch) -> None:
    """Have clients of this process, and of those that it starts, find the server."""
    for name, value in s3_environment(address).items():
        patch.setenv(name, value)


def s3_environment(address: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
    }


def make_bucket(address: str, bucket: str) -> None:
    """Of the server at an address, also of one that speaks Google's dialect."""
    ask(f"{address}/{bucket}", "PUT")


def ask(address: str, method: str, data: bytes | None = None) -> None:
    """A request whose answer says nothing."""
    headers = {"Content-Type": "text/plain"}
    asked = urllib.request.Request(address, data, headers, method=method)
    urllib.request.urlopen(asked).close()
