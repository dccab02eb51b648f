"""Sources that `mim3d convert` makes a corpus of, and makes it of again."""

import shutil
from pathlib import Path

import pytest
from labelled_folder import labelled_folder


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A folder of three labelled images."""
    return labelled_folder(tmp_path_factory.mktemp("made"))


@pytest.fixture
def place(made, tmp_path, monkeypatch) -> Path:
    """The current folder, with sources in `raw`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "raw")
    return tmp_path
