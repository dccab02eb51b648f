"""The files of a run's folder, but for its checkpoints, as objects of a bucket.

The bucket is the truth: what a folder has that it lacks is of a sitting that did not get that far.
"""

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mim3d.dataio.storage.object_files import Listed, digest_file
from mim3d.dataio.storage.object_store import RemoteStore
from mim3d.engine.errors import ConfigError
from mim3d.engine.runs.checkpoint_files import CHECKPOINTS

OWN_FOLDERS = (CHECKPOINTS, "wandb")
"""What goes there in another way."""
LAST = ("pretext.json", "result.json")
"""Files that say a run is finished: they follow all others."""
Seen = tuple[int, int]


class Mirror:
    """A folder and what was made of it in the bucket; may be asked by several threads."""

    def __init__(self, folder: Path, store: RemoteStore) -> None:
        self.folder, self.store = folder, store
        self._there: dict[str, Seen] = {}
        """Files that the bucket has, as they were when it got them."""
        self._turn = threading.Lock()

    def pull(self, listed: Mapping[str, Listed]) -> None:
        """Make the folder what the bucket holds; `listed` are the objects of the run."""
        if "zarr.json" in listed:
            raise ConfigError(
                f"{self.store.url} is a Zarr store: choose an --out that is not a corpus"
            )
        wanted = {key: facts for key, facts in listed.items() if is_run_file(key)}
        with self._turn:
            for key in self.files():
                if key not in wanted:
                    (self.folder / key).unlink()
            for key, facts in wanted.items():
                file = self.folder / key
                if not file.is_file() or digest_file(file).e_tag != facts.e_tag:
                    self.store.fetch(key, file, facts.nbytes)
            self._there = {key: state_of(self.folder / key) for key in wanted}

    def push(self) -> None:
        """Have the bucket hold what changed in the folder, and lose what it lost."""
        with self._turn:
            files = self.files()
            for key in self._there.keys() - files.keys():
                self.store.delete(key)
                del self._there[key]
            changed = [key for key, state in files.items() if self._there.get(key) != state]
            for key in sorted(changed, key=lambda key: (key in LAST, key)):
                self.store.send(key, self.folder / key)
                self._there[key] = files[key]

    def files(self) -> dict[str, Seen]:
        """The files that belong to the run, by key, as they are now."""
        found: dict[str, Seen] = {}
        for folder, folders, names in os.walk(self.folder):
            if Path(folder) == self.folder:
                folders[:] = [name for name in folders if name not in OWN_FOLDERS]
            for name in names:
                file = Path(folder, name)
                key = file.relative_to(self.folder).as_posix()
                if is_run_file(key):
                    with suppress(FileNotFoundError):  # was a half file of a library's
                        found[key] = state_of(file)
        return found


def is_run_file(key: str) -> bool:
    """Whether an object is a run's file; names that begin with a dot are locks and half files."""
    parts = key.split("/")
    return parts[0] not in OWN_FOLDERS and not any(part.startswith(".") for part in parts)


def state_of(file: Path) -> Seen:
    """What changes when a file does."""
    about = file.stat()
    return about.st_mtime_ns, about.st_size
