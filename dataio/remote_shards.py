"""A corpus in an object store: its table is fetched once, its chunks by range requests."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mim3d.dataio.chunk_table import CHECKED, HEAD, OFFSETS, POINTS, SIZES
from mim3d.dataio.corpus import Corpus
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.manifest import MANIFEST
from mim3d.dataio.remote import first_line, locate
from mim3d.dataio.shard_files import coalesce

# A round trip costs more than so many bytes between two ranges.
GAP_BYTES = 1 << 20
# On top of the client's own retries, which do not cover an answer that breaks off.
ATTEMPTS, PAUSE_S = 4, 0.2
LOCAL_COPIES = ("zarr.json", MANIFEST, HEAD, *CHECKED, OFFSETS, SIZES, POINTS)


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
        key = f"{self._prefix}/{path}" if self._prefix else path
        views: list[np.ndarray] = [np.empty(0, np.uint8)] * len(offsets)
        for begin, length, members in coalesce(offsets, sizes, GAP_BYTES):
            data = self._range(path, key, begin, length)
            if len(data) != length:
                raise CorpusError(
                    f"{self.address}/{path}: has {len(data)} of {length} bytes at {begin}; the "
                    f"chunk table says the shard has {nbytes}: run `mim3d convert` again"
                )
            for i in members:
                at = offsets[i] - begin
                views[i] = data[at : at + sizes[i]]
        return views

    def close(self) -> None:
        """Nothing to close: the client is shared."""

    def _range(self, path: str, key: str, begin: int, length: int) -> np.ndarray:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._range_once(path, key, begin, length)
            except UnavailableError as error:
                if attempt == ATTEMPTS:
                    raise CorpusError(
                        f"{self.address}/{path}: {error} (after {attempt} attempts)"
                    ) from error
            time.sleep(PAUSE_S * 2**attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _range_once(self, path: str, key: str, begin: int, length: int) -> np.ndarray:
        # Not obstore.get_ranges: it panics (a BaseException) where an object is too short.
        import obstore

        lasting = (
            obstore.exceptions.PermissionDeniedError,
            obstore.exceptions.UnauthenticatedError,
        )
        try:
            data = obstore.get_range(self._store, key, start=begin, length=length)
        except FileNotFoundError:
            raise CorpusError(
                f"{self.address}/{path}: this shard is in the manifest but not in the store; "
                "restore it or run `mim3d convert` again"
            ) from None
        except lasting as error:
            raise CorpusError(f"{self.address}/{path}: {first_line(error)}") from error
        except (obstore.exceptions.BaseError, OSError) as error:
            raise UnavailableError(first_line(error)) from error
        return np.frombuffer(memoryview(data), np.uint8)


def open_remote(address: str) -> tuple[Corpus, RemoteShards, tempfile.TemporaryDirectory[str]]:
    """Open a corpus in an object store; its table lies in a folder that dies with the third."""
    shards = RemoteShards(address)
    folder = tempfile.TemporaryDirectory(prefix="mim3d-table-")
    for name in LOCAL_COPIES:
        data = _fetch(shards, name)
        if data is not None:
            (Path(folder.name) / name).write_bytes(data)
    if not (Path(folder.name) / "zarr.json").exists():
        raise CorpusError(f"{address}: no corpus here (it has no zarr.json)")
    return Corpus.open(folder.name), shards, folder


def _fetch(shards: RemoteShards, name: str) -> bytes | None:
    """All bytes of a file of the corpus, None where there is none."""
    import obstore

    store: Any = shards._store
    key = f"{shards._prefix}/{name}" if shards._prefix else name
    try:
        return bytes(obstore.get(store, key).bytes())
    except FileNotFoundError:
        return None
    except (obstore.exceptions.BaseError, OSError) as error:
        raise CorpusError(f"{shards.address}/{name}: {first_line(error)}") from error
