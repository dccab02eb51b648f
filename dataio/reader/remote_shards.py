"""A corpus in an object store: its table is fetched once, its chunks by range requests."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.corpus.names import OWN, TABLE, own_key
from mim3d.dataio.corpus.replacing import REPLACING
from mim3d.dataio.errors import CorpusError, StoreError
from mim3d.dataio.reader.local_shards import mending
from mim3d.dataio.reader.shards import Numbers, Run
from mim3d.dataio.reader.table_watch import TableWatch, table_in
from mim3d.dataio.remote.fetcher import Fetcher, RefusedError, UnavailableError
from mim3d.dataio.remote.limits import RemoteLimits
from mim3d.dataio.remote.ticket import Ticket
from mim3d.dataio.storage.remote import is_plain_http, locate, store_reason
from mim3d.dataio.storage.store import open_store
from mim3d.dataio.waiting import StalledError

# On top of the client's own retries, which do not cover an answer that breaks off.
ATTEMPTS, PAUSE_S = 4, 0.2
WATCH_S = 30.0


class TableBucket:
    """A corpus in an object store, as `TableWatch` looks for its newest table."""

    def __init__(self, shards: "RemoteShards") -> None:
        self._shards = shards

    def note(self) -> bytes | None:
        """As `TablePlace.note`; over http there is none to be had."""
        return being_replaced(self._shards.address)

    def stamp(self) -> str:
        """As `TablePlace.stamp`."""
        return self._shards.stamp(self._shards.own(TABLE))

    def table(self) -> ChunkTable | None:
        """As `TablePlace.table`; its file is held open, and is of no folder."""
        data = self._shards.whole(self._shards.own(TABLE))
        if data is None:
            return None
        with tempfile.TemporaryDirectory(prefix="mim3d-table-") as folder:
            (Path(folder) / TABLE).write_bytes(data)
            return table_in(Path(folder))


def being_replaced(address: str) -> bytes | None:
    """The note of what a conversion is replacing in a bucket; over http it cannot be asked for."""
    try:
        store = open_store(address)
        return store.get(own_key(store, REPLACING))
    except StalledError:
        raise
    except (FileNotFoundError, StoreError):
        return None


class RemoteShards:
    """Byte ranges of the shards under an address such as s3://bucket/corpus.zarr.

    Requests that fail are sent again with growing pauses, and answers that break off are asked for
    again; what still fails is a CorpusError.
    """

    def __init__(self, address: str, limits: RemoteLimits | None = None) -> None:
        self.address = address.rstrip("/")
        self._store, self._prefix = locate(self.address)
        client = self._store.without_retries()
        self.fetcher = Fetcher(client, self._store.origin, limits or RemoteLimits())
        self._watch: TableWatch | None = None
        self._asked = 0.0
        self._folder: str | None = None

    def open_file(self, path: str, nbytes: int) -> None:
        """None: nothing is on a local disk."""

    def runs(self, path: str, nbytes: int, offsets: Numbers, sizes: Numbers) -> list[Run]:
        """The ranges of shard `path` with what was read between them: where runs of bytes begin,
        and their bytes. All are asked for at once, or were when they were announced."""
        ticket = self._landed(path, np.asarray(offsets, np.int64), np.asarray(sizes, np.int64))
        begins = ticket.runs.begins.tolist()
        lengths = (ticket.runs.ends - ticket.runs.begins).tolist()
        runs = [
            (begin, np.frombuffer(memoryview(each), np.uint8))
            for begin, each in zip(begins, ticket.buffers(), strict=True)
        ]
        short = any(len(data) != n for (_, data), n in zip(runs, lengths, strict=True))
        self._check(path, at_once=short)
        for (begin, data), wanted in zip(runs if short else [], lengths, strict=False):
            if len(data) != wanted:
                raise CorpusError(
                    f"{self.address}/{path}: has {len(data)} of {wanted} bytes at {begin}; the "
                    f"chunk table says the shard has {nbytes}: {mending(self.address)}"
                )
        return runs

    def has_room(self) -> bool:
        """Whether readings to come should be announced now."""
        return self.fetcher.has_room()

    def announce(self, path: str, offsets: np.ndarray, sizes: np.ndarray) -> None:
        """Ask the store for what will be read."""
        self.fetcher.announce(self._key(path), offsets, sizes)

    def withdraw(self) -> None:
        """Drop what was announced and not read."""
        self.fetcher.withdraw()

    def metrics(self) -> dict[str, float]:
        """What was asked of the store, and what its requests cost."""
        return self.fetcher.metrics()

    def close(self) -> None:
        """Drop what is under way; a later read asks again."""
        self.fetcher.close()

    def watch(self, table: ChunkTable) -> None:
        """Ask now and then whether shards are still those that the table tells of: two requests
        every `WATCH_S`, so what was replaced within that time may be read before it is told."""
        self._watch = TableWatch(table, TableBucket(self))
        self._asked = time.monotonic()

    def _check(self, path: str, *, at_once: bool = False) -> None:
        if self._watch is not None and (at_once or time.monotonic() - self._asked > WATCH_S):
            self._asked = time.monotonic()
            self._watch.check(path)

    def stamp(self, path: str) -> str:
        """What changes with an object; empty where there is none, or it cannot be asked."""
        import obstore

        try:
            found = self._store.head(self._key(path))
        except (obstore.exceptions.BaseError, OSError):
            return ""
        return f"{found['size']} {found['e_tag']} {found['last_modified']}"

    def own(self, name: str) -> str:
        """Key of one of the corpus' own files, by where its table lies."""
        if self._folder is None:
            self._folder = f"{OWN}/" if self._exists(f"{OWN}/{TABLE}") else ""
        return f"{self._folder}{name}"

    def _exists(self, path: str) -> bool:
        """Whether there is an object; one that may not be asked for counts as absent."""
        import obstore

        def request() -> bool:
            try:
                return len(self._store.get_range(self._key(path), start=0, length=1)) > 0
            except obstore.exceptions.PermissionDeniedError:
                return False

        try:
            return self._insist(path, request)
        except FileNotFoundError:
            return False

    def whole(self, path: str) -> bytes | None:
        """All bytes of an object, None where there is none."""
        import obstore

        def request() -> bytes:
            try:
                answer = self._store.get(self._key(path))
            except FileNotFoundError:
                raise
            except (obstore.exceptions.BaseError, OSError) as error:  # the client did ask again
                raise CorpusError(f"{self.address}/{path}: {store_reason(error)}") from error
            return answer.bytes()

        try:
            return self._insist(path, request)
        except FileNotFoundError:
            return None

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    def _landed(self, path: str, offsets: np.ndarray, sizes: np.ndarray) -> Ticket:
        try:
            return self.fetcher.read(self._key(path), offsets, sizes)
        except FileNotFoundError:
            self._check(path, at_once=True)
            raise CorpusError(
                f"{self.address}/{path}: this shard is in the manifest but not in the store; "
                f"{mending(self.address)}"
            ) from None
        except (UnavailableError, RefusedError) as error:
            raise CorpusError(f"{self.address}/{path}: {error}") from error

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
            raise CorpusError(f"{self.address}/{path}: {store_reason(error)}") from error
        except (obstore.exceptions.BaseError, OSError) as error:
            if is_plain_http(error):
                raise CorpusError(f"{self.address}: {store_reason(error)}") from error
            raise UnavailableError(store_reason(error)) from error
