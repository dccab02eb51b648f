"""Labels whose numbers are grey levels: told, and numbered 1, 2, ... on demand."""

import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import manifest_bytes, read_manifest
from mim3d.dataio.corpus.names import MANIFEST, own_file
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.inspect.doubts import corpus_doubts
from mim3d.dataio.reader.corpus import opened_corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.engine.commands.cli import main

RNG = np.random.default_rng(4)
SHAPE = (9, 8, 7)
PARTS = RNG.integers(0, 4, SHAPE)


def cohort(root: Path, values: list[int], n: int = 2) -> list[str]:
    """Words that convert people with a mask each; the first lacks the last value."""
    table = np.array([0, *values], np.uint8 if max(values) < 256 else np.int16)
    for number in range(n):
        folder = root / "data" / f"p{number}"
        folder.mkdir(parents=True)
        parts = PARTS % len(table)
        parts = (
            np.where(parts == len(values), 0, parts) if number == 0 and len(values) > 1 else parts
        )
        images = {"t1": RNG.normal(300, 90, SHAPE).astype(np.int16), "mask": table[parts]}
        for name, voxels in images.items():
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"{name}.nii.gz")
    return ["convert", str(root / "data"), str(root / "c"), "--workers", "1"]


def stored(corpus: str, row: int) -> np.ndarray:
    with opened_corpus(corpus) as (opened, shards):
        reader = ShardReader(opened.table, opened.root, shards)
        (voxels,) = reader.read_box(reader.table.label_row(row, "seg"), (0, 0, 0), (7, 8, 9))
        reader.close()
    return voxels.transpose(2, 1, 0)


@pytest.mark.parametrize("values", [[63, 126, 189], [10, 150, 250], [205, 420, 500], [17]])
def test_grey_levels_are_told_and_numbered_by_the_words_of_the_message(tmp_path, capsys, values):
    words = cohort(tmp_path, values)
    assert main(words) == 3
    told = capsys.readouterr().out
    assert main([*words, "--accept-doubts"]) == 0
    option = re.search(r"--label-values (\S+) into a new corpus", told)
    assert option is not None
    words[2] += "2"
    assert main([*words, "--label-values", option[1]]) == 0
    np.testing.assert_array_equal(stored(words[2], 1), PARTS % (len(values) + 1))
    present = [set(record.labels[0].classes) for record in read_manifest(Path(words[2]))]
    assert present[1] == {0, *range(1, len(values) + 1)}
    assert len(values) == 1 or present[0] == {0, *range(1, len(values))}  # numbered alike


@pytest.mark.parametrize("values", [[1, 2, 3], [1, 2, 4], [2, 5], [3], [255]])
def test_classes_near_each_other_are_not_told(tmp_path, values):
    assert main(cohort(tmp_path, values)) == 0


def test_a_value_that_is_not_told_costs_the_label_and_its_message_says_which(tmp_path, capsys):
    words = [*cohort(tmp_path, [63, 126, 189]), "--label-values", "63,126"]
    assert main(words) == 3
    assert "holds 189, which is none of --label-values (63, 126); add it" in capsys.readouterr().out
    assert [len(record.labels) for record in read_manifest(Path(words[2]))] == [1, 0]
    words = [*cohort(tmp_path / "x", [63, 126, 189]), "--label-values", "seg=63,126"]
    assert main([*words, "--ignore-label", "189"]) == 0
    label = read_manifest(Path(words[2]))[1].labels[0]
    assert set(label.classes) == {0, 1, 2} and (label.ignore, label.n_ignored > 0) == (189, True)


@pytest.mark.parametrize(
    "word",
    [
        "",
        "a,b",
        "1,1",
        "0,3",
        "seg=",
        ",".join(map(str, range(1, 300))),
        "1,2/2,3",
        "1/",
        "/",
        "1//2",
    ],
)
def test_values_that_are_none_are_refused(word):
    with pytest.raises(Mim3dError, match="label values"):
        Conversion(label_values=(word,))


def test_a_mask_of_255_that_an_earlier_version_ignored_is_told(tmp_path):
    words = cohort(tmp_path, [255])
    assert main(words) == 0
    corpus = Path(words[2])
    records = read_manifest(corpus)
    older = []
    for record in records:
        (label,) = record.labels
        ignored = {"classes": {0: label.classes[0]}, "ignore": 255, "n_ignored": label.classes[1]}
        older.append(
            type(record)(
                **{
                    **vars(record),
                    "warnings": (),
                    "labels": (type(label)(**{**vars(label), **ignored}),),
                }
            )
        )
    own_file(corpus, MANIFEST).write_bytes(manifest_bytes(older))
    (doubt,) = corpus_doubts(older)
    assert "holds no class, and" in doubt and "voxels of 255, which count as ignored" in doubt
    words[2] += "2"
    assert main(words) == 0 and corpus_doubts(read_manifest(Path(words[2]))) == ()


def test_an_image_taken_for_a_label_is_told_by_its_many_classes(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    voxels = RNG.integers(0, 900, SHAPE).astype(np.int16)
    for name in ("case1", "case1_liver"):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "data" / f"{name}.nii.gz")
    words = ["convert", str(tmp_path / "data"), str(tmp_path / "c"), "--workers", "1"]
    assert main(words) == 3
    assert "1 label with more than 200 classes" in capsys.readouterr().out
    (tmp_path / "data" / "list.csv").write_text("image\ncase1.nii.gz\ncase1_liver.nii.gz\n")
    words = ["convert", str(tmp_path / "data/list.csv"), str(tmp_path / "d"), "--accept-doubts"]
    assert main(words) == 0 and len(read_manifest(tmp_path / "d")) == 2


