"""Byte ranges of shard files on local disk: open descriptors kept, neighbours read at once."""

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.reader.table_watch import TableFolder, TableWatch

GAP_BYTES = 4096
NOTHING = np.empty(0, np.uint8)
OPEN_FILES = 256


def coalesce(offsets: list[int], sizes: list[int], gap: int) -> list[tuple[int, int, list[int]]]:
    """Runs `(offset, nbytes, members)` that cover the given ranges, joined across `gap` bytes."""
    runs: list[tuple[int, int, list[int]]] = []
    end = -1
    for i in sorted(range(len(offsets)), key=offsets.__getitem__):
        if runs and offsets[i] - end <= gap:
            offset, _, members = runs[-1]
            members.append(i)
            end = max(end, offsets[i] + sizes[i])
            runs[-1] = (offset, end - offset, members)
        else:
            end = offsets[i] + sizes[i]
            runs.append((offsets[i], sizes[i], [i]))
    return runs


class OpenFile:
    """An open file; closes when the last reader lets go, so eviction never races a read."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.nbytes = os.fstat(self.fd).st_size

    def __del__(self) -> None:
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            os.close(fd)


def cut_short(path: Path, end: int, nbytes: int, corpus: Path | str) -> CorpusError:
    """What to raise for a file that was cut off while it was open."""
    return CorpusError(
        f"{path}: ends at byte {end}, it had {nbytes} when it was opened; {mending(corpus)}"
    )


def mending(corpus: Path | str) -> str:
    """The remedy for a volume that is not what was written."""
    return f"`mim3d verify {corpus} --mend` makes the volume anew from its source"


class LocalShards:
    """Reads byte ranges of the shards under a corpus' root; safe for many threads.

    Buffers are per thread and reused: what `runs` returns is valid until the same thread reads
    again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # a program may change its folder while files open
        self._open: OrderedDict[str, OpenFile] = OrderedDict()
        self._lock = threading.Lock()
        self._local = threading.local()
        self._watch: TableWatch | None = None

    def open_file(self, path: str, nbytes: int) -> OpenFile:
        """The open file of a shard; fails as `runs` does."""
        with self._lock:
            file = self._open.get(path)
            if file is not None:
                self._open.move_to_end(path)
                return file
        file = self._opened(path, nbytes)
        if self._watch is not None:
            self._watch.check(path)
        with self._lock:
            self._open[path] = file
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        return file

    def runs(
        self,
        path: str,
        nbytes: int,
        offsets: Sequence[int] | np.ndarray,
        sizes: Sequence[int] | np.ndarray,
    ) -> list[tuple[int, np.ndarray]]:
        """Return the ranges of shard `path` (relative to the root) with what little lies between:
        where runs of bytes begin, and their bytes, uint8.

        `nbytes` is the shard's size as the chunk table has it; another size, or a file that is
        gone or may not be read, raises CorpusError.
        """
        file = self.open_file(path, nbytes)
        wanted = coalesce(np.asarray(offsets).tolist(), np.asarray(sizes).tolist(), GAP_BYTES)
        buffer = self._buffer(sum(length for _, length, _ in wanted))
        window, at = buffer.data, 0
        found = []
        for offset, length, _ in wanted:
            self._fill(file, path, window[at : at + length], offset)
            found.append((offset, buffer[at : at + length]))
            at += length
        return found

    def close(self) -> None:
        """Close every file; a later read opens again."""
        with self._lock:
            self._open.clear()

    def watch(self, table: ChunkTable) -> None:
        """Ask at every opening whether the shard is still the one that the table tells of."""
        self._watch = TableWatch(table, TableFolder(self.root))

    def has_room(self) -> bool:
        """No: the system reads ahead by itself, and the page cache keeps it."""
        return False

    def announce(self, path: str, offsets: np.ndarray, sizes: np.ndarray) -> None:
        """Nothing to do: reading waits for a disk, not for a network."""

    def withdraw(self) -> None:
        """Nothing was announced."""

    def metrics(self) -> dict[str, float]:
        """Nothing that the reader does not count."""
        return {}

    def _fill(self, file: OpenFile, path: str, window: memoryview, offset: int) -> None:
        done = 0
        while done < len(window):
            got = os.preadv(file.fd, [window[done:]], offset + done)
            if got == 0:
                raise cut_short(self.root / path, offset + done, file.nbytes, self.root)
            done += got

    def _buffer(self, nbytes: int) -> np.ndarray:
        buffer = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < nbytes:
            buffer = self._local.buffer = np.empty(max(nbytes, 1 << 20), np.uint8)
        return buffer

    def _opened(self, path: str, nbytes: int) -> OpenFile:
        try:
            file = self._open_or_make_room(path)
        except FileNotFoundError:
            if self._watch is not None:
                self._watch.check(path)
            raise CorpusError(
                f"{self.root / path}: this shard is in the manifest but not on disk; "
                f"{mending(self.root)}"
            ) from None
        except OSError as error:
            raise CorpusError(f"{self.root / path}: cannot be read: {error.strerror}") from error
        if file.nbytes != nbytes:
            if self._watch is not None:
                self._watch.check(path)
            raise CorpusError(
                f"{self.root / path}: has {file.nbytes} bytes, the chunk table says {nbytes}; "
                f"{mending(self.root)}"
            )
        return file

    def _open_or_make_room(self, path: str) -> OpenFile:
        """Open a shard; where the process has no descriptor left, after letting go of all here."""
        try:
            return OpenFile(self.root / path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        self.close()
        return OpenFile(self.root / path)
