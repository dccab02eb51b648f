"""A corpus or a run in a bucket: objects by keys inside it."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from typing_extensions import Buffer

from mim3d.dataio.errors import CorpusError, StoreError, StoreRefusedError
from mim3d.dataio.storage.lease import LEASE_S, Lease, no_bucket
from mim3d.dataio.storage.object_files import Listed, fetch_file, send_file
from mim3d.dataio.storage.remote import LOCK, access_remedy, is_denied, locate, store_reason
from mim3d.dataio.waiting import asking_threads

PARTS = ".parts/"  # objects cannot grow: what `append` adds lies beside until the next `replace`
PARALLEL_PUTS = 4


class RemoteStore:
    """A corpus in a bucket: the verbs of `store.Store` by obstore; single puts are atomic."""

    def __init__(self, url: str) -> None:
        if url.startswith(("http://", "https://")):
            raise StoreError(f"{url}: an http address can be read, not written; use s3:// or gs://")
        self.url = url.rstrip("/")
        self.store, self.prefix = locate(self.url)
        self._held: Lease | None = None

    def key(self, key: str) -> str:
        """Key in the bucket; never outside the corpus."""
        if not key or any(part in ("", ".", "..") for part in key.split("/")):
            raise StoreError(f"{self.url}: {key!r} is not a key inside the corpus")
        return f"{self.prefix}/{key}" if self.prefix else key

    def put_folder(self, folder: str, objects: Mapping[str, Iterable[Buffer]]) -> None:
        """Write all objects of a folder, several at once, then drop what else stood there."""
        base = self.key(folder)
        wanted = {f"{base}/{key}": b"".join(map(bytes, parts)) for key, parts in objects.items()}
        with asking_threads(PARALLEL_PUTS) as pool:
            list(pool.map(self._put, wanted, wanted.values()))
        self._delete(key for key in self._listed(base + "/") if key not in wanted)

    def replace(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write an object at once; what was appended before is part of the past."""
        self._put(self.key(key), b"".join(parts))
        self._delete(self._listed(self.key(key) + PARTS))

    def put(self, key: str, data: bytes) -> None:
        """Write an object that nothing is appended to."""
        self._put(self.key(key), data)

    def append(self, key: str, data: bytes) -> None:
        """Add to the end of an object, durable when this returns."""
        self._put(f"{self.key(key)}{PARTS}{time.time_ns():020d}-{os.getpid()}", data)

    def sync(self) -> None:
        """Nothing to do: a put is durable when it returns."""

    def get(self, key: str) -> bytes:
        """All bytes of an object and of what was appended; FileNotFoundError where absent."""
        parts = sorted(self._listed(self.key(key) + PARTS))
        try:
            whole = self._get(self.key(key))
        except FileNotFoundError:
            if not parts:
                raise
            whole = b""
        return whole + b"".join(map(self._get, parts))

    def tail(self, key: str, nbytes: int) -> bytes:
        """The last bytes of an object."""
        with self._as_store_errors(key):
            size = int(self.store.head(self.key(key))["size"])
            start = max(size - nbytes, 0)
            if start == size:
                return b""
            return bytes(self.store.get_range(self.key(key), start=start, end=size))

    def exists(self, key: str) -> bool:
        """Whether there is such an object, or something was appended to it."""
        with self._as_store_errors(key):
            try:
                self.store.head(self.key(key))
            except FileNotFoundError:
                return any(True for _ in self._listed(self.key(key) + PARTS))
            return True

    def walk(self, prefix: str = "") -> Iterator[str]:
        """Keys under a prefix, relative to the corpus."""
        return (key for key, _ in self._below(prefix) if PARTS not in key)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of the objects under a prefix, a thousand a request."""
        return {key: int(found["size"]) for key, found in self._below(prefix) if PARTS not in key}

    def listed(self, prefix: str = "") -> dict[str, Listed]:
        """Size and ETag of the objects under a prefix (a folder), by key."""
        return {key: as_listed(found) for key, found in self._below(prefix)}

    def about(self, key: str) -> Listed | None:
        """Size and ETag of one object, None where it is absent."""
        with self._as_store_errors(key):
            try:
                return as_listed(self.store.head(self.key(key)))
            except FileNotFoundError:
                return None

    def send(self, key: str, file: Path) -> None:
        """Write an object from a file of any size, in parts."""
        with self._as_store_errors(key):
            try:
                send_file(self.store, self.key(key), file)
            except FileNotFoundError as error:
                if not file.exists():
                    raise
                raise no_bucket(self.url) from error

    def fetch(self, key: str, file: Path, nbytes: int) -> None:
        """Write an object's bytes to a file; FileNotFoundError where it is absent."""
        with self._as_store_errors(key):
            fetch_file(self.store, self.key(key), file, nbytes)

    def folders(self) -> list[str]:
        """Names directly under the corpus that hold objects."""
        with self._as_store_errors(""):
            found = self.store.list_with_delimiter(self.prefix or None)
        names = {path.rstrip("/").rsplit("/", 1)[-1] for path in found["common_prefixes"]}
        return sorted(name for name in names if not name.endswith(PARTS.rstrip("/")))

    def delete(self, prefix: str) -> None:
        """Remove an object or everything under a folder; nothing where there is none."""
        key = self.key(prefix)
        doomed = [*self._listed(key + "/"), *self._listed(key + PARTS)]
        self._delete([*doomed, key] if self.exists(prefix) else doomed)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold `.lock`, renewed while held; one left by a dead process is taken after its lease.

        Where another took it over, after a pause longer than that, nothing more is written.
        """
        held = Lease(self.store, self.key(LOCK), self.url)
        held.take()
        self._held = held
        try:
            yield
        finally:
            self._held = None
            held.give_up()

    def _check_held(self) -> None:
        """A CorpusError where another process took over the lock that is held here."""
        if self._held is not None and not self._held.is_ours():
            raise CorpusError(
                f"{self.url}: another process took it over while this one stood still for more "
                f"than {LEASE_S:.0f} s; it writes nothing more: let the other end, then run the "
                "same command again"
            )

    def _put(self, key: str, data: bytes) -> None:
        self._check_held()
        with self._as_store_errors(key):
            try:
                self.store.put(key, data)
            except FileNotFoundError as error:
                raise no_bucket(self.url) from error

    def _get(self, key: str) -> bytes:
        with self._as_store_errors(key):
            return self.store.get(key).bytes()

    def _delete(self, keys: Iterable[str]) -> None:
        doomed = list(keys)
        if not doomed:
            return
        self._check_held()
        with self._as_store_errors(doomed[0]):
            try:
                self.store.delete(doomed)
            except FileNotFoundError:  # gs:// minds what is gone already, s3:// does not
                for key in doomed:
                    with suppress(FileNotFoundError):
                        self.store.delete(key)

    def _below(self, prefix: str) -> Iterator[tuple[str, Any]]:
        """Objects under a prefix (a folder) with their keys relative to the corpus."""
        base = self.key(prefix) + "/" if prefix else (self.prefix and self.prefix + "/")
        skip = len(self.prefix) + 1 if self.prefix else 0
        return ((found["path"][skip:], found) for found in self._objects(base))

    def _listed(self, prefix: str) -> Iterator[str]:
        """Keys that begin with a prefix."""
        return (found["path"] for found in self._objects(prefix))

    def _objects(self, prefix: str) -> Iterator[Any]:
        """Objects whose keys begin with a prefix; object stores list whole path parts only."""
        folder = prefix.rsplit("/", 1)[0] if "/" in prefix else ""
        with self._as_store_errors(prefix):
            for batch in self.store.list(folder or None):
                yield from (found for found in batch if found["path"].startswith(prefix))

    @contextmanager
    def _as_store_errors(self, key: str) -> Iterator[None]:
        import obstore

        try:
            yield
        except obstore.exceptions.BaseError as error:
            reason = store_reason(error)
            if "list request" in reason and "404 Not Found" in reason:
                raise no_bucket(self.url) from error
            kind = StoreRefusedError if is_denied(error) else StoreError
            raise kind(f"{self.url} ({key}): {reason}; {access_remedy(error)}") from error


def as_listed(found: Any) -> Listed:
    """What obstore tells of an object."""
    return Listed(int(found["size"]), str(found["e_tag"] or "").strip('"'))
