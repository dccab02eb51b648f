"""Writing a large file in blocks past the page cache, while the next block is made.

Direct I/O spares the copy into the page cache and leaves the cache to those who read; a thread
waits for the disk. Where the file system has no direct I/O, and for what is smaller than a block
or left after the last whole one, writes are plain.
"""

import errno
import fcntl
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from typing_extensions import Buffer

from mim3d.dataio.memory import scratch

BLOCK_BYTES = 2 << 20
DIRECT = getattr(os, "O_DIRECT", 0)


class BlockFile:
    """Takes parts of any size and writes them as blocks, two in turn; errors come with the next."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._blocks = [scratch(BLOCK_BYTES).data]
        self._used = 0
        self._writer: ThreadPoolExecutor | None = None
        self._written: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._writer is not None:  # no thread may write when the descriptor is closed
                self._writer.shutdown()

    def add(self, part: Buffer) -> None:
        """Append a part, copied when this returns."""
        rest = memoryview(part)
        while rest:
            n = min(len(rest), BLOCK_BYTES - self._used)
            self._blocks[0][self._used : self._used + n] = rest[:n]
            self._used += n
            rest = rest[n:]
            if self._used == BLOCK_BYTES:
                self._hand_over()

    def _hand_over(self) -> None:
        """Give a full block to the writing thread and go on with the other."""
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1)
            self._blocks.append(scratch(BLOCK_BYTES).data)
            set_direct(self._descriptor, True)
        self._wait()
        self._written = self._writer.submit(write_all, self._descriptor, self._blocks[0])
        self._blocks.reverse()
        self._used = 0

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()

    def _finish(self) -> None:
        self._wait()
        if self._writer is not None:
            set_direct(self._descriptor, False)
        write_all(self._descriptor, self._blocks[0][: self._used])


def write_file(path: str, parts: Iterable[Buffer]) -> None:
    """Make a file, or write it anew, of parts one after the other; a tuple holds small ones."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        if isinstance(parts, tuple):
            write_all(descriptor, memoryview(b"".join(parts)))
            return
        with BlockFile(descriptor) as blocks:
            for part in parts:
                blocks.add(part)
    finally:
        os.close(descriptor)


def set_direct(descriptor: int, wanted: bool) -> None:
    """Turn direct I/O on, where the file system has it, or off."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | DIRECT if wanted else flags & ~DIRECT)
    except OSError as error:
        if not wanted or error.errno != errno.EINVAL:
            raise


def write_all(descriptor: int, data: memoryview) -> None:
    """Write all of `data`; what a direct write cannot take, or only in part, is written plainly."""
    done = 0
    while done < len(data):
        try:
            done += os.write(descriptor, data[done:])
        except OSError as error:
            if error.errno != errno.EINVAL or not fcntl.fcntl(descriptor, fcntl.F_GETFL) & DIRECT:
                raise
            set_direct(descriptor, False)
            continue
        if done < len(data):
            set_direct(descriptor, False)
