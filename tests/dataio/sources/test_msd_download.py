"""Decathlon tasks: from a server on loopback, from the cache, and the errors without a network."""

import hashlib
import tarfile

import pytest
from loopback import folder_server, serving
from monai.apps import DecathlonDataset

from mim3d.dataio.errors import SourceError
from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.msd_download import fetch_task, full_name
from mim3d.dataio.sources.phantom import make_cohort

TASK = "Task04_Hippocampus"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A task's archive on loopback, registered as MONAI's resource."""
    make_cohort(tmp_path / "made" / TASK, 2)
    served = tmp_path / "served"
    served.mkdir()
    with tarfile.open(served / f"{TASK}.tar", "w") as archive:
        archive.add(tmp_path / "made" / TASK, TASK)
    digest = hashlib.md5((served / f"{TASK}.tar").read_bytes()).hexdigest()
    monkeypatch.setitem(DecathlonDataset.md5, TASK, digest)
    running = folder_server(served)
    with serving(running) as address:
        monkeypatch.setitem(DecathlonDataset.resource, TASK, f"{address}/{TASK}.tar")
        yield running


def test_a_task_is_fetched_once_and_discovered(tmp_path, server, monkeypatch):
    monkeypatch.setenv("MIM3D_CACHE", str(tmp_path / "cache"))
    found = discover("msd:task04")
    assert (found.layout, len(found.sources)) == ("msd", 2)
    server.shutdown()
    assert discover(f"msd:{TASK}").sources == found.sources
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {TASK, f"{TASK}.tar"}


def test_half_a_folder_is_replaced_and_a_wrong_hash_refused(tmp_path, server, monkeypatch):
    (tmp_path / "cache" / TASK / "imagesTr").mkdir(parents=True)
    assert (fetch_task(TASK, tmp_path / "cache") / "dataset.json").is_file()
    monkeypatch.setitem(DecathlonDataset.md5, TASK, "0" * 32)
    with pytest.raises(SourceError, match="did not arrive whole"):
        fetch_task(TASK, tmp_path / "other")
    assert not (tmp_path / "other" / TASK).exists()


def test_without_a_network_one_line_tells_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(DecathlonDataset.resource, TASK, "http://127.0.0.1:9/none.tar")
    with pytest.raises(SourceError, match="cannot be downloaded") as error:
        fetch_task(TASK, tmp_path)
    assert str(tmp_path / f"{TASK}.tar") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("expected", ["Task04_Hippocampus", "task04", "4", "04", "hippocampus"])
def test_names_of_tasks(expected):
    assert full_name(expected, list(DecathlonDataset.resource)) == TASK


def test_unknown_tasks_name_the_known_ones():
    with pytest.raises(SourceError, match="Task10_Colon"):
        full_name("Task99", list(DecathlonDataset.resource))
