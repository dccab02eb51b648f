"""The store that takes its time, and the bench on it at a tiny size."""

import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from mim3d.bench.corpora import anatomy_like
from mim3d.bench.remote.server import slow_server, usage
from mim3d.bench.remote.stage import main

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    (tmp_path / "none").write_bytes(b"")
    return tmp_path


def got(address: str, span: str | None = None, method: str = "GET") -> tuple[int, bytes]:
    headers = {"Range": f"bytes={span}"} if span else {}
    with urlopen(Request(address, headers=headers, method=method)) as answer:
        return answer.status, answer.read()


def test_it_answers_as_a_store_does(folder):
    with slow_server(folder, 0.0, 0.0) as address:
        assert got(f"{address}/a") == (200, CONTENT)
        assert got(f"{address}/a", "5-9") == (206, CONTENT[5:10])
        assert got(f"{address}/a", "1048570-") == (206, CONTENT[-6:])
        assert got(f"{address}/a", "-7") == (206, CONTENT[-7:])
        assert got(f"{address}/a", method="HEAD") == (200, b"")
        assert got(f"{address}/none") == (200, b"")
        with pytest.raises(HTTPError, match="404"):
            got(f"{address}/b")
        used = usage(address)
    assert used.requests == 7
    assert used.nbytes == len(CONTENT) + 5 + 6 + 7


def test_no_answer_comes_before_its_time(folder):
    with slow_server(folder, 0.2, 4e6) as address:
        began = time.perf_counter()
        assert got(f"{address}/a", "0-9")[1] == CONTENT[:10]
        assert time.perf_counter() - began >= 0.2
        began = time.perf_counter()
        assert got(f"{address}/a")[1] == CONTENT
        assert time.perf_counter() - began >= 0.2 + 3 * (1 << 18) / 4e6


@pytest.mark.slow
def test_everyone_reads_and_the_ratios_are_told(tmp_path, capsys):
    pytest.importorskip("tensorstore")
    np.save(tmp_path / "ct.npy", anatomy_like((112, 128, 112), 0))
    words = "--latency-ms 2 --rounds 1 --crops 16 --warm 8 --peers"
    figures = main([*words.split(), "--data", str(tmp_path), "--work", str(tmp_path)]).figures
    found = figures["latencies"]["2"]
    assert {"mim3d", "mim3d, local disk", "mim3d, resident"} < set(found["rounds"])
    assert len(found["rounds"]) == 8
    ours, client = (found["rounds"][name][0] for name in ("mim3d", "obstore, nothing decoded"))
    assert client["requests"] == pytest.approx(ours["requests"], rel=0.3)
    assert found["ratios"]["over_client"]["value"] > 0
    assert found["rounds"]["mim3d"][0]["requests"] > 1
    assert found["ratios"]["over_tensorstore"]["value"] > 0
    assert found["needed_bytes"] > 0
    assert "tensorstore, 512 requests" in capsys.readouterr().out
