"""A damaged manifest or root: the same convert again mends it, as the message says."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mim3d.bench.corpora import anatomy_like
from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.names import MANIFEST, TABLE, own_file
from mim3d.dataio.corpus.seen_files import SEEN
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.source import Source
from mim3d.engine.commands.cli import main

RECIPE = Conversion(chunk=24, window=(0.0, 700.0))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, list[Source]]:
    import nibabel as nib

    folder = tmp_path_factory.mktemp("repair")
    sources = []
    for i in range(3):
        file = folder / f"v{i}.nii.gz"
        nib.save(nib.Nifti1Image(anatomy_like((30, 26, 28), i), np.eye(4)), file)
        sources.append(Source(f"v{i}", (str(file),)))
    convert(sources, folder / "c.zarr", RECIPE, workers=1)
    return folder / "c.zarr", sources


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return shutil.copytree(made[0], tmp_path / "c.zarr")


def content(root: Path) -> dict[str, bytes]:
    return {
        file.relative_to(root).as_posix(): file.read_bytes()
        for file in root.rglob("*")
        if file.is_file() and file.name != SEEN
    }


def flip(file: Path, at: int, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(data)


@pytest.mark.parametrize("at", [9, 700, -1])
@pytest.mark.parametrize("name", [MANIFEST, "zarr.json"])
def test_the_same_convert_again_mends_any_flip(made, copy, name, at):
    file = own_file(copy, MANIFEST) if name == MANIFEST else copy / name
    flip(file, at if at < 0 else at % file.stat().st_size, 1)
    assert verify(copy).problems
    if (name, at) != ("zarr.json", 9):  # where Zarr's own part is hit, not ours
        with pytest.raises(CorpusError, match="mim3d"):
            _ = Corpus.open(copy).records
    report = convert(made[1], copy, RECIPE, workers=1)
    assert report.n_quarantined == 0
    assert content(copy) == content(made[0])
    assert verify(copy).problems == ()


def test_every_byte_of_the_root_may_be_damaged(made, copy):
    file = copy / "zarr.json"
    whole = file.read_bytes()
    own_file(copy, TABLE).unlink()  # which repeats what stands in the root
    for at in range(0, len(whole), 7):
        file.write_bytes(whole)
        flip(file, at, at % 8)
        convert([], copy, RECIPE, workers=1)
        own_file(copy, TABLE).unlink()
        assert file.read_bytes() == whole


@pytest.mark.parametrize("with_table", [True, False])
def test_a_damaged_root_of_other_options_is_not_taken_for_these(made, copy, with_table):
    whole = (copy / "zarr.json").read_bytes()
    flip(copy / "zarr.json", 100, 2)
    if not with_table:  # which tells what stood in the root
        own_file(copy, TABLE).unlink()
    before = (copy / "zarr.json").read_bytes()
    with pytest.raises(CorpusError):
        convert(made[1], copy, Conversion(chunk=24), workers=1)
    assert (copy / "zarr.json").read_bytes() == (whole if with_table else before)


@pytest.mark.parametrize("at", [400, -1])
def test_a_volume_that_cannot_be_made_anew_is_told(made, copy, at, capsys):
    """The damaged line is v2's, and its source is no longer among those given."""
    flip(own_file(copy, MANIFEST), -400 if at > 0 else at, 1)
    report = convert(made[1][:2], copy, RECIPE, workers=1)
    assert [(r.path, r.code) for r in report.rejections] == [("v2", "lost")]
    assert [r.id for r in Corpus.open(copy).records] == ["v0", "v1"]


def test_verify_numbers_the_line_once_and_knows_the_chunk_side(copy, capsys):
    flip(own_file(copy, MANIFEST), 300, 1)
    flip(copy / "zarr.json", 60, 1)
    problems = verify(copy).problems
    assert {p.code for p in problems} >= {"bad-line", "bad-root"}
    assert not {p.code for p in problems} & {"bad-index", "bad-chunk", "bad-hash"}
    (found,) = [p.detail for p in problems if p.code == "bad-line"]
    assert found.startswith(f"{MANIFEST}, line 1: ")
    assert main(["verify", str(copy)]) == 3
    assert "line 1, line 1" not in capsys.readouterr().out
