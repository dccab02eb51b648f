"""Finding NVIDIA's apex; each package here is a stand-in folder, none is imported."""

import pytest
import torch

from mim3d.engine.errors import ConfigError
from mim3d.engine.training.optim import apex_problem, load_apex


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def make_package(folder):
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('must not be imported to be found')\n")


def test_absent():
    assert "not installed" in (apex_problem() or "")
    with pytest.raises(ConfigError, match=r"github.com/NVIDIA/apex.*optim.impl torch"):
        load_apex("adamw")


def test_the_unrelated_package_is_told_apart(site):
    make_package(site / "apex")
    problem = apex_problem() or ""
    assert "unrelated authentication" in problem
    assert str(site / "apex") in problem
    assert "pip uninstall apex" in problem


def test_nvidias_without_its_extensions(site):
    make_package(site / "apex")
    make_package(site / "apex" / "multi_tensor_apply")
    assert "without its CUDA extensions" in (apex_problem() or "")


def test_nvidias_without_a_gpu(site, monkeypatch):
    make_package(site / "apex")
    make_package(site / "apex" / "multi_tensor_apply")
    (site / "amp_C.py").write_text("")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "need a CUDA device" in (apex_problem() or "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert apex_problem() is None
