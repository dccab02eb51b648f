"""A bucket as this package asks it: obstore's verbs, each of which says when it has to wait."""

import ipaddress
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

from typing_extensions import Buffer

from mim3d.dataio.errors import SourceError
from mim3d.dataio.waiting import answered, store_timeout_s

Found = TypeVar("Found")

CONNECT_S = 10.0
MAX_RETRIES = 6
REQUEST_S = 300.0
"""For a whole request: what trickles in, or is sent, may take so long."""
END = object()
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")


class Answer:
    """An object being read: `meta` at once, its bytes as they arrive."""

    def __init__(self, bucket: "Bucket", key: str, found: Any) -> None:
        self.meta = found.meta
        self._bucket, self._key, self._found = bucket, key, found

    def bytes(self) -> bytes:
        """All of it; what counts as silence begins anew with every part."""
        parts = self._bucket.each(self._key, self._found.stream())
        return b"".join(parts)


class Bucket:
    """`scheme://bucket`; keys are those inside it.

    Raises obstore's exceptions, FileNotFoundError, and StalledError where the store keeps silent.
    """

    def __init__(self, origin: str) -> None:
        self.origin = origin
        quiet_s = store_timeout_s()
        whole_s = max(REQUEST_S, quiet_s)
        # Asked again on a new connection while there is time for it.
        self.client = client(origin, {"read_timeout": 0.6 * quiet_s}, whole_s, 0.75 * quiet_s)
        self._limits = quiet_s, whole_s
        # Nothing is read while an object is sent, so that only the whole has a limit.
        self.sender = client(origin, {}, whole_s, 0.75 * quiet_s)

    def without_retries(self) -> Any:
        """A client for whoever asks again by himself, and counts it."""
        quiet_s, whole_s = self._limits
        return client(self.origin, {"read_timeout": 0.6 * quiet_s}, whole_s, 0.0)

    def get(self, key: str) -> Answer:
        """An object, of which only the head has arrived."""
        import obstore

        return Answer(self, key, self._ask(key, lambda: obstore.get(self.client, key)))

    def get_range(
        self, key: str, *, start: int, end: int | None = None, length: int | None = None
    ) -> Any:
        """Some bytes of an object, as a buffer."""
        import obstore

        span: Any = {"start": start, "end": end, "length": length}
        return self._ask(key, lambda: obstore.get_range(self.client, key, **span))

    def head(self, key: str) -> Any:
        """What is known of an object."""
        import obstore

        return self._ask(key, lambda: obstore.head(self.client, key))

    def list(self, prefix: str | None) -> Iterator[Any]:
        """Batches of what lies below a folder."""
        import obstore

        return self.each(prefix or "", obstore.list(self.client, prefix))

    def list_with_delimiter(self, prefix: str | None) -> Any:
        """Objects and folders directly in a folder."""
        import obstore

        return self._ask(prefix or "", lambda: obstore.list_with_delimiter(self.client, prefix))

    def put(self, key: str, data: Buffer, **how: Any) -> Any:
        """Write an object."""
        import obstore

        whole: Any = data
        return self._ask(key, lambda: obstore.put(self.sender, key, whole, **how), bounded=False)

    def writer(self, key: str, part_bytes: int, parts: int) -> Callable[[Buffer | None], None]:
        """A function that adds to a new object; called with None it ends it, which is then there.

        It goes in parts of `part_bytes`, of which `parts` are under way at once. An object that is
        not ended does not come to be.
        """
        import obstore

        limits: Any = {"buffer_size": part_bytes, "max_concurrency": parts}
        stream: Any = obstore.open_writer(self.sender, key, **limits)

        def add(data: Buffer | None) -> None:
            request = stream.close if data is None else lambda: stream.write(data)
            self._ask(key, request, bounded=False)

        return add

    def delete(self, keys: str | Sequence[str]) -> None:
        """Remove objects."""
        import obstore

        first = keys if isinstance(keys, str) else keys[0]
        self._ask(first, lambda: obstore.delete(self.client, keys), bounded=False)

    def each(self, key: str, stream: Any) -> Iterator[Any]:
        """What a stream of obstore's gives, waited for item by item."""
        parts = iter(stream)
        while (part := self._ask(key, lambda: next(parts, END))) is not END:
            yield part

    def _ask(self, key: str, request: Callable[[], Found], *, bounded: bool = True) -> Found:
        return answered(self.origin, key, request, bounded=bounded)


@lru_cache(maxsize=64)
def bucket(origin: str, environment: tuple[str, ...]) -> Bucket:
    """The bucket of `scheme://bucket`; one per environment, so tests may change it."""
    return Bucket(origin)


def client(origin: str, options: dict[str, float], whole_s: float, retry_s: float) -> Any:
    """obstore's client; `options` in seconds."""
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise SourceError(
            "no-obstore", origin, "needs obstore; install it with `pip install 'mim3d[remote]'`"
        ) from error
    limits = {**options, "connect_timeout": CONNECT_S, "timeout": whole_s}
    client_options: Any = {name: timedelta(seconds=value) for name, value in limits.items()}
    retries: Any = {"max_retries": MAX_RETRIES, "retry_timeout": timedelta(seconds=retry_s)}
    if plain_http(origin):
        client_options["allow_http"] = True
    return from_url(origin, client_options=client_options, retry_config=retries)


def plain_http(origin: str) -> bool:
    """Where the address itself, AWS_ or GOOGLE_ALLOW_HTTP says so; else where an endpoint of S3 was
    named as http on this machine, which nobody else can listen to."""
    named = "GOOGLE_ALLOW_HTTP" if origin.startswith("gs://") else "AWS_ALLOW_HTTP"
    if said := os.environ.get(named, ""):
        return said.lower() == "true" or origin.startswith("http://")
    return origin.startswith("http://") or (origin.startswith("s3://") and has_endpoint_here())


def has_endpoint_here() -> bool:
    """Whether the environment names an http endpoint on loopback."""
    named = [os.environ.get(name, "") for name in ENDPOINTS]
    return any(url.lower().startswith("http://") and is_loopback(url) for url in named)


def is_loopback(url: str) -> bool:
    """Whether an address is of this machine's own network alone."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
