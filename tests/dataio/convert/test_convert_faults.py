"""Interruptions of a conversion: killed at any write, disk full, a lost worker, two writers."""

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_disk import small_disk

from mim3d.dataio.convert import pool
from mim3d.dataio.convert.job import Job
from mim3d.dataio.convert.pool import Pool, Worker, run_jobs
from mim3d.dataio.convert.run import convert
from mim3d.dataio.convert.work import run_job
from mim3d.dataio.corpus import writer
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import read_manifest
from mim3d.dataio.corpus.names import TABLE, own_file
from mim3d.dataio.corpus.seen_files import SEEN
from mim3d.dataio.errors import CorpusError, StoreError
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.source import Source
from mim3d.dataio.storage.store import LocalStore


def tree_hash(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name != SEEN):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> list[Source]:
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    found = []
    for i in range(5):
        voxels = rng.integers(0, 500, (20 + i, 30, 40), np.int16)
        for name, content in (("i", voxels), ("l", (voxels > 250).astype(np.uint8))):
            nib.save(nib.Nifti1Image(content, np.eye(4)), folder / f"{name}{i}.nii.gz")
        label = {"seg": str(folder / f"l{i}.nii.gz")}
        found.append(Source(f"v{i}", (str(folder / f"i{i}.nii.gz"),), label))
    (folder / "bad.nii.gz").write_bytes((folder / "i0.nii.gz").read_bytes()[:-20])
    return [*found, Source("bad", (str(folder / "bad.nii.gz"),))]


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("whole") / "c"
    convert(made, root, workers=1)
    return tree_hash(root)


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs but what the kernel does."""


def die_at(monkeypatch, n: int, error: BaseException) -> list[int]:
    """Raise `error` at the n-th write of any kind and at all later ones: the process is gone.

    An interrupted open leaves half a file. What is returned counts the writes.
    """
    count = [0]
    # Commits by the clock would be more writes on a slow machine, and another number every time.
    monkeypatch.setattr(writer, "COMMIT_INTERVAL_S", 1e9)

    def hook(original):
        def wrapped(*args, **kwargs):
            count[0] += 1
            if count[0] >= n:
                raise error
            return original(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(Path, "unlink", hook(Path.unlink))
    for name in ("rename", "replace", "mkdir"):  # which those of Path call
        monkeypatch.setattr(os, name, hook(getattr(os, name)))
    original_open, plain_open = Path.open, os.open

    def opened(path, mode="r", *args, **kwargs):
        if "r" in mode:
            return original_open(path, mode, *args, **kwargs)
        count[0] += 1
        if count[0] == n:
            with original_open(path, mode, *args, **kwargs) as file:
                file.write(b"half of wh" if "b" in mode else "half")
        if count[0] >= n:
            raise error
        return original_open(path, mode, *args, **kwargs)

    def opened_plainly(path, flags, *args, **kwargs):
        if not flags & os.O_CREAT:
            return plain_open(path, flags, *args, **kwargs)
        count[0] += 1
        if count[0] == n:
            Path(path).write_bytes(b"half of wh")
        if count[0] >= n:
            raise error
        return plain_open(path, flags, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(os, "open", opened_plainly)
    return count


def n_writes(made, tmp_path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        count = die_at(patch, 10**9, Killed())
        convert(made, tmp_path / "count", workers=1)
        return count[0]


@pytest.mark.slow
def test_killed_at_every_write_a_rerun_completes_the_same_corpus(made, tmp_path):
    made = [made[0], made[-1], made[1]]
    total = n_writes(made, tmp_path)
    whole = tree_hash(tmp_path / "count")
    assert total > 30
    for n in range(1, total + 1):
        root = tmp_path / f"c{n}"
        with pytest.MonkeyPatch.context() as patch:
            die_at(patch, n, Killed())
            with pytest.raises(Killed):
                convert(made, root, workers=1)
        convert(made, root, workers=1)
        assert tree_hash(root) == whole, f"killed at write {n}"


@pytest.mark.slow
def test_a_full_disk_stops_with_the_remedy_and_keeps_what_is_done(made, tmp_path):
    made = made[:2]
    total = n_writes(made, tmp_path)
    whole = tree_hash(tmp_path / "count")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for n in range(3, total + 1, 5):
        root = tmp_path / f"c{n}"
        with pytest.MonkeyPatch.context() as patch:
            die_at(patch, n, full)
            with pytest.raises((StoreError, OSError), match=r"No space|make room"):
                convert(made, root, workers=1)
        convert(made, root, workers=1)
        assert tree_hash(root) == whole, f"full at write {n}"


def test_a_disk_that_is_really_full(made, whole, tmp_path):
    with small_disk(tmp_path / "disk", "220k") as disk:
        with pytest.raises(StoreError, match="make room and run the same command again"):
            convert(made, disk / "c", workers=2)
        done = (
            len(read_manifest(disk / "c")) if own_file(disk / "c", "manifest.jsonl").exists() else 0
        )
        assert done < 5
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        convert(made, disk / "c", workers=1)
        assert tree_hash(disk / "c") == whole


SCRIPT = """
import pickle, sys
from mim3d.dataio.convert import convert
convert(pickle.load(open(sys.argv[1], "rb")), sys.argv[2], workers=int(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_sigkill_at_any_moment(made, whole, tmp_path, workers):
    import pickle

    (tmp_path / "sources").write_bytes(pickle.dumps(made))
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "sources"), str(tmp_path / "c")]
    began = time.monotonic()
    subprocess.run([*words, str(workers)], check=True, capture_output=True)
    duration = time.monotonic() - began
    for i, share in enumerate(np.linspace(0.3, 1.0, 8)):
        root = tmp_path / f"c{i}"
        process = subprocess.Popen(
            [*words[:-1], str(root), str(workers)], stdout=subprocess.DEVNULL
        )
        time.sleep(duration * share)
        process.send_signal(signal.SIGKILL)
        process.wait()
        convert(made, root, workers=1)
        time.sleep(0.5)  # a worker that outlived its parent would spoil the tree about now
        assert tree_hash(root) == whole


