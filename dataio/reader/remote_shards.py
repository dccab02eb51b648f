"""A corpus in an object store: its table is fetched once, its chunks by range requests."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mim3d.dataio.errors import CorpusError
from mim3d.dataio.reader.local_shards import coalesce, mending
from mim3d.dataio.storage.remote import first_line, locate

# A round trip costs more than so many bytes between two ranges.
GAP_BYTES = 1 << 20
# On top of the client's own retries, which do not cover an answer that breaks off.
ATTEMPTS, PAUSE_S = 4, 0.2


class UnavailableError(Exception):
    """A request failed in a way that may pass."""


class RemoteShards:
    """Byte ranges of the shards under an address such as s3://bucket/corpus.zarr.

    The client retries requests that fail with growing pauses, and answers that break off are asked
    for again; what still fails is a CorpusError.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._store, self._prefix = locate(self.address)

    def open_file(self, path: str, nbytes: int) -> None:
        """None: nothing is on a local disk."""

    def read(
        self, path: str, nbytes: int, offsets: list[int], sizes: list[int]
    ) -> list[np.ndarray]:
        """Return the ranges of shard `path` as uint8 arrays, in order, neighbours in one go."""
        views: list[np.ndarray] = [np.empty(0, np.uint8)] * len(offsets)
        for begin, length, members in coalesce(offsets, sizes, GAP_BYTES):
            data = self._range(path, begin, length)
            if len(data) != length:
                raise CorpusError(
                    f"{self.address}/{path}: has {len(data)} of {length} bytes at {begin}; the "
                    f"chunk table says the shard has {nbytes}: {mending(self.address)}"
                )
            for i in members:
                at = offsets[i] - begin
                views[i] = data[at : at + sizes[i]]
        return views

    def close(self) -> None:
        """Nothing to close: the client is shared."""

    def forget(self, path: str, offsets: list[int]) -> None:
        """Nothing to forget: every read asks the store."""

    def whole(self, path: str) -> bytes | None:
        """All bytes of an object, None where there is none."""
        import obstore

        def request() -> bytes:
            try:
                answer = obstore.get(self._store, self._key(path))
            except FileNotFoundError:
                raise
            except (obstore.exceptions.BaseError, OSError) as error:  # the client did ask again
                raise CorpusError(f"{self.address}/{path}: {first_line(error)}") from error
            return bytes(answer.bytes())

        try:
            return self._insist(path, request)
        except FileNotFoundError:
            return None

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    def _range(self, path: str, begin: int, length: int) -> np.ndarray:
        # Not obstore.get_ranges: it panics (a BaseException) where an object is too short.
        import obstore

        key = self._key(path)
        try:
            data = self._insist(
                path, lambda: obstore.get_range(self._store, key, start=begin, length=length)
            )
        except FileNotFoundError:
            raise CorpusError(
                f"{self.address}/{path}: this shard is in the manifest but not in the store; "
                f"{mending(self.address)}"
            ) from None
        return np.frombuffer(memoryview(data), np.uint8)

    def _insist(self, path: str, request: Callable[[], Any]) -> Any:
        """The answer to a request, asked again where it fails in a way that may pass.

        FileNotFoundError goes through; all else that lasts is a CorpusError.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._once(path, request)
            except UnavailableError as error:
                if attempt == ATTEMPTS:
                    raise CorpusError(
                        f"{self.address}/{path}: {error} (after {attempt} attempts)"
                    ) from error
            time.sleep(PAUSE_S * 2**attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _once(self, path: str, request: Callable[[], Any]) -> Any:
        import obstore

        lasting = (
            obstore.exceptions.PermissionDeniedError,
            obstore.exceptions.UnauthenticatedError,
        )
        try:
            return request()
        except FileNotFoundError:
            raise
        except lasting as error:
            raise CorpusError(f"{self.address}/{path}: {first_line(error)}") from error
        except (obstore.exceptions.BaseError, OSError) as error:
            raise UnavailableError(first_line(error)) from error
