"""A lock object in a bucket that its holder renews; conditional writes make taking it atomic."""

import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from mim3d.dataio.errors import CorpusError, StoreError, StoreRefusedError
from mim3d.dataio.storage.bucket import Bucket
from mim3d.dataio.storage.remote import access_remedy, is_plain_http, store_reason
from mim3d.dataio.waiting import GivenUpError, StalledError, patience

LEASE_S = 90.0
LOOK_S = 0.5
GIVE_UP_S = 3.0
SEEN = ", seen "


class Lease:
    """The lock `key` of what is at `url`, written again every quarter of `LEASE_S`, for as long as
    somebody holds this object.

    With `waits` a lock without a sign of life is waited for until it runs out, which `note` tells.
    A lock with the `token` that the caller knows to have been a dead process's, `before`, is taken
    at once.
    """

    def __init__(
        self,
        store: Bucket,
        key: str,
        url: str,
        *,
        before: str = "",
        waits: bool = False,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.store, self.key, self.url = store, key, url
        self.holder = f"process {os.getpid()} on {os.uname().nodename}"
        self.token = uuid.uuid4().hex
        self.before, self.waits, self.note = before, waits, note
        self.stop, self.lost = threading.Event(), threading.Event()
        """Set where nobody renews any more, and where another process took the lock over."""
        self.version: Any = None
        self.seen = 0.0
        """What the store last called our lock, and when we had asked for that; Unix seconds."""

    def take(self) -> None:
        """Write the lock or take over a dead one; CorpusError naming the holder."""
        import obstore

        try:
            while not self._created():
                if self._taken_over():
                    break
        except obstore.exceptions.BaseError as error:
            kind = StoreRefusedError if is_plain_http(error) else StoreError
            raise kind(
                f"{self.url}: cannot be written ({store_reason(error)}); {access_remedy(error)}"
            ) from error
        threading.Thread(
            target=_renew, args=(weakref.ref(self), self.stop), name="mim3d-lease", daemon=True
        ).start()

    def _created(self) -> bool:
        import obstore

        try:
            self._write("create")
        except obstore.exceptions.AlreadyExistsError:
            return False
        except FileNotFoundError as error:
            raise no_bucket(self.url) from error
        return True

    def _taken_over(self) -> bool:
        """Whether the lock that stands there is ours now; False where it has gone meanwhile."""
        import obstore

        try:
            version, holder, left_s = self._read()
            if self.waits and left_s > 0:
                self._watch(version, holder, left_s)
                left_s = 0.0
        except FileNotFoundError:
            return False
        if left_s <= 0:
            try:
                self._write(version)
                return True
            except FileNotFoundError:
                return False
            except obstore.exceptions.PreconditionError:
                holder = "another process"
        raise self._busy(holder)

    def _read(self) -> tuple[dict[str, str], str, float]:
        """Version and holder of the lock, and for how many seconds it still stands."""
        meta, text = self._look()
        holder = text.partition(SEEN)[0]
        if text.endswith(self.token) or (self.before and text.endswith(self.before)):
            return version_of(meta), holder, 0.0
        age = (datetime.now(UTC) - meta["last_modified"]).total_seconds()
        return version_of(meta), holder, LEASE_S - age

    def _look(self) -> tuple[Any, str]:
        """What the store knows of the lock, and its text."""
        found = self.store.get(self.key)
        return found.meta, found.bytes().decode(errors="replace").strip()

    def _watch(self, version: dict[str, str], holder: str, left_s: float) -> None:
        """Wait until the lock runs out; CorpusError as soon as its holder renews it."""
        left_s = min(left_s, LEASE_S)  # clocks may differ
        self.note(f"{self.url}: {holder} holds it; waiting {left_s:.0f} s for a sign of life")
        until = time.monotonic() + left_s
        while time.monotonic() < until:
            time.sleep(LOOK_S)
            if version_of(self.store.head(self.key)) != version:
                raise self._busy(holder)

    def _busy(self, holder: str) -> CorpusError:
        return CorpusError(
            f"{self.url}: {holder} is writing to it; wait, or choose another destination "
            f"(a lock whose process died frees itself {LEASE_S:.0f} s after its last sign of life)"
        )

    def _write(self, mode: Any) -> None:
        now = time.time()
        text = f"{self.holder}{SEEN}{now:.3f}, {self.token}\n".encode()
        self.version = version_of(self.store.put(self.key, text, mode=mode))
        self.seen = now

    def renewed(self) -> bool:
        """Write the lock again; whether it is ours.

        So it is under another version too, where the answer to a write of ours was lost. One that
        has gone is made anew while nobody may have held it in between.
        """
        import obstore

        try:
            self._write(self.version)
            return True
        except (obstore.exceptions.PreconditionError, FileNotFoundError):
            pass
        try:
            meta, text = self._look()
        except FileNotFoundError:  # somebody removed it, or we have given it up
            return self.stop.is_set() or (time.time() < self.seen + LEASE_S and self._created())
        if text.endswith(self.token):
            self._write(version_of(meta))
            return True
        return False

    def is_ours(self) -> bool:
        """Whether the lock is still held; asked of the store where its last sign of life is old.

        The thread that renews may wake later than a caller after the machine stood still. A store
        that does not answer is not asked twice: what the caller writes next will tell.
        """
        import obstore

        with suppress(obstore.exceptions.BaseError, StoreError, OSError):
            if not self.lost.is_set() and time.time() > self.seen + LEASE_S and not self.renewed():
                self.lost.set()
        return not self.lost.is_set()

    def give_up(self) -> None:
        """Remove the lock if it is still ours."""
        import obstore

        self.stop.set()
        try:
            with patience(GIVE_UP_S):
                if self._look()[1].endswith(self.token):
                    self.store.delete(self.key)
        except (obstore.exceptions.BaseError, StalledError, OSError):
            return  # it frees itself when its lease ends


def _renew(held: "weakref.ref[Lease]", stop: threading.Event) -> None:
    """Renew a lease until it is given up or lost, or nobody holds it any more."""
    import obstore

    while not stop.wait(LEASE_S / 4):
        lease = held()
        if lease is None:
            return
        try:
            with patience(left=stop.is_set):
                if not lease.renewed():
                    lease.lost.set()
                    return  # taken over after a pause longer than the lease: never fight for it
        except GivenUpError:
            return  # by who held it, while the store kept silent
        except (obstore.exceptions.BaseError, StoreError, OSError):
            continue  # the network may come back before the lease ends
        finally:
            del lease  # or this thread would hold it while it waits


def no_bucket(url: str) -> StoreRefusedError:
    """What it means where a put is answered with "not found"."""
    return StoreRefusedError(
        f"{url}: there is no such bucket; create it, or choose another destination"
    )


def version_of(answer: Any) -> dict[str, str]:
    """What a conditional write must match; obstore takes no None among it."""
    return {name: answer[name] for name in ("e_tag", "version") if answer[name] is not None}
