"""A folder of results has one writer at a time, whoever dies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mim3d.engine.errors import TrainingError
from mim3d.engine.runs.folder_lock import LOCK, sole_writer

HOLD = """
import sys, time
from pathlib import Path
from mim3d.engine.runs.folder_lock import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def start_holder(folder: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "held"
    return holder


@pytest.mark.slow
def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    holder = start_holder(tmp_path / "run")
    try:
        with (
            pytest.raises(TrainingError, match=f"process {holder.pid} on .* is writing to it"),
            sole_writer(tmp_path / "run"),
        ):
            pytest.fail("two writers")
    finally:
        holder.kill()
        holder.wait()
    with sole_writer(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).read_text().startswith(f"process {os.getpid()} ")


def test_the_lock_is_free_after_use_and_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), sole_writer(tmp_path):
        raise ValueError("inside")
    with sole_writer(tmp_path), sole_writer(tmp_path / "cell"):
        pass
    with (
        sole_writer(tmp_path),
        pytest.raises(TrainingError, match="name another --out"),
        sole_writer(tmp_path),
    ):
        pytest.fail("two writers")
