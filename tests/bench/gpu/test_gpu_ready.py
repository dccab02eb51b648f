"""The checks before a GPU's minutes are spent: all sound here, and a broken part is named."""

import json

import pytest

from mim3d.bench.gpu import checks, ready
from mim3d.bench.gpu.installed import found

CHECKS = [
    "triton", "inductor", "process group", "loops in C", "corpus", "decoding on the device",
    "crops from the host", "turned crops", "DALI",
]  # fmt: skip


def outcomes(file) -> dict[str, str]:
    checks = json.loads(file.read_text())["ready"]["checks"]
    return {name: check["outcome"] for name, check in checks.items()}


def test_every_check_passes_where_everything_works(tmp_path):
    assert ready.main(tmp_path / "ready.json") == 0
    assert outcomes(tmp_path / "ready.json") == dict.fromkeys(CHECKS, "ok")


def test_a_broken_part_is_named_and_the_others_are_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checks, "LARGEST_ERROR", -1.0)
    monkeypatch.setattr(checks, "corpus_of", lambda *_: (_ for _ in ()).throw(OSError("full")))
    assert ready.main(tmp_path / "ready.json") == 3
    told = outcomes(tmp_path / "ready.json")
    assert told["corpus"] == "failed: OSError: full"
    assert told["decoding on the device"].startswith("failed: CorpusError")
    assert told["crops from the host"].startswith("failed: CorpusError")
    assert told["turned crops"].startswith("failed: CorpusError")
    assert told["DALI"].startswith("failed: ValueError: images differ by up to")
    assert told["triton"] == told["process group"] == "ok"
    assert "corpus: failed: OSError: full" in capsys.readouterr().out


def test_what_is_not_installed_is_absent_and_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "found", lambda module: module != "nvidia.dali")
    assert ready.main(tmp_path / "ready.json") == 0
    assert outcomes(tmp_path / "ready.json")["DALI"] == "absent: no DALI"


@pytest.mark.parametrize(
    ("module", "there"), [("torch", True), ("nvidia.nothing", False), ("no.such", False)]
)
def test_modules_are_found_or_not(module, there):
    assert found(module) is there
