"""A store that takes its time: files of a folder by HTTP ranges, each answer late and slow.

    python -m mim3d.bench.remote.server FOLDER LATENCY_S BYTES_PER_S

prints its port. Every answer begins a latency after its request and comes at a bandwidth of its
own (0: at once), as an object store's does. One thread and one loop over epoll: an answer costs
about 25 us, so that the reader is what is measured; `/usage` tells requests, bytes and CPU seconds.
"""

import mmap
import os
import re
import resource
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

RANGE = re.compile(rb"\r\nrange: *bytes=(\d*)-(\d*)", re.IGNORECASE)
PIECE_BYTES = 1 << 18  # that a bandwidth is told by
REQUEST_BYTES = 1 << 13  # taken in at a time
HEAD = b'Content-Length: %d\r\nETag: "1"\r\nLast-Modified: Sat, 21 Nov 2026 00:00:00 GMT\r\n\r\n'
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
READ, BOTH = selectors.EVENT_READ, selectors.EVENT_READ | selectors.EVENT_WRITE


@dataclass(eq=False)
class Connection:
    """A client's connection: what it sent of its next request, and what it is yet to be sent."""

    sock: socket.socket
    received: bytes = b""
    out: deque[memoryview] = field(default_factory=deque)
    is_open: bool = True
    is_full: bool = False
    """Whether the kernel takes no more for now."""


class Usage(NamedTuple):
    """What a server did so far."""

    requests: int
    nbytes: int
    cpu_s: float


class SlowServer:
    """Serves files below `root`; each answer after `latency_s`, at `bytes_per_s` (0: at once)."""

    def __init__(self, root: Path, latency_s: float, bytes_per_s: float) -> None:
        self.root, self.latency_s, self.bytes_per_s = root, latency_s, bytes_per_s
        self.requests = self.sent = 0
        self._files: dict[bytes, memoryview | None] = {}
        self._due: list[tuple[float, int, Connection, list[memoryview]]] = []
        self._pushed = 0
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self._listener.setblocking(False)
        self._selector.register(self._listener, READ)
        self.port = int(self._listener.getsockname()[1])

    def serve(self) -> None:
        """Answer for ever."""
        while True:
            wait = max(self._due[0][0] - time.perf_counter(), 0) if self._due else None
            for key, mask in self._selector.select(wait):
                if key.data is None:
                    self._accept()
                elif mask & selectors.EVENT_WRITE:
                    self._send(key.data)
                else:
                    self._receive(key.data)
            now = time.perf_counter()
            while self._due and self._due[0][0] <= now:
                _, _, connection, parts = heappop(self._due)
                connection.out.extend(parts)
                self._send(connection)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(sock, READ, Connection(sock))

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(REQUEST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
        connection.received += data
        while (end := connection.received.find(b"\r\n\r\n")) >= 0:
            request, connection.received = (
                connection.received[: end + 2],
                connection.received[end + 4 :],
            )
            self._answer(connection, request)

    def _answer(self, connection: Connection, request: bytes) -> None:
        method, path, _ = request.split(b" ", 2)
        due = time.perf_counter() + self.latency_s
        if path == b"/usage":
            used = resource.getrusage(resource.RUSAGE_SELF)
            text = f"{self.requests} {self.sent} {used.ru_utime + used.ru_stime}".encode()
            head = b"HTTP/1.1 200 OK\r\n" + HEAD % len(text)
            self._push(0.0, connection, [memoryview(head + text)])
            return
        self.requests += 1
        content = self._file(path)
        if content is None:
            self._push(due, connection, [memoryview(MISSING)])
            return
        asked = RANGE.search(request)
        begin, end = span_of(asked, len(content))
        status = b"200 OK\r\n"
        if asked:
            span = (begin, end - 1, len(content))
            status = b"206 Partial Content\r\nContent-Range: bytes %d-%d/%d\r\n" % span
        head = memoryview(b"HTTP/1.1 " + status + HEAD % (end - begin))
        if method == b"HEAD":
            self._push(due, connection, [head])
            return
        self.sent += end - begin
        first = begin + (PIECE_BYTES if self.bytes_per_s else end - begin)
        self._push(due, connection, [head, content[begin : min(first, end)]])
        for at in range(first, end, PIECE_BYTES):
            later = due + (at - begin) / self.bytes_per_s
            self._push(later, connection, [content[at : min(at + PIECE_BYTES, end)]])

    def _file(self, path: bytes) -> memoryview | None:
        if path not in self._files:
            file = self.root / path.decode().lstrip("/")
            self._files[path] = mapped(file) if file.is_file() else None
        return self._files[path]

    def _push(self, due: float, connection: Connection, parts: list[memoryview]) -> None:
        if not self.latency_s and due <= time.perf_counter():
            connection.out.extend(parts)
            self._send(connection)
            return
        self._pushed += 1  # in this order where two are due at once
        heappush(self._due, (due, self._pushed, connection, parts))

    def _send(self, connection: Connection) -> None:
        out = connection.out
        if not connection.is_open:
            return
        try:
            while out:
                sent = connection.sock.sendmsg(list(out)[:8])
                while out and sent >= len(out[0]):
                    sent -= len(out.popleft())
                if sent:
                    out[0] = out[0][sent:]
        except BlockingIOError:
            self._wait_for_room(connection, is_full=True)
        except OSError:
            self._close(connection)
        else:
            self._wait_for_room(connection, is_full=False)

    def _wait_for_room(self, connection: Connection, *, is_full: bool) -> None:
        if is_full != connection.is_full:
            connection.is_full = is_full
            self._selector.modify(connection.sock, BOTH if is_full else READ, connection)

    def _close(self, connection: Connection) -> None:
        if connection.is_open:
            connection.is_open = False
            self._selector.unregister(connection.sock)
            connection.sock.close()


def span_of(found: re.Match[bytes] | None, size: int) -> tuple[int, int]:
    """First byte, and the one after the last, of what a request's range wants of `size` bytes."""
    if found is None:
        return 0, size
    if not found[1]:
        return max(size - int(found[2]), 0), size
    return min(int(found[1]), size), min(int(found[2]) + 1, size) if found[2] else size


def mapped(file: Path) -> memoryview:
    """A file's bytes."""
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")


@contextmanager
def slow_server(root: Path, latency_s: float, bytes_per_s: float) -> Iterator[str]:
    """Address of a server in a process of its own, which ends with the block."""
    words = [str(root), str(latency_s), str(bytes_per_s)]
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, *words], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.kill()
        server.wait()


def usage(address: str) -> Usage:
    """What a server did so far."""
    with urlopen(f"{address}/usage") as answer:
        requests, nbytes, cpu_s = answer.read().split()
    return Usage(int(requests), int(nbytes), float(cpu_s))


if __name__ == "__main__":
    folder, latency, bandwidth = sys.argv[1:]
    server = SlowServer(Path(folder), float(latency), float(bandwidth))
    print(server.port, flush=True)
    server.serve()
