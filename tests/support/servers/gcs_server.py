"""Google Cloud Storage's XML interface on loopback: moto's S3 server behind a thin translation.

The two speak the same verbs, listings and multipart uploads. What differs, and obstore's client for
gs:// relies on, is done by `GcsDialect`, after https://cloud.google.com/storage/docs/xml-api: every
object has a generation, writes may depend on it, and deleting what is not there is an error. What
Google checks beyond that (OAuth above all, which the client is told to leave out) is not tested.
"""

import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, quote

from loopback import wsgi_server

ABSENT = 0  # the generation of an object that is not there
# Whom moto takes requests to come from, in place of "Bearer " and no token. It checks no signature.
SIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"
Respond = Callable[..., Any]


class GcsDialect:
    """A WSGI application of S3 as one of GCS; refuses to write once `writes_left` are done."""

    def __init__(self, s3: Callable[..., Iterable[bytes]]) -> None:
        self._s3 = s3
        self._numbers = itertools.count(1_700_000_000_000_001)
        self._generations: dict[str, int] = {}
        self._writing = threading.RLock()
        self.seen: list[str] = []
        self.writes_left: int | None = None

    def __call__(self, environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        environ["HTTP_AUTHORIZATION"] = SIGNED
        # The client writes bucket-1 as bucket%2D1, which is the same, but not to moto.
        same = f"{quote(environ['PATH_INFO'])}?{environ['QUERY_STRING']}".rstrip("?")
        environ["RAW_URI"] = environ["REQUEST_URI"] = same
        self.seen.append(f"{environ['REQUEST_METHOD']} {environ['QUERY_STRING']}")
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._s3(environ, self._marked(environ["PATH_INFO"], respond))
        with self._writing:  # a condition and the write it guards are one
            return self._write(environ, respond)

    def _write(self, environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left < 0:
                return refused(respond, "403 Forbidden", "AccessDenied")
        generation = self._generations.get(path, ABSENT)
        wanted = environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", str(generation))
        if wanted != str(generation):
            return refused(respond, "412 Precondition Failed", "PreconditionFailed")
        if method == "DELETE":
            if self._generations.pop(path, ABSENT) == ABSENT:
                return refused(respond, "404 Not Found", "NoSuchKey")
        elif makes_object(method, environ["QUERY_STRING"]):
            self._generations[path] = next(self._numbers)
        return list(self._s3(environ, self._marked(path, respond)))

    def _marked(self, path: str, respond: Respond) -> Respond:
        """Answers about an object say its generation."""

        def marked(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            generation = self._generations.get(path, ABSENT)
            marks = [("x-goog-generation", str(generation))] if generation != ABSENT else []
            return respond(status, [*headers, *marks], *more)

        return marked


def makes_object(method: str, query: str) -> bool:
    """Whether a request leaves a new object: a whole put or the end of a multipart upload."""
    words = parse_qs(query, keep_blank_values=True)
    return (method == "PUT" and not words) or (method == "POST" and "uploadId" in words)


def refused(respond: Respond, status: str, code: str) -> Iterable[bytes]:
    """An error as the XML interface words it."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
    respond(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


@contextmanager
def gcs_server() -> Iterator[tuple[str, GcsDialect]]:
    """Address and dialect of a server that lives as long as the context."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler

    dialect = GcsDialect(DomainDispatcherApplication(create_backend_app))
    with wsgi_server(dialect, WSGIRequestHandler) as address:
        yield address, dialect


def gcs_environment(address: str) -> dict[str, str]:
    """What a user sets so that gs:// goes to another server, without OAuth."""
    key = {
        "gcs_base_url": address,
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    return {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(key), "GOOGLE_ALLOW_HTTP": "true"}