def people(root: Path, *values: tuple[int, ...]) -> list[str]:
    """Words that convert people whose masks hold 0 and these values."""
    for number, of_mask in enumerate(values):
        table = np.array([0, *of_mask], np.int16)
        folder = root / "data" / f"p{number:02}"
        folder.mkdir(parents=True)
        images = {"t1": RNG.normal(300, 90, SHAPE).astype(np.int16)}
        images["mask"] = table[np.minimum(PARTS, len(of_mask))]
        for name, voxels in images.items():
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"{name}.nii.gz")
    return ["convert", str(root / "data"), str(root / "c"), "--workers", "1"]


def classes(words: list[str]) -> list[set[int]]:
    return [{*record.labels[0].classes} - {0} for record in read_manifest(Path(words[2]))]


def options(printed: str, named: str) -> list[list[str]]:
    """Options that a warning offers, of the line with these words."""
    (line,) = [line for line in printed.splitlines() if named in line]
    return [found.split() for found in re.findall(r"(--[a-z]+-[^;]*?) into a new corpus", line)]


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ([(63, 126), (63, 126), (1, 2)], [{1, 2}] * 3),
        ([(1,), (128,), (1,)], [{1}] * 3),
        ([(1, 2), (3, 4)], [{1, 2}] * 2),
        ([(1, 2, 3), (10, 20), (100, 200, 300)], [{1, 2, 3}, {1, 2}, {1, 2, 3}]),
        ([(63, 126), (255,), (1, 2)], [{1, 2}, {1}, {1, 2}]),
        ([(63, 126, 255), (1, 2)], [{1, 2}] * 2),
    ],
)
def test_labels_numbered_in_several_ways_are_told_and_made_one(tmp_path, capsys, values, stored):
    words = people(tmp_path, *values)
    assert main(words) == 3
    (option,) = options(capsys.readouterr().out, "ways that no volume mixes")
    assert main([*words, "--accept-doubts"]) == 0
    words[2] += "2"
    assert main([*words, *option]) == 0
    assert classes(words) == stored


@pytest.mark.parametrize(
    ("values", "odd", "ignored"),
    [
        ([(-1, 2), (1, 2)], -1, [{2}, {1, 2}]),
        ([(-1,)], -1, [set()]),
        ([(1, 2)] * 9 + [(1, 2, 200)], 200, [{1, 2}] * 10),
    ],
)
def test_an_odd_number_is_told_and_ignored_or_numbered(tmp_path, capsys, values, odd, ignored):
    words = people(tmp_path, *values)
    assert main(words) == 3
    told = capsys.readouterr().out
    ignoring, renumbering = options(told, "label 'seg' has ")
    assert ignoring == ["--ignore-label", str(odd)]
    assert main([*words, "--accept-doubts"]) == 0
    words[2] += "2"
    assert main([*words, *ignoring]) == 0 and classes(words) == ignored
    words[2] += "3"
    assert main([*words, *renumbering]) == 0
    every = sorted({number for of_mask in values for number in of_mask})
    as_class = {number: place for place, number in enumerate(every, start=1)}
    assert classes(words) == [{as_class[number] for number in of_mask} for of_mask in values]


def test_several_numbers_below_0_are_told_beside_a_value_to_ignore(tmp_path, capsys):
    words = [*people(tmp_path, (-2, -1, 1), (1, 2, 9)), "--ignore-label", "9"]
    assert main(words) == 3
    (option,) = options(capsys.readouterr().out, "below 0 (-2, -1)")
    assert option == ["--label-values", "seg=-2,-1,1,2", "--ignore-label", "9"]
    words[2] += "2"
    assert main([*words[:-2], *option]) == 0
    assert classes(words) == [{1, 2, 3}, {3, 4}]


def test_grey_levels_beside_255_are_numbered_by_the_words_of_the_message(tmp_path, capsys):
    """255 above few classes is ignored, which the numbering must go on saying."""
    words = people(tmp_path, (63, 126, 255), (63, 126))
    assert main(words) == 3
    (option,) = options(capsys.readouterr().out, "numbers up to 126")
    words[2] += "2"
    assert main([*words, *option]) == 0 and classes(words) == [{1, 2}] * 2


@pytest.mark.parametrize(
    "values",
    [
        [(1, 2)] * 9 + [(1, 2, 3)],  # a rare class
        [(1, 2)] * 9 + [(1, 2, 12)],
        [(1,), (2,), (1,)],  # a kind of lesion a person
        [(2,), (3,), (4,), (5,)],
        [(1, 2), ()],
        [(1, 2), (2, 3), (3, 4)],  # parts of a body
        [(1, 2), (3,), (2, 3)],
    ],
)
def test_numbers_that_volumes_do_not_share_are_common(tmp_path, values):
    assert main(people(tmp_path, *values)) == 0


@pytest.mark.parametrize("values", [[(1, 2)] * 9 + [(1, 2, 200)], [(1, 2), (3, 4)]])
def test_numbers_that_the_source_names_are_not_told(tmp_path, values):
    words = people(tmp_path, *values)
    assert main(words) == 3
    records = read_manifest(Path(words[2]))
    (doubt,) = corpus_doubts(records)
    assert "label 'seg'" in doubt
    names = {number: f"part {number}" for of_mask in values for number in of_mask}
    named = [
        replace(record, labels=tuple(replace(label, class_names=names) for label in record.labels))
        for record in records
    ]
    assert corpus_doubts(named) == ()


def test_a_file_that_mixes_two_lists_is_an_error(tmp_path, capsys):
    words = [*people(tmp_path, (1, 2), (1, 126)), "--label-values", "1,2/63,126"]
    assert main(words) == 3
    told = capsys.readouterr().out
    assert "holds 1 and 126, which are of two lists of --label-values; write them in one" in told
    assert [len(record.labels) for record in read_manifest(Path(words[2]))] == [1, 0]
