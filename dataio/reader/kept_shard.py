"""One shard as far as it is kept: its bytes at their own offsets, in memory or in a file."""

import mmap
import os
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

PAGE = 4096
RECORD_BYTES = 2048  # of Python's objects for a shard
OPEN_FILES = 128


class Kept(Protocol):
    """Where the bytes of one shard lie.

    `present` (n_chunks,) bool says which chunks are there, `used` what it takes of a budget so far.
    """

    present: np.ndarray
    used: int

    @property
    def source(self) -> "memoryview | OpenForBoth":
        """What the loop in C reads."""
        ...

    def write(self, at: int, data: np.ndarray) -> None:
        """Put bytes where they belong."""
        ...

    def view(self, at: int, nbytes: int) -> np.ndarray:
        """Bytes that are there."""
        ...

    def mark(self, chunks: slice | np.ndarray, *, there: bool) -> None:
        """Say of chunks whether they are there."""
        ...

    def remove(self) -> None:
        """Let go of all that it takes."""
        ...


class MemoryShard:
    """Kept in memory that the system gives page by page, as it is written to."""

    def __init__(self, nbytes: int, absent: np.ndarray) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        memory = mmap.mmap(-1, max(nbytes, 1), flags=flags)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge page would take what nobody counted
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        self._bytes = np.frombuffer(memory, np.uint8)
        self.source = memoryview(memory)
        self.present = absent.copy()
        self.used = len(absent) + RECORD_BYTES

    def write(self, at: int, data: np.ndarray) -> None:
        """As `Kept.write`."""
        self._bytes[at : at + len(data)] = data

    def view(self, at: int, nbytes: int) -> np.ndarray:
        """As `Kept.view`."""
        return self._bytes[at : at + nbytes]

    def mark(self, chunks: slice | np.ndarray, *, there: bool) -> None:
        """As `Kept.mark`."""
        self.present[chunks] = there

    def remove(self) -> None:
        """The memory goes with the last who reads it."""


class OpenForBoth:
    """A file open for reading and writing; closes when the last who uses it lets go."""

    def __init__(self, file: Path, *, make: bool) -> None:
        self.fd = os.open(file, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o644)

    def fileno(self) -> int:
        """Its descriptor, open as long as this is held."""
        return self.fd

    def __del__(self) -> None:
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            os.close(fd)


class OpenFiles:
    """At most `OPEN_FILES` files open at a time, those used last; safe for many threads."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, OpenForBoth] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: Path, *, make: bool = False) -> OpenForBoth:
        """The file, opened again if need be; OSError where it is gone."""
        with self._lock:
            opened = self._open.get(file)
            if opened is None:
                opened = self._open[file] = OpenForBoth(file, make=make)
                while len(self._open) > OPEN_FILES:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(file)
            return opened

    def drop(self, file: Path) -> None:
        """Close a file."""
        with self._lock:
            self._open.pop(file, None)


class FileShard:
    """Kept in a file with holes; which chunks it has stands in a file beside it, a byte each.

    A chunk is marked when its bytes were written. Where power failed in between, or anyone wrote
    into the file, its checksum tells.
    """

    def __init__(self, file: Path, nbytes: int, absent: np.ndarray, opened: OpenFiles) -> None:
        self._file, self._marks, self._opened = file, file.with_suffix(".present"), opened
        found = np.fromfile(self._marks, np.uint8) if self._marks.exists() else absent[:0]
        whole = file.exists() and file.stat().st_size == nbytes and len(found) == len(absent)
        self.present = (found == 1) | absent if whole else absent.copy()
        self.used = RECORD_BYTES  # what the files take is counted with their folder
        if not whole:
            made = opened.get(file, make=True)
            os.ftruncate(made.fd, 0)
            os.ftruncate(made.fd, nbytes)
            self.present.tofile(self._marks)
            self.used += len(absent)

    @property
    def source(self) -> OpenForBoth:
        """As `Kept.source`."""
        return self._opened.get(self._file)

    def write(self, at: int, data: np.ndarray) -> None:
        """As `Kept.write`."""
        rest, opened = np.ascontiguousarray(data).data, self.source
        while rest:
            done = os.pwrite(opened.fd, rest, at)
            at, rest = at + done, rest[done:]

    def view(self, at: int, nbytes: int) -> np.ndarray:
        """As `Kept.view`."""
        return np.frombuffer(os.pread(self.source.fd, nbytes, at), np.uint8)

    def mark(self, chunks: slice | np.ndarray, *, there: bool) -> None:
        """As `Kept.mark`; at once for every process that opens it later."""
        self.present[chunks] = there
        span = chunks if isinstance(chunks, slice) else slice(chunks.min(), chunks.max() + 1)
        with suppress(FileNotFoundError), self._marks.open("r+b", buffering=0) as marks:
            os.pwrite(marks.fileno(), self.present[span].tobytes(), int(span.start))

    def remove(self) -> None:
        """As `Kept.remove`; who has the file open reads on."""
        self._opened.drop(self._file)
        for each in (self._marks, self._file):
            each.unlink(missing_ok=True)
