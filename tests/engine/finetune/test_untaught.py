"""Classes that nothing teaches: gaps among the numbers, and those that no trained subject has."""

import re
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.commands import cli

SMALL = """
    --vit.crop-size 8 8 8 --vit.patch-size 4 4 4 --vit.width 12 --vit.depth 1 --vit.heads 1
    --feature-size 4 --steps 1 --eval-every 1 --global-batch 1 --overlap 0 --device cpu
""".split()  # noqa: SIM905  read as words of a command
CLASSES = {"a": (1, 3), "b": (1, 3), "c": (1, 3), "d": (1, 3, 4)}


@pytest.fixture(scope="module")
def gaps(tmp_path_factory) -> tuple[list[str], Path]:
    """Four people with classes 1 and 3, one with class 4 beside: how it is converted, and the
    corpus."""
    root = tmp_path_factory.mktemp("gaps")
    draw = np.random.default_rng(0)
    rows = ["image,label,subject"]
    for name, classes in CLASSES.items():
        label = np.zeros((12, 12, 12), np.uint8)
        for number in classes:
            label[2 * number : 2 * number + 2] = number
        image = (label * 100 + draw.integers(0, 50, label.shape)).astype(np.int16)
        for kind, voxels in (("image", image), ("label", label)):
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), root / f"{name}_{kind}.nii.gz")
        rows.append(f"{name}_image.nii.gz,{name}_label.nii.gz,{name}")
    (root / "t.csv").write_text("\n".join(rows) + "\n")
    words = ["convert", str(root / "t.csv"), str(root / "c.zarr"), "--workers", "1"]
    assert cli.main(words) == 0
    return words, root / "c.zarr"


def finetuned(corpus: Path, out: Path, splits: str) -> int:
    words = ["finetune", "demo", "--data.corpus", str(corpus), "--out", str(out), *SMALL]
    return cli.main([*words, *splits.split()])


def test_a_class_that_is_scored_and_not_trained_on_is_a_warning(gaps, tmp_path, capsys):
    splits = "--train a b --validation c --test d"
    assert finetuned(gaps[1], tmp_path / "run", splits) == 3
    out, err = capsys.readouterr()
    line = "class 4 is scored (test), and none of the 2 subjects trained on has it"
    assert f"warning: {line}" in out and line in out.replace(f"warning: {line}", "", 1) + err
    assert "class 1 is scored" not in out + err
    assert finetuned(gaps[1], tmp_path / "run", splits) == 3  # finished, and told again
    assert finetuned(gaps[1], tmp_path / "taught", "--train a d --validation b --test c") == 0


def test_a_gap_among_the_numbers_is_told_and_its_remedy_closes_it(gaps, tmp_path, capsys):
    convert, corpus = gaps
    assert finetuned(corpus, tmp_path / "run", "--train d a --validation b --test c") == 0
    out = capsys.readouterr().out
    assert "class 2 of label 'seg': in no volume of the corpus" in out
    assert "class 2 does not occur" not in out
    option = re.findall(r"with (--label-values \S+) numbers", out)[0]
    assert option == "--label-values seg=1,3,4"
    new = tmp_path / "new.zarr"
    assert cli.main([*convert[:2], str(new), *convert[3:], *shlex.split(option)]) == 0
    classes = {k for r in Corpus.open(new).records for label in r.labels for k in label.classes}
    assert classes == {0, 1, 2, 3}
    assert finetuned(new, tmp_path / "dense", "--train d a --validation b --test c") == 0
    assert "in no volume of the corpus" not in capsys.readouterr().out


TABLES = {
    "unknown": "class 'unknown' of t.csv may mean that nothing is known (b)",
    "-9": "class '-9' of t.csv may mean that nothing is known (b)",
}


@pytest.mark.parametrize("word", TABLES)
def test_classes_that_may_be_none_and_names_in_capitals_are_warned_of(gaps, tmp_path, capsys, word):
    def run(name: str, rows: str) -> int:
        file = tmp_path / "t.csv"
        file.write_text("subject,target\n" + rows)
        words = ["finetune", "demo", "--data.corpus", str(gaps[1]), *SMALL, "--head", "classify"]
        splits = "--train a b --validation c --test d".split()  # noqa: SIM905
        targets = ["--data.targets", str(file), "--out", str(tmp_path / name)]
        return cli.main([*words, *splits, *targets])

    assert run("one", f"a,0\nb,{word}\nc,0\nd,0\nC,0\n") == 3
    out = capsys.readouterr().out
    assert f"warning: {TABLES[word]}" in out
    assert "capitals" not in out  # C is another one: c has a target of its own
    assert run("two", f"a,0\nb,is {word}\nc,0\nd,0\n") == 0
