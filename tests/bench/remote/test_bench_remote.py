"""The store that takes its time, and the bench on it at a tiny size."""

import time
from unittest import mock
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.bench.loader.crops import CROP
from mim3d.bench.remote.server import slow_server, usage
from mim3d.bench.remote.stage import main
from mim3d.bench.remote.streams import spans_of
from mim3d.dataio.reader.corpus import opened_corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.remote.fetcher import A_CALL, Fetcher
from mim3d.dataio.remote.limits import RemoteLimits

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


@pytest.mark.parametrize("start", [(0, 0, 0), (7, 16, 3), (32, 250, 270)])
def test_the_client_alone_asks_for_what_the_loader_asks_for(tmp_path, start):
    root = corpus_of(tmp_path / "c", [anatomy_like((128, 384, 384), 0)])
    fetcher = Fetcher(None, "s3://nowhere", RemoteLimits())
    asked: list[tuple[str, np.ndarray, np.ndarray]] = []
    with opened_corpus(str(root)) as (corpus, shards):
        reader = ShardReader(corpus.table, str(root), shards)
        with mock.patch.object(shards, "announce", lambda *words: asked.append(words)):
            reader.announce(0, start, CROP)
        found = spans_of(reader, 0, start)
    ((path, offsets, sizes),) = asked
    ticket = fetcher._ticket(path, offsets, sizes, A_CALL)
    assert len(found.begins) > 1
    assert (found.begins, found.ends) == (ticket.spans.begins, ticket.spans.ends)


@pytest.mark.slow
def test_everyone_reads_and_the_ratios_are_told(tmp_path, capsys):
    pytest.importorskip("tensorstore")
    np.save(tmp_path / "ct.npy", anatomy_like((112, 128, 112), 0))
    words = "--latency-ms 2 --rounds 1 --crops 16 --warm 8 --peers"
    figures = main([*words.split(), "--data", str(tmp_path), "--work", str(tmp_path)]).figures
    found = figures["latencies"]["2"]
    assert {"mim3d", "mim3d, local disk", "mim3d, resident"} < set(found["rounds"])
    assert len(found["rounds"]) == 8
    assert found["rounds"]["obstore, nothing decoded"][0]["requests"] > 1
    assert found["ratios"]["over_client"]["value"] > 0
    assert found["rounds"]["mim3d"][0]["requests"] > 1
    assert found["ratios"]["over_tensorstore"]["value"] > 0
    assert found["needed_bytes"] > 0
    assert "tensorstore, 512 requests" in capsys.readouterr().out
