"""Heartbeats, and whom the launcher names by them."""

import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest

from mim3d.engine.distributed import watch as watching
from mim3d.engine.distributed.heartbeat import (
    COMPUTING,
    FAILED,
    FOLDER,
    HEAD,
    LOST,
    PAGE,
    Beat,
    Heart,
    beat,
    read_beats,
)
from mim3d.engine.distributed.watch import RankWatch


@pytest.fixture
def process():
    """One that lives as long as the test, unless it is killed."""
    one = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield one
    one.kill()
    one.wait()


NOW = 1e6
"""By the clock of these tests, which stands still."""


def leave(folder, rank, process, step, doing, ago=0.0):
    """A heartbeat of another process."""
    Heart(folder / f"rank-{rank}").beat(doing, step)
    page = bytearray((folder / f"rank-{rank}").read_bytes())
    HEAD.pack_into(page, 0, process, NOW - ago, step, len(doing))
    (folder / f"rank-{rank}").write_bytes(page)


def verdict_of(folder, ranks, monkeypatch):
    """What is found where the grace is just over, by three looks."""
    looks, plain = threading.Semaphore(0), RankWatch._look

    def look(self):
        plain(self)
        looks.release()

    monkeypatch.setattr(RankWatch, "_look", look)
    monkeypatch.setattr(watching, "POLL_S", 0.05)
    monkeypatch.setattr(watching, "GRACE_S", 0.3)
    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: NOW + 0.4))
    watch = RankWatch(folder, ranks)
    assert all(looks.acquire(timeout=60) for _ in range(3))
    watch.close()
    return watch.verdict


def test_a_beat_is_read_as_it_was_left(tmp_path):
    heart = Heart(tmp_path / "rank-3")
    assert read_beats(tmp_path) == {}
    heart.beat("preparing")
    heart.beat(COMPUTING, 7)
    heart.beat("é" * 200)
    (found,) = read_beats(tmp_path).values()
    assert (found.rank, found.step) == (3, 7)
    assert set(found.doing[:-1]) == {"é"}
    assert time.monotonic() - found.time < 60
    assert (tmp_path / "rank-3").stat().st_size == PAGE
    assert Beat(0, 1, 0.0, 7, COMPUTING).where == "at step 7, computing"
    assert Beat(0, 1, 0.0, 0, "preparing").where == "preparing"


def test_nothing_is_left_without_a_launcher(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    beat(COMPUTING, 1)
    assert list(tmp_path.iterdir()) == []


def test_the_rank_that_says_nothing_is_named_and_killed(tmp_path, monkeypatch, process):
    psutil.Process(process.pid).suspend()
    deadline = time.monotonic() + 60
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    leave(tmp_path, 0, 1, 12, LOST)
    leave(tmp_path, 1, process.pid, 12, COMPUTING, ago=31)
    found = verdict_of(tmp_path, 2, monkeypatch)
    wanted = f"rank 1 of 2 hangs: at step 12, computing (process {process.pid} is stopped), for 31"
    assert found.startswith(wanted)
    assert process.wait(30) == -9


def test_a_rank_that_died_or_said_why_is_left_to_who_knows_more(tmp_path, monkeypatch, process):
    leave(tmp_path, 0, process.pid, 12, FAILED)
    leave(tmp_path, 1, process.pid, 12, LOST)
    assert verdict_of(tmp_path, 2, monkeypatch) == ""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    leave(tmp_path, 0, gone.pid, 12, COMPUTING)
    assert verdict_of(tmp_path, 2, monkeypatch) == ""
    assert process.poll() is None


def test_ranks_that_all_lost_one_another(tmp_path, monkeypatch):
    for rank in range(2):
        leave(tmp_path, rank, 1, 12, LOST)
    assert "all 2 ranks lost contact with one another" in verdict_of(tmp_path, 2, monkeypatch)


def test_a_step_that_takes_very_long_is_told_once(tmp_path, monkeypatch, process, capsys):
    monkeypatch.setattr(watching, "STILL_S", 100.0)
    leave(tmp_path, 0, process.pid, 12, COMPUTING, ago=150)
    leave(tmp_path, 1, process.pid, 11, "waiting for a batch", ago=160)
    assert verdict_of(tmp_path, 2, monkeypatch) == ""
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "mim3d: no rank has moved for 150 s: rank 1 at step 11, waiting for a batch; "
        "rank 0 at step 12, computing"
    )
