"""The conversion bench at a tiny size: every job runs and the figures hang together."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mim3d.bench.convert.peers import PEERS
from mim3d.bench.convert.stage import main, run_job
from mim3d.bench.convert.summary import met
from mim3d.bench.convert.table_open import measure_table
from mim3d.bench.convert.volumes import found_files
from mim3d.bench.other_work import OtherWork, busy_seconds, own_seconds
from mim3d.dataio.sources.phantom import make_cohort


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    cohort = make_cohort(tmp_path_factory.mktemp("bench") / "cohort", 2)
    return found_files(cohort / "imagesTr")


@pytest.mark.slow
def test_the_stage_prints_ratios(files, tmp_path, capsys):
    source = str(tmp_path)
    (tmp_path / "a.nii.gz").symlink_to(files[0])
    options = ["--source", source, "--rounds", "1", "--copies", "2", "--entries", "50"]
    figures = main(options).figures
    assert set(figures["ratios"]) == set(figures["targets_met"])
    assert figures["jobs"]["mim3d"]["cpu_s"] > 0
    assert figures["jobs"]["mim3d"]["bytes_out"] > 1000
    assert figures["floor_s"]["floor"] <= figures["floor_s"]["isal"] + figures["floor_s"]["encode"]
    assert figures["start_up_cpu_s"] > 0
    assert figures["chunk_table"]["n"] == 50
    told = capsys.readouterr().out
    assert "script_over_mim3d_cpu" in told
    assert "are start-up" in told
    assert "chunk table of 50 volumes" in told


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PEERS))
def test_every_peer_writes_the_volumes(name, files, tmp_path):
    measured = run_job(name, files, tmp_path)
    assert measured.bytes_out > 10_000
    assert measured.cpu_s > 0


def test_a_failing_job_and_an_empty_source_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"none\.nii\.gz"):
        run_job("script", [str(tmp_path / "none.nii.gz")], tmp_path)
    with pytest.raises(ValueError, match=r"no \.nii\.gz"):
        found_files(tmp_path)


def test_work_of_others_is_told_from_ones_own():
    burn = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.6: pass"]
    with OtherWork():
        before = own_seconds()
        subprocess.run(burn, check=True)
        used = own_seconds() - before
    assert used >= 0.6
    began = time.monotonic()
    with OtherWork() as other:
        stranger = subprocess.Popen(burn)
        until = time.monotonic() + 400
        while Path(f"/proc/{stranger.pid}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() < until
            time.sleep(0.02)
    passed = time.monotonic() - began
    stranger.wait()
    assert other.share is not None
    # At least what the stranger used: the kernel counts in hundredths, and others may work too.
    assert other.share * (os.cpu_count() or 1) * passed > 0.5


def test_where_linux_does_not_tell_nothing_is_claimed(tmp_path):
    assert busy_seconds(tmp_path / "none") is None
    (tmp_path / "stat").write_text("cpu  100 0 100 5000 7 0 0 100 0 0\ncpu0 1 2 3\n")
    assert busy_seconds(tmp_path / "stat") == 300 / os.sysconf("SC_CLK_TCK")


def test_targets_have_a_direction():
    assert met("script_over_mim3d_cpu", 2.5)
    assert not met("script_over_mim3d_cpu", 1.5)
    assert met("mim3d_over_floor_cpu", 1.2)
    assert not met("peak_over_largest_volume", 3.5)


def test_the_synthetic_table_is_a_table(tmp_path):
    from mim3d.dataio.corpus.chunk_table import ChunkTable

    figures = measure_table(300, tmp_path)
    table = ChunkTable.open(tmp_path / "table.zarr")
    assert figures["n"] == table.n_volumes == 300
    assert table.volume_id(7) == "volume-0000007"
    assert table.index("volume-0000299") == 299
    assert table.subject(8) == "sub-0000004"
    first, count = (int(table.arrays[14][k]) for k in ("first_chunk", "n_chunks"))
    np.testing.assert_array_equal(table.chunks[first : first + count], table.chunks[:count])
