"""A worker process: Ctrl-C is its parent's affair, from its first instruction on."""

import os
import signal
import threading
import time

import nibabel as nib
import numpy as np

from mim3d.dataio.convert.job import Job
from mim3d.dataio.convert.pool import Worker, blocked
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.sources.source import Source


def test_ctrl_c_at_any_moment_of_its_start_leaves_it_and_prints_nothing(tmp_path, capfd):
    nib.save(nib.Nifti1Image(np.ones((5, 6, 7), np.int16), np.eye(4)), tmp_path / "a.nii")
    job = Job(Source("a", (str(tmp_path / "a.nii"),)), "a", (), str(tmp_path / "c"), Conversion())
    (tmp_path / "c").mkdir()
    for wait_s in (0.0, 0.02, 0.05, 0.2):
        worker = Worker()
        time.sleep(wait_s)
        os.kill(worker.process.pid, signal.SIGINT)
        worker.give(job, 1)
        assert worker.take().records
        worker.end()
    assert capfd.readouterr().err == ""


def test_a_ctrl_c_while_workers_start_still_reaches_the_parent():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with blocked(signal.SIGINT):
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            assert not seen
        assert seen
    finally:
        signal.signal(signal.SIGINT, before)
