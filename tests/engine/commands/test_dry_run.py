"""A dry run tells what the run tells, ends as it ends, and writes nothing."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim3d.engine.commands.cli import main

pytestmark = pytest.mark.usefixtures("place")


def converted(*words: str) -> int:
    return main(["convert", *words, "--workers", "1"])


def content(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def lines(printed: str) -> list[str]:
    """What is said of subjects, of what is doubted and of what is left out."""
    kept = re.findall(r"(?m)^\d+ volumes? of .*$|^(?:note|warning): .*$|^  .*$", printed)
    head = [
        re.sub(r", all in .*:", ":", line) for line in printed.splitlines() if "left out" in line
    ]
    return head + kept


def both(capsys, *words: str) -> tuple[int, str]:
    """Exit code and output of a run, which its dry run had told before."""
    before = content(".")
    capsys.readouterr()
    dry = converted(*words, "--dry-run")
    foretold = capsys.readouterr().out
    assert content(".") == before
    code = converted(*words)
    printed = capsys.readouterr().out
    assert lines(foretold) == lines(printed)
    assert dry == code
    return code, printed


def table(*rows: str, columns: str = "image,label,subject", name: str = "t.csv") -> str:
    Path("raw", name).write_text("\n".join([columns, *rows]) + "\n")
    return f"raw/{name}"


def test_a_label_whose_file_is_gone(capsys):
    assert converted("raw", "c") == 0
    Path("raw/P1_seg.nii.gz").unlink()
    code, printed = both(capsys, "raw", "c")
    assert code == 3 and "keeps the volume it has (--accept-losses converts" in printed
    code, printed = both(capsys, "raw", "c", "--accept-losses")  # as the message says
    assert code == 3 and "was converted without it" in printed
    assert both(capsys, "raw", "c")[0] == 0


def test_a_label_that_became_bad(capsys):
    assert converted("raw", "c") == 0
    Path("raw/P1_seg.nii.gz").write_bytes(b"nothing of the kind")
    code, printed = both(capsys, "raw", "c")
    assert code == 3 and "keeps the volume it has" in printed
    assert both(capsys, "raw", "d")[0] == 3


def test_a_mask_of_a_merged_label_that_is_gone(capsys):
    for i in range(2):
        folder = Path(f"organs/P{i}")
        folder.mkdir(parents=True)
        for name, file in {"ct": "", "liver_mask": "_seg", "spleen_mask": "_seg"}.items():
            shutil.copy(f"raw/P{i}{file}.nii.gz", folder / f"{name}.nii.gz")
    Path("map.json").write_text('{"liver_mask": 1, "spleen_mask": 2}')
    words = ["organs", "c", "--merge-labels", "map.json"]
    first = converted(*words)
    Path("organs/P1/spleen_mask.nii.gz").unlink()
    code, printed = both(capsys, *words)
    assert code == 3 and first in (0, 3) and "spleen_mask.nii.gz: no such file" in printed


def test_one_image_of_two_people(capsys):
    row = "P0.nii.gz,P0_seg.nii.gz"
    code, printed = both(capsys, table(f"{row},A", f"{row},B"), "c")
    assert code == 3 and "with subject 'A' and 'B': the first counts, leave one" in printed
    code, printed = both(capsys, table(f"{row},B", "P0.nii.gz,,B"), "new")
    assert code == 3 and f"labels 'seg ({Path('raw/P0_seg.nii.gz').resolve()})' and" in printed
    assert both(capsys, table(f"{row},B"), "newer")[0] == 0  # as the message says


def test_one_label_of_two_people(capsys):
    rows = "P0.nii.gz,P0_seg.nii.gz,A", "P1.nii.gz,P0_seg.nii.gz,B"
    code, printed = both(capsys, table(*rows), "c")
    assert code == 3 and "1 label of several subjects' images" in printed
    assert both(capsys, table(*rows), "c", "--accept-doubts")[0] == 0


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_an_image_that_is_a_link_to_another(capsys, link: Callable[[str, str], None]):
    link(str(Path("raw/P0.nii.gz").resolve()), "raw/P7.nii.gz")
    for corpus in ("c", "c", "new"):
        code, printed = both(capsys, "raw", corpus)
        assert code == 3 and "P7.nii.gz: is the same file as" in printed
    assert not Path("nowhere").exists()
    assert converted("raw", "nowhere", "--dry-run") == 3 and not Path("nowhere").exists()


def test_subjects_as_they_will_be(capsys):
    assert converted("raw", "c", "--dataset", "D") == 0
    capsys.readouterr()
    assert converted("raw", "c", "--dry-run") == 0
    assert re.search(r"(?m)^P0 .* D/P0$", capsys.readouterr().out)
    assert both(capsys, "raw", "c")[0] == 0
    assert both(capsys, "raw", "c", "--dataset", "E")[0] == 3


def test_ids_as_they_will_be(capsys):
    assert converted("raw", "c") == 0
    Path("more").mkdir()
    nib.save(
        nib.Nifti1Image(np.arange(4096, dtype=np.int16).reshape(16, 16, 16), np.eye(4)),
        "more/P0.nii",
    )
    capsys.readouterr()
    assert converted("more", "c", "--dry-run") == 3
    id = re.search(r"(?m)^(P0--\w{8}) ", capsys.readouterr().out)
    assert both(capsys, "more", "c")[0] == 3
    assert id is not None and Path("c", id[1]).is_dir()


def test_what_was_removed(capsys):
    assert converted("raw", "c") == 0
    assert main(["remove", "c", "--subject", "P1"]) == 0
    code, printed = both(capsys, "raw", "c")
    assert code == 3 and "'P1' was removed on" in printed
    assert both(capsys, "raw", "c", "--accept-doubts")[0] == 3


def test_doubts_of_volumes_that_stay(capsys):
    shutil.copy("raw/P0.nii.gz", "raw/Q0.nii.gz")
    assert converted("raw", "c") == 3
    code, printed = both(capsys, "raw", "c")
    assert code == 3 and "of the same content under several subjects" in printed
    assert both(capsys, table("P1.nii.gz,P1_seg.nii.gz,P1"), "c")[0] == 3


def test_new_files_that_go_by_names_beside_declared_ones(capsys):
    away = [shutil.move(file, "..") for file in list(Path("raw").glob("P2*"))]
    assert converted("raw", "c", "--subject", "P") == 0
    for file in away:
        shutil.move(file, "raw")
    code, printed = both(capsys, "raw", "c")
    assert code == 3 and "go by names" in printed


def test_a_header_that_disagrees_with_itself(capsys):
    image = nib.Nifti1Image(np.arange(4096, dtype=np.int16).reshape(16, 16, 16), np.eye(4))
    image.set_sform(np.diag([2, 2, 2, 1]), code=1)
    image.set_qform(np.eye(4), code=1)
    nib.save(image, "raw/P9.nii.gz")
    code, printed = both(capsys, "raw", "c")
    assert code == 3 and "disagree with themselves" in printed
    assert both(capsys, "raw", "new", "--believe", "sform")[0] == 0  # as the message says


def test_values_of_a_label_that_is_not_there(capsys):
    assert both(capsys, "raw", "c", "--label-values", "tumour=1")[0] == 3
    assert both(capsys, "raw", "c", "--label-values", "tumour=1", "--accept-doubts")[0] == 0


@pytest.mark.parametrize("frames", ["one label", "a label each"])
def test_frames_that_may_be_modalities(capsys, frames):
    voxels = np.random.default_rng(1).integers(0, 900, (16, 17, 18, 3)).astype(np.int16)
    label = (voxels > 500).astype(np.uint8)
    Path("four").mkdir()
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), "four/p1.nii.gz")
    label = label[..., 0] if frames == "one label" else label
    nib.save(nib.Nifti1Image(label, np.eye(4)), "four/p1_seg.nii.gz")
    expected = 3 if frames == "one label" else 0
    for _ in range(2):
        assert both(capsys, "four", "c")[0] == expected


def test_a_lost_folder_of_own_files(capsys):
    assert converted("raw", "c") == 0
    for file in ("P1", "P1_seg", "P2_seg"):
        Path(f"raw/{file}.nii.gz").unlink()
    shutil.rmtree("c/mim3d")
    code, printed = both(capsys, "raw", "c")
    assert code == 3 and "kept as P1--lost" in printed and "kept as P2--lost" in printed
    assert both(capsys, "raw", "c")[0] == 3
