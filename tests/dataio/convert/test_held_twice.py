"""An image that a volume of the corpus holds is not held again in another order or number."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim3d.dataio.corpus.manifest import read_manifest
from mim3d.engine.commands.cli import main


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> None:
    """Two people with three images each in `raw`, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        for number, kind in enumerate(("t1", "t2", "pd")):
            save(f"raw/p{i}/p{i}_{kind}.nii.gz", 10 * i + number)


def save(path: str, seed: int, frames: int = 1) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    shape = (14, 15, 16) + (frames,) * (frames > 1)
    voxels = np.random.default_rng(seed).integers(0, 900, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


def converted(source: str, *more: str, corpus: str = "c") -> int:
    return main(["convert", source, corpus, "--workers", "1", *more])


def content() -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in Path("c").rglob("*") if f.is_file()}


def images() -> list[list[str]]:
    return [[Path(path).name for path in r.sources] for r in read_manifest(Path("c"))]


def table(*rows: str) -> str:
    columns = ",".join(f"image_{i}" for i in range(rows[0].count(",") + 1))
    Path("t.csv").write_text("\n".join([columns if "," in rows[0] else "image", *rows]) + "\n")
    return "t.csv"


def refused(capsys, source: str, *more: str) -> str:
    """The error, which is that of the dry run, where nothing is written."""
    before, errors = content(), []
    for words in (["--dry-run"], []):
        capsys.readouterr()
        assert converted(source, *more, *words) == 2
        errors.append(capsys.readouterr().err)
        assert content() == before
    assert errors[0] == errors[1]
    return errors[0]


OTHERS = [["t2", "t1"], ["t1"], ["t2", "pd"], ["t1", "t2", "pd"], []]


@pytest.mark.parametrize("channels", OTHERS, ids=" ".join)
def test_other_channels_of_the_same_images_are_refused(capsys, channels):
    assert converted("raw", "--channels", "t1", "t2") == 0
    error = refused(capsys, "raw", *(["--channels", *channels] if channels else []))
    first = Path("raw/p0/p0_t1.nii.gz").resolve(), Path("raw/p0/p0_t2.nii.gz").resolve()
    assert f"volume p0_p0 holds {first[0]}, {first[1]} in this order, and another" in error
    assert converted("raw", "--channels", "t1", "t2") == 0  # as the message says
    assert converted("raw", *(["--channels", *channels] if channels else []), corpus="new") == 0


def test_channels_where_each_image_was_a_volume_are_refused(capsys):
    assert converted("raw") == 0
    error = refused(capsys, "raw", "--channels", "t1", "t2")
    assert "p0_t1 holds " in error and "(2 such sources)" in error
    assert converted("raw") == 0 and len(images()) == 6


ROWS = ["raw/p0/p0_t1.nii.gz,raw/p0/p0_t2.nii.gz", "raw/p1/p1_t1.nii.gz,raw/p1/p1_t2.nii.gz"]


@pytest.mark.parametrize("way", ["order", "number", "link", "moved"])
def test_other_rows_of_a_table_are_refused(capsys, way):
    assert converted(table(*ROWS)) == 0
    rows = [",".join(reversed(row.split(","))) for row in ROWS]
    if way == "number":
        rows = [row.split(",")[0] for row in ROWS]
    if way == "link":
        Path("other").symlink_to("raw")
    if way == "moved":
        shutil.move("raw", "other")
    if way in ("link", "moved"):
        rows = [row.replace("raw", "other") for row in rows]
    error = refused(capsys, table(*rows))
    assert "or the same rows of a table, as before, or into a new corpus" in error
    shutil.move("other", "raw") if way == "moved" else None
    assert converted(table(*ROWS)) == 0 and len(images()) == 2


def test_a_file_whose_frames_are_volumes_is_no_channel(capsys):
    save("four/q.nii.gz", 5, frames=3)
    assert converted("four") == 0 and len(images()) == 3
    Path("t.csv").write_text("image_0,image_1\nfour/q.nii.gz,raw/p0/p0_t1.nii.gz\n")
    assert "volume q holds" in refused(capsys, "t.csv")


def test_one_list_may_hold_an_image_twice():
    rows = ["raw/p0/p0_t1.nii.gz,raw/p0/p0_t2.nii.gz", "raw/p0/p0_t1.nii.gz,raw/p0/p0_pd.nii.gz"]
    assert converted(table(rows[0])) == 0
    assert converted(table(*rows)) == 0 and len(images()) == 2
    assert converted(table(rows[1])) == 0 and len(images()) == 2


def test_a_corpus_that_has_them_twice_already_can_be_added_to():
    rows = [*ROWS, *(",".join(reversed(row.split(","))) for row in ROWS)]
    code = converted(table(*rows))
    assert converted("raw", "--channels", "t1", "t2") == code
    save("raw/p2/p2_t1.nii.gz", 21)
    save("raw/p2/p2_t2.nii.gz", 22)
    assert converted("raw", "--channels", "t1", "t2") == code and len(images()) == 5


def test_a_constant_stand_in_of_several_says_nothing():
    """Volumes whose files were moved, and a new one with the same empty modality."""
    for i in range(3):
        Path(f"raw/p{i}").mkdir(exist_ok=True)
        blank = nib.Nifti1Image(np.zeros((14, 15, 16), np.int16), np.eye(4))
        nib.save(blank, f"raw/p{i}/p{i}_blank.nii.gz")
    save("raw/p2/p2_t1.nii.gz", 21)
    rows = [f"raw/p{i}/p{i}_t1.nii.gz,raw/p{i}/p{i}_blank.nii.gz" for i in range(3)]
    assert converted(table(*rows[:2])) == 0
    shutil.move("raw/p0", "p0")
    shutil.move("raw/p1", "p1")
    assert converted(table(rows[2])) == 0 and len(images()) == 3


def test_what_prune_takes_out_does_not_stay():
    """A volume whose second image is gone, and its first alone."""
    assert converted("raw", "--channels", "t1", "t2") == 0
    for i in range(2):
        Path(f"raw/p{i}/p{i}_pd.nii.gz").unlink()
    Path("raw/p0/p0_t2.nii.gz").unlink()
    Path("t.csv").write_text(f"image_0,image_1\n{ROWS[1]}\n")
    Path("one.csv").write_text("image\nraw/p0/p0_t1.nii.gz\n")
    assert converted("one.csv") == 2
    assert converted("t.csv", "--prune") == 0 and len(images()) == 1
    assert converted("one.csv") == 0 and sorted(map(len, images())) == [1, 2]
