"""Disks without room, and files that are no text: one line that names the place."""

import errno

import pytest
import torch
from small_disk import small_disk
from small_run import make_corpus, small_config

from mim3d.engine.commands import cli
from mim3d.engine.errors import CheckpointError
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.runs.files import read_json, read_jsonl
from mim3d.engine.runs.tensor_files import mapped_array, save_pickled, save_safetensors


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    run_pretrain(small_config(corpus, steps=1), out)
    return out


@pytest.fixture
def full(tmp_path):
    """A file system with room for a few files of no size."""
    with small_disk(tmp_path / "full", "8k") as place:
        (place / "filler").write_bytes(b"x" * 8192)
        yield place


def test_a_mapped_array_that_finds_no_room_is_one_too(full):
    with pytest.raises(OSError, match="No space left") as caught:
        mapped_array(full / "array", (3, 100, 100))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(full / "array"))


@pytest.mark.parametrize("save", [save_safetensors, save_pickled])
def test_tensors_that_find_no_room_are_an_error_of_the_system(full, save):
    with pytest.raises(OSError, match="No space left") as caught:
        save({"a": torch.zeros(100_000)}, full / "weights")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(full / "weights"))


def refused(words, capsys):
    assert cli.main([str(word) for word in words]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    return line


@pytest.mark.parametrize("form", ["safetensors", "nnunet"])
def test_export_names_the_place(full, run, form, capsys):
    suffix = "pth" if form == "nnunet" else "safetensors"
    line = refused(["export", run, form, full / f"w.{suffix}"], capsys)
    assert f"mim3d export: {full}" in line
    assert "cannot be written (No space left on device); make room there, or name another" in line


def test_compare_names_the_place(full, corpus, capsys):
    words = ["compare", "demo", "--data.corpus", corpus, "--labels", "2"]
    line = refused([*words, "--out", full / "study"], capsys)
    assert f"mim3d compare: {full / 'study'}" in line
    assert "No space left on device" in line


def test_the_figures_name_the_place(full, capsys):
    line = refused(["env", "--json", full / "figures.json"], capsys)
    assert f"mim3d env: {full}" in line
    assert "cannot be written (No space left on device)" in line


def test_a_card_that_is_no_text_is_named(run, tmp_path, capsys):
    for name in ("encoder.safetensors", "encoder.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    data = bytearray((tmp_path / "encoder.json").read_bytes())
    data[20] |= 0x80
    (tmp_path / "encoder.json").write_bytes(data)
    line = refused(["export", tmp_path, "safetensors", tmp_path / "w.safetensors"], capsys)
    assert f"{tmp_path / 'encoder.json'}: byte 20 is not UTF-8 text" in line


@pytest.mark.parametrize("read", [read_json, read_jsonl])
def test_text_that_is_none_is_named(tmp_path, read):
    (tmp_path / "rows").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CheckpointError, match=r"rows: byte 7 is not UTF-8 text"):
        read(tmp_path / "rows")
