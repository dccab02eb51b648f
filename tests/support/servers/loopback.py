"""Servers on loopback: run while a block does, quiet, and gone when it ends."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

HOST = "127.0.0.1"


class Server(ThreadingHTTPServer):
    """One whose clients may leave."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that left is no error."""


class QuietFiles(SimpleHTTPRequestHandler):
    """Files of a folder."""

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@contextmanager
def serving(server: TCPServer) -> Iterator[str]:
    """Address of a server that answers while the block runs."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def folder_server(root: Path) -> Server:
    """A server of the files under a folder."""
    return Server((HOST, 0), functools.partial(QuietFiles, directory=str(root)))


@contextmanager
def wsgi_server(application: Any, handler: type) -> Iterator[str]:
    """Address of a WSGI application; `handler` is werkzeug's class of request handlers."""
    from werkzeug.serving import make_server

    class Quiet(handler):
        def log(self, type: str, message: str, *args: Any) -> None:
            """Keep quiet."""

    made = make_server(HOST, 0, application, threaded=True, request_handler=Quiet)
    with serving(made) as address:
        yield address
