"""moto's S3 server on loopback, and the environment in which clients find it."""

import io
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from loopback import wsgi_server


class OneByOne:
    """A WSGI application whose writes are made one after the other.

    moto looks whether a condition holds and then writes, as two steps: of two writers at once both
    might find it so, where a store lets one of them through.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self._writing = threading.Lock()

    def __call__(self, environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._application(environ, respond)
        if length := environ.get("CONTENT_LENGTH"):  # a slow client keeps nobody waiting
            environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(length)))
        with self._writing:
            return list(self._application(environ, respond))


@contextmanager
def s3_server(*buckets: str) -> Iterator[str]:
    """Address of a server with these buckets; all servers of a process share one store."""
    pytest.importorskip("obstore")
    pytest.importorskip("moto.server")
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )

    application = OneByOne(DomainDispatcherApplication(create_backend_app))
    with wsgi_server(application, MotoRequestHandler) as address:
        for bucket in buckets:
            make_bucket(address, bucket)
        yield address


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
