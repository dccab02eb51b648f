"""A folder over http, with ranges, that keeps silent while its gate is closed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from loopback import HOST, Server, serving


@dataclass
class Gate:
    """Answers pass while it is `open`; `held` is set once one was held back."""

    open: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def close(self) -> None:
        """Hold back what is asked from now on."""
        self.held.clear()
        self.open.clear()

    def pass_through(self) -> None:
        """Wait as a request does."""
        if not self.open.is_set():
            self.held.set()
            self.open.wait()


def handler_of(root: Path, gate: Gate) -> type[BaseHTTPRequestHandler]:
    """Requests for files under a folder."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            gate.pass_through()
            file = root / self.path.lstrip("/")
            data = file.read_bytes() if file.is_file() else b""
            code, headers, part = 200 if file.is_file() else 404, {}, data
            if (wanted := self.headers.get("Range")) and code == 200:
                first, last = (int(n) for n in wanted.removeprefix("bytes=").split("-"))
                code, part = 206, data[first : last + 1]
                span = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
                headers = {"Content-Range": span}
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Last-Modified", "Sat, 21 Nov 2026 00:00:00 GMT")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(part)

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    return Handler


@contextmanager
def stalling_server(root: Path) -> Iterator[Gate]:
    """Serve `root` on a free port; the gate is open."""
    gate = Gate()
    gate.open.set()
    with serving(Server((HOST, 0), handler_of(root, gate))) as gate.address:
        try:
            yield gate
        finally:
            gate.open.set()
