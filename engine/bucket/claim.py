"""One writer to a run in a bucket: the kernel's lock on its folder here, a lease on it there."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mim3d.dataio.storage.lease import Lease
from mim3d.dataio.storage.object_store import RemoteStore
from mim3d.dataio.storage.remote import LOCK
from mim3d.engine.errors import ConfigError
from mim3d.engine.runs.files import write_json, write_text
from mim3d.engine.runs.folder_lock import sole_writer

OWNER, LEASE = ".staging.json", ".lease"


def claim_folder(folder: Path, address: str) -> None:
    """Have a folder of this machine stand for an address; ConfigError where it holds other things.

    What the bucket lacks is removed from it.
    """
    mine = {"address": address}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        owner = folder / OWNER
        if owner.exists():
            if json.loads(owner.read_text()) == mine:
                return
        elif not any(not path.name.startswith(".") for path in folder.iterdir()):
            write_json(owner, mine)
            return
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--staging {folder} cannot be used for {address} ({error}): name another folder"
        ) from error
    raise ConfigError(
        f"--staging {folder} holds other things than {address}: name an empty folder, or leave "
        "--staging out"
    )


@contextmanager
def sole_writer_there(
    store: RemoteStore, folder: Path, note: Callable[[str], None]
) -> Iterator[Lease]:
    """Hold the folder and the run in the bucket; an error naming the holder where another does.

    A killed predecessor's lease is known by what it left in the folder, and taken at once; that of
    another machine is waited for until it runs out.
    """
    claim_folder(folder, store.url)
    with sole_writer(folder, store.url):
        file = folder / LEASE
        before = file.read_text() if file.exists() else ""
        key = store.key(LOCK)
        lease = Lease(store.store, key, store.url, before=before, waits=True, note=note)
        lease.take()
        write_text(file, lease.token)
        try:
            yield lease
        finally:
            lease.give_up()
