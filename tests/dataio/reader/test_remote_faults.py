"""A store that fails now and then: what passes after retries, and what is told when it does not."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from loopback import HOST, Server, serving

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.remote import fetcher

CONFIG = LoaderConfig(crop_size=(24, 24, 24), micro_batch=3, threads=2)


@dataclass
class Faults:
    """The first `times` requests for each range of what is `at` fail in the way of `kind`."""

    kind: str = ""
    times: int = 0
    at: str = "/0/c."
    seen: Counter = field(default_factory=Counter)
    lock: Any = field(default_factory=threading.Lock)

    def due(self, request: str) -> bool:
        """Count a request; whether it is one that fails."""
        with self.lock:
            self.seen[request] += 1
            return self.seen[request] <= self.times


def handler_of(root: Path, faults: Faults) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            file = root / self.path.lstrip("/")
            if not file.is_file():
                self.answer(404, b"")
                return
            data = file.read_bytes()
            wanted = self.headers.get("Range")
            fails = faults.at in self.path and faults.due(f"{self.path} {wanted}")
            if fails and faults.kind.isdigit():
                self.answer(int(faults.kind), b"try again")
            elif fails and faults.kind == "drop":
                self.close_connection = True
            elif wanted is None:
                self.answer(200, data, cut=fails)
            else:
                first, last = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
                part = data[first : last + 1]
                span = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
                self.answer(206, part, {"Content-Range": span}, cut=fails)

        def answer(
            self, code: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False
        ) -> None:
            self.send_response(code)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Last-Modified", "Sat, 21 Nov 2026 00:00:00 GMT")
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = cut

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    return Handler


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("faults") / "c.zarr"
    return corpus_of(root, [anatomy_like((40, 40, 40), i) for i in range(3)])


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def address(local, faults) -> Iterator[str]:
    """Address of the corpus on a server that fails as `faults` says."""
    with serving(Server((HOST, 0), handler_of(local.parent, faults))) as address:
        yield f"{address}/c.zarr"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["500", "503", "drop", "cut"])
def test_crops_come_through_faults_that_pass(address, local, faults, kind):
    faults.kind, faults.times = kind, 2
    with Loader(local, CONFIG) as here, Loader(address, CONFIG) as there:
        for _ in range(2):
            assert torch.equal(next(here).image, next(there).image)
        assert there.metrics()["remote_retries"] >= 2
    assert max(faults.seen.values()) >= 3


@pytest.mark.parametrize("kind", ["503", "drop", "cut"])
def test_a_store_that_stays_down_is_told(address, faults, kind, monkeypatch):
    faults.kind, faults.times = kind, 10**6
    monkeypatch.setattr(fetcher, "RETRY_SHARE", 0.005)  # of two minutes
    # The pauses alone use it up: on a slow machine a request may take as long.
    still = SimpleNamespace(monotonic=lambda: 0.0, perf_counter=time.perf_counter)
    monkeypatch.setattr(fetcher, "time", still)
    with (
        Loader(address, CONFIG) as loader,
        pytest.raises(CorpusError, match=r"c\.zarr/v000\d/0/c.0.0.0: .*after \d+ attempts"),
    ):
        next(loader)
    assert max(faults.seen.values()) > 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zarr.json", "chunks.table"])
@pytest.mark.parametrize("kind", ["503", "drop", "cut"])
def test_the_table_comes_through_faults_that_pass(address, local, faults, kind, name):
    faults.kind, faults.times, faults.at = kind, 2, name
    with Loader(local, CONFIG) as here, Loader(address, CONFIG) as there:
        assert torch.equal(next(here).image, next(there).image)
    assert set(faults.seen.values()) == {3}
