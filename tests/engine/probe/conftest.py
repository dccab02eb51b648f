"""Corpora and runs that probe."""

import dataclasses

import pytest
from small_run import make_corpus, small_config

from mim3d.engine.probe.config import ProbeConfig


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """Eight generated subjects with labels."""
    return make_corpus(tmp_path_factory.mktemp("labelled"), subjects=8)


@pytest.fixture(scope="session")
def classes(labelled):
    """A table of two classes of them."""
    file = labelled.parent / "classes.csv"
    rows = [f"phantom_{i:03d},{'old' if i % 2 else 'young'}" for i in range(8)]
    file.write_text("subject,target\n" + "\n".join(rows) + "\n")
    return file


@pytest.fixture
def probed(labelled):
    """A configuration that probes every two steps."""

    def make(method="mae", changes=None, **probe):
        config = small_config(labelled, method, **(changes or {}))
        given = {"corpus": str(labelled), "every": 2, "windows": 3, "patches": 16, **probe}
        return dataclasses.replace(config, probe=ProbeConfig(**given))

    return make
