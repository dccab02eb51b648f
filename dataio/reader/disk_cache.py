"""Chunks of a remote corpus kept on a local disk: for later epochs, and for later runs.

A file is named by its shard's hash, so another corpus, or a volume converted anew, is another file,
and the same volume in two corpora is one. Several processes may share a folder: whoever writes a
chunk writes the same bytes. What was used longest ago goes when a new process finds the folder
above its budget.
"""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.reader.chunk_cache import ChunkCache, Held
from mim3d.dataio.reader.kept_shard import FileShard, Kept, OpenFiles
from mim3d.dataio.reader.stored_array import StoredArray

SUFFIXES = (".shard", ".present")
COUNT_AGAIN_BYTES = 1 << 28
"""Written by this process until it looks what others that share the folder wrote."""
STALE_S, LOOK_S = 86400.0, 60.0
"""Files that nobody opened for a day make room for others, looked for once a minute."""


class DiskCache(ChunkCache):
    """At most `budget` bytes in the files of `folder`, whoever wrote them."""

    def __init__(self, folder: str | Path, budget: int, policy: str = "keep") -> None:
        self.folder = Path(folder).expanduser().absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Mim3dError(
                f"cache='disk:{folder}': cannot be made ({error.strerror}); name another folder"
            ) from error
        self._opened = OpenFiles()
        super().__init__(budget, policy, self._file)
        self._counted, self._looked = 0, 0.0
        drop_oldest(self.folder, budget, time.time())
        self.used_bytes = folder_bytes(self.folder)

    def clear(self) -> None:
        """Close the files, which stay."""
        super().clear()
        self.used_bytes = folder_bytes(self.folder)

    def _file(self, array: StoredArray, absent: np.ndarray) -> Kept:
        name = hashlib.sha256(array.name.encode()).hexdigest()[:32]
        file = self.folder / f"{name}{SUFFIXES[0]}"
        for suffix in SUFFIXES:
            if file.with_suffix(suffix).exists():
                os.utime(file.with_suffix(suffix))
        return FileShard(file, array.nbytes, absent, self._opened)

    def _room(self, cost: int, wanting: Held) -> bool:
        self._counted += cost
        if self._counted > COUNT_AGAIN_BYTES:
            self._counted, self.used_bytes = 0, folder_bytes(self.folder)
        now = time.monotonic()
        if self.used_bytes + cost > self.budget > 0 and now - self._looked > LOOK_S:
            self._counted, self._looked = 0, now
            drop_oldest(self.folder, self.budget - cost, time.time() - STALE_S)
            self.used_bytes = folder_bytes(self.folder)
        return super()._room(cost, wanting)


def files_of(folder: Path) -> list[os.DirEntry[str]]:
    """What a cache left in a folder; nothing else there is ever touched."""
    return [entry for entry in os.scandir(folder) if entry.name.endswith(SUFFIXES)]


def folder_bytes(folder: Path) -> int:
    """What a cache takes of its disk."""
    total = 0
    for entry in files_of(folder):
        try:
            total += 512 * entry.stat().st_blocks
        except FileNotFoundError:  # another process dropped it
            continue
    return total


def drop_oldest(folder: Path, budget: int, before: float) -> None:
    """Remove files until the folder is within its budget, those used longest ago first.

    Only such as nobody began to use after the time `before`.
    """
    found = []
    for entry in files_of(folder):
        with suppress(FileNotFoundError):
            found.append((entry.stat(), entry.path))
    total = sum(512 * stat.st_blocks for stat, _ in found)
    for stat, path in sorted(found, key=lambda pair: pair[0].st_mtime):
        if total <= budget or stat.st_mtime > before:
            return
        Path(path).unlink(missing_ok=True)
        total -= 512 * stat.st_blocks