def test_a_half_written_corpus_opens_as_far_as_it_goes(made, tmp_path):
    convert(made, tmp_path / "c", workers=1)
    own_file(tmp_path / "c", TABLE).unlink()
    lines = own_file(tmp_path / "c", "manifest.jsonl").read_bytes()
    own_file(tmp_path / "c", "manifest.jsonl").write_bytes(lines[: len(lines) * 2 // 3])
    corpus = Corpus.open(tmp_path / "c")
    assert 1 <= len(corpus.records) < 5
    with pytest.raises(CorpusError, match="run the same `mim3d convert` again"):
        _ = corpus.table


def test_a_second_writer_is_refused_and_a_dead_one_is_not_waited_for(made, tmp_path):
    store = LocalStore(tmp_path / "c")
    with store.lock(), pytest.raises(CorpusError, match=f"process {os.getpid()} on .* is writing"):
        convert(made[:1], tmp_path / "c", workers=1)
    (tmp_path / "c" / ".lock").write_text("process 1 on a machine that was switched off")
    convert(made[:1], tmp_path / "c", workers=1)
    assert not (tmp_path / "c" / ".lock").exists()


def test_a_lock_removed_in_between_is_noticed(tmp_path, monkeypatch):
    store = LocalStore(tmp_path / "c")
    original = fcntl.flock

    def flock(file, how):
        original(file, how)
        (tmp_path / "c" / ".lock").unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(CorpusError, match="is writing"), store.lock():
        pass


def test_a_worker_that_dies_costs_a_retry_and_then_its_source(made, tmp_path, monkeypatch):
    # The second job's worker is killed from outside each time it is given it; it is stopped before,
    # or it might have done the job by then.
    jobs = [Job(s, s.id, (), str(tmp_path / "c"), Conversion()) for s in made[:4]]
    original = Worker.give

    def give(self, job, tries):
        if job.id == "v1":
            self.process.send_signal(signal.SIGSTOP)
        original(self, job, tries)
        if job.id == "v1":
            self.process.kill()

    monkeypatch.setattr(pool, "AHEAD", 0)
    monkeypatch.setattr(Worker, "give", give)
    results = {result.id: result for result in run_jobs(jobs, 2)}
    assert results["v1"].rejections[0].code == "worker-lost"
    assert "--workers 1" in results["v1"].rejections[0].detail
    assert all(results[name].records for name in ("v0", "v2", "v3"))


def test_a_worker_that_dies_once_loses_nothing(made, whole, tmp_path, monkeypatch):
    killed = []
    original = Pool._hand_out

    def hand_out(self):
        original(self)
        for worker in self._busy():
            if not killed and worker.jobs and worker.jobs[0][0].id == "v2":
                killed.append(worker.process.pid)
                worker.process.kill()

    monkeypatch.setattr(Pool, "_hand_out", hand_out)
    convert(made, tmp_path / "c", workers=2)
    assert killed and tree_hash(tmp_path / "c") == whole


def test_what_a_lost_worker_was_writing_is_gone_when_the_run_ends(made, whole, tmp_path):
    def runner(jobs, workers):
        (tmp_path / "c" / ".v2.77.partial").mkdir()
        (tmp_path / "c" / ".v2.77.partial" / "zarr.json").write_text("half")
        yield from map(run_job, jobs)

    convert(made, tmp_path / "c", runner=runner)
    assert tree_hash(tmp_path / "c") == whole


def test_a_failing_store_ends_the_run_from_a_worker_too(made, tmp_path):
    jobs = [Job(s, "../out", (), str(tmp_path / "c"), Conversion()) for s in made[:2]]
    with pytest.raises(StoreError, match="not a key inside"):
        list(run_jobs(jobs, 2))
    assert not (tmp_path / "out").exists()


def test_an_unforeseen_failure_is_one_source_only(made, tmp_path, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError("a reader's bug")

    monkeypatch.setattr("mim3d.dataio.convert.work.read_images", broken)
    result = run_job(Job(made[0], "a", (), str(tmp_path), Conversion()))
    assert result.rejections[0].code == "unforeseen"
    assert "ZeroDivisionError" in result.rejections[0].detail


def test_leftovers_are_tidied_and_nothing_else(made, tmp_path):
    root = tmp_path / "c"
    convert(made[:2], root, workers=1)
    (root / ".v0.123.partial").mkdir()
    (root / ".manifest.jsonl.77.partial").write_text("half")
    (root / "v0").rename(root / "v7")
    for name in ("notes", "image.zarr"):
        (root / name).mkdir()
        (root / name / "zarr.json").write_text('{"attributes": {"mine": 1}}')
    (root / "loop").symlink_to(root)
    assert {p.code for p in verify(root).problems} >= {"orphan", "missing"}
    convert(made[:2], root, workers=1)
    assert (
        not list(root.glob(".*.partial")) and not (root / "v7").exists() and (root / "v0").exists()
    )
    assert (root / "image.zarr").exists() and (root / "loop").is_symlink()
