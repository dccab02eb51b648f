"""Label files as people have them: turned, rounded, a mask per organ, with voxels to ignore."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.manifest import read_manifest
from mim3d.dataio.errors import SourceError
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.reader.corpus import opened_corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.options import SourceOptions
from mim3d.dataio.sources.source import Source
from mim3d.engine.commands.cli import main

RNG = np.random.default_rng(0)
SHAPE = (9, 8, 7)
CLASSES = RNG.integers(0, 3, SHAPE).astype(np.uint8)


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None, **keywords) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine, **keywords), path)
    return str(path)


def image(path: Path, affine: np.ndarray | None = None) -> str:
    return save(path, RNG.normal(300, 90, SHAPE).astype(np.int16), affine)


def stored_label(corpus: Path, id: str) -> np.ndarray:
    """The label `seg` of a volume, z y x."""
    with opened_corpus(str(corpus)) as (opened, shards):
        reader = ShardReader(opened.table, opened.root, shards)
        row = opened.table.label_row(opened.table.index(id), "seg")
        (voxels,) = reader.read_box(row, (0, 0, 0), reader.array(row).shape)
        reader.close()
    return voxels


def converted(tmp_path: Path, label: str, picture: str, **facts):
    source = Source("a", (picture,), {"seg": label}, **facts)
    report = convert([source], tmp_path / "c", workers=1)
    (record,) = read_manifest(tmp_path / "c")
    stored = stored_label(tmp_path / "c", "a") if record.labels else np.empty(0)
    return report, record, stored


TURNS = [(0, 1, 2), (2, 0, 1), (1, 0, 2)]


@pytest.mark.parametrize("axes", TURNS)
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_a_label_in_other_axes_is_turned_exactly(tmp_path, axes, flips):
    base = np.array([[2, 0.1, 0, 5], [-0.1, 2.5, 0, -7], [0, 0, 3, 9], [0, 0, 0, 1.0]])
    turned = CLASSES.transpose(axes)[tuple(slice(None, None, f) for f in flips)]
    affine = base.copy()
    for to, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        affine[:3, to] = base[:3, axis] * flip
        if flip < 0:
            affine[:3, 3] += base[:3, axis] * (SHAPE[axis] - 1)
    label = save(tmp_path / "l.nii", np.ascontiguousarray(turned), affine)
    report, record, stored = converted(tmp_path, label, image(tmp_path / "i.nii", base))
    assert not report.rejections and np.array_equal(stored.transpose(2, 1, 0), CLASSES)
    is_turned = (axes, flips) != ((0, 1, 2), (1, 1, 1))
    assert any("turned from" in found for found in record.warnings) == is_turned


def test_a_label_that_lies_elsewhere_is_not_turned_into_place(tmp_path):
    moved = np.diag([-1.0, 1, 1, 1])  # flipped, and not moved back
    label = save(tmp_path / "l.nii", CLASSES, moved)
    report, record, _ = converted(tmp_path, label, image(tmp_path / "i.nii"))
    assert [r.code for r in report.rejections] == ["other-grid"] and not record.labels


def test_classes_a_scaling_took_digits_from_are_rounded_and_told(tmp_path):
    label = save(tmp_path / "l.nii", CLASSES.astype(np.float64), dtype=np.int16)
    _, record, stored = converted(tmp_path, label, image(tmp_path / "i.nii"))
    assert np.array_equal(stored.transpose(2, 1, 0), CLASSES)
    assert any("off whole numbers are rounded" in found for found in record.warnings)


@pytest.mark.parametrize(("off", "kept"), [(9e-4, True), (2e-3, False), (0.5, False)])
def test_what_is_further_off_is_no_class(tmp_path, off, kept):
    voxels = CLASSES.astype(np.float32)
    voxels[0, 0, 0] += off
    label = save(tmp_path / "l.nii", voxels)
    report, record, _ = converted(tmp_path, label, image(tmp_path / "i.nii"))
    assert bool(record.labels) == kept == (not report.rejections)


@pytest.mark.parametrize(
    ("value", "facts", "ignored"),
    [
        (255, {}, True),
        (3, {"ignore": {"seg": 3}}, True),
        (254, {}, False),
        (3, {}, False),
    ],
)
def test_a_value_to_ignore_is_no_class(tmp_path, value, facts, ignored):
    voxels = CLASSES.copy()
    voxels[4:, 4:] = value
    label = save(tmp_path / "l.nii", voxels)
    _, record, stored = converted(tmp_path, label, image(tmp_path / "i.nii"), **facts)
    found = record.labels[0]
    assert (value in found.classes) == (not ignored)
    assert (found.ignore, found.n_ignored) == ((value, 5 * 4 * 7) if ignored else (None, 0))
    assert np.array_equal(stored.transpose(2, 1, 0), voxels)
    assert any("ignored" in result for result in record.warnings) == ignored


def test_a_label_of_many_classes_keeps_its_255th(tmp_path):
    voxels = (np.arange(np.prod(SHAPE)) % 256).reshape(SHAPE).astype(np.uint8)
    label = save(tmp_path / "l.nii", voxels)
    _, record, _ = converted(tmp_path, label, image(tmp_path / "i.nii"))
    assert len(record.labels[0].classes) == 256 and record.labels[0].ignore is None


def organs(root: Path) -> dict[str, np.ndarray]:
    masks = {name: (RNG.random(SHAPE) < 0.2).astype(np.uint8) for name in ("liver", "spleen")}
    for case in ("s0", "s1"):
        image(root / case / "ct.nii.gz")
        for name, mask in masks.items():
            save(root / case / "segmentations" / f"{name}.nii.gz", mask)
    return masks


def merging(tmp_path: Path, **classes: int) -> list[str]:
    """Words that convert the organs as one label."""
    (tmp_path / "map.json").write_text(json.dumps(classes))
    words = ["convert", str(tmp_path / "in"), str(tmp_path / "c"), "--workers", "1"]
    return [*words, "--merge-labels", str(tmp_path / "map.json")]


@pytest.mark.parametrize("kind", ["json", "reversed.json", "csv"])
def test_a_mask_per_organ_becomes_one_label_by_a_map(tmp_path, kind, capsys):
    masks = organs(tmp_path / "in")
    found = {
        "json": json.dumps({"liver": 1, "spleen": 2}),
        "reversed.json": json.dumps({"2": "spleen", "1": "liver"}),
        "csv": "name,class\nspleen,2\nliver,1\n",
    }
    (tmp_path / f"map.{kind}").write_text(found[kind])
    words = ["convert", str(tmp_path / "in"), str(tmp_path / "c"), "--workers", "1"]
    words += ["--merge-labels", str(tmp_path / f"map.{kind}")]
    assert main(words) == 0
    assert "several masks" in capsys.readouterr().out
    want = np.where(masks["spleen"] > 0, 2, masks["liver"])
    first, _ = read_manifest(tmp_path / "c")
    (label,) = first.labels
    assert label.class_names == {1: "liver", 2: "spleen"} and label.name == "seg"
    stored = stored_label(tmp_path / "c", first.id)
    assert np.array_equal(stored.transpose(2, 1, 0), want)
    assert main(words) == 0 and "2 sources unchanged" in capsys.readouterr().out
    assert not verify(str(tmp_path / "c"), sources=True).problems
    save(tmp_path / "in/s0/segmentations/liver.nii.gz", 1 - masks["liver"])
    assert main(words) == 0 and "1 sources unchanged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"liver": 0}', "class of its own, 1 to 65535"),
        ('{"liver": 1, "spleen": 1}', "stands twice"),
        ('{"liver": 1, "liver": 2}', "stands twice"),
        ('{"heart": 1}', "names none of the labels found (liver, spleen)"),
        ('["liver"]', "is no map"),
        ("{}", "names no mask"),
    ],
)
def test_a_map_that_is_none_is_refused(tmp_path, content, expected):
    organs(tmp_path / "in")
    (tmp_path / "map.json").write_text(content)
    options = SourceOptions(merge_labels=str(tmp_path / "map.json"))
    with pytest.raises(SourceError, match=expected.replace("(", r"\(").replace(")", r"\)")):
        discover(str(tmp_path / "in"), options=options)


def test_names_of_classes_and_modalities_reach_the_manifest(tmp_path, capsys):
    image(tmp_path / "in/imagesTr/a_0000.nii.gz")
    image(tmp_path / "in/imagesTr/a_0001.nii.gz")
    save(tmp_path / "in/labelsTr/a.nii.gz", CLASSES)
    described = {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz"}
    described["labels"] = {"background": 0, "core": 1, "whole": [1, 2], "ignore": 2}
    (tmp_path / "in/dataset.json").write_text(json.dumps(described))
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "c"), "--workers", "1"]) == 0
    (record,) = read_manifest(tmp_path / "c")
    assert record.channel_names == ("T1", "T2")
    assert record.labels[0].class_names == {0: "background", 1: "core"}
    assert record.labels[0].ignore == 2 and 2 not in record.labels[0].classes
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "c"), "--no-pictures"]) == 0
    printed = capsys.readouterr().out
    assert "core" in printed and "T1, T2" in printed


def masks_of_255(tmp_path, *others):
    """Two scans with masks of 0 and 255, and scans with labels of other values."""
    masks = [np.where(CLASSES > 0, 255, 0).astype(np.uint8)] * 2
    for number, voxels in enumerate([*masks, *others]):
        image(tmp_path / "data" / f"p{number}" / "t1.nii.gz")
        save(tmp_path / "data" / f"p{number}" / "mask.nii.gz", voxels)
    return ["convert", str(tmp_path / "data"), str(tmp_path / "c"), "--workers", "1"]


def test_a_mask_of_0_and_255_is_one_class(tmp_path, capsys):
    assert main(masks_of_255(tmp_path)) == 0
    assert "mask of 0 and 255, which is stored as class 1" in capsys.readouterr().out
    records = read_manifest(tmp_path / "c")
    assert [set(record.labels[0].classes) for record in records] == [{0, 1}] * 2
    stored = stored_label(tmp_path / "c", records[0].id)
    assert np.array_equal(stored.transpose(2, 1, 0), CLASSES > 0)


@pytest.mark.parametrize("value", [2, 255])
def test_a_mask_of_255_among_other_labels_is_doubted(tmp_path, capsys, value):
    other = CLASSES.copy()
    other[:2] = 1
    other[4:, 4:] = value
    words = masks_of_255(tmp_path, other)
    assert main(words) == 3
    assert "convert with --ignore-label 255 into a new corpus" in capsys.readouterr().out
    words[2] += "2"
    assert main([*words, "--ignore-label", "255"]) == 0
    records = read_manifest(Path(words[2]))
    assert [record.labels[0].ignore for record in records] == [255] * 3


def test_a_vanished_mask_of_a_merged_label_takes_no_class_without_being_asked(tmp_path, capsys):
    organs(tmp_path / "in")
    (tmp_path / "map.json").write_text('{"liver": 1, "spleen": 2}')
    words = ["convert", str(tmp_path / "in"), str(tmp_path / "c"), "--workers", "1"]
    words += ["--merge-labels", str(tmp_path / "map.json")]
    assert main(words) == 0
    before = read_manifest(tmp_path / "c")
    (tmp_path / "in/s1/segmentations/spleen.nii.gz").unlink()
    for _ in range(2):
        assert main(words) == 3 and read_manifest(tmp_path / "c") == before
    told = capsys.readouterr().out
    assert "spleen.nii.gz: no such file" in told and "--accept-losses" in told
    assert main([*words, "--accept-losses"]) == 3
    told = capsys.readouterr().out
    assert re.search(r"s1/segmentations/spleen.nii.gz: no such file.* converted without it", told)
    assert set(read_manifest(tmp_path / "c")[1].labels[0].classes) == {0, 1}
    assert main(words) == 3
    told = capsys.readouterr().out
    assert "left out" not in told and "s1/ct.nii.gz: no spleen)" in told
    assert main([*words, "--accept-doubts"]) == 0


def test_every_vanished_mask_of_a_label_is_told(tmp_path, capsys):
    organs(tmp_path / "in")
    for case in ("s0", "s1"):
        save(tmp_path / "in" / case / "segmentations/kidney.nii.gz", CLASSES // 2)
    words = merging(tmp_path, liver=1, spleen=2, kidney=3)
    assert main(words) == 0
    for organ in ("spleen", "kidney"):
        (tmp_path / f"in/s1/segmentations/{organ}.nii.gz").unlink()
    for more, outcome in (([], "keeps the volume it has"), (["--accept-losses"], "without it")):
        capsys.readouterr()
        assert main([*words, *more]) == 3
        told = capsys.readouterr().out
        for organ in ("spleen", "kidney"):
            assert re.search(f"{organ}.nii.gz: no such file; .*{outcome}", told)


@pytest.mark.parametrize("way", ["bring", "leave out", "accept"])
def test_a_mask_that_others_have_is_missed_from_the_start(tmp_path, capsys, way):
    masks = organs(tmp_path / "in")
    missing = tmp_path / "in/s0/segmentations/spleen.nii.gz"
    missing.unlink()
    words = merging(tmp_path, liver=1, spleen=2)
    for more in (["--dry-run"], []):
        assert main([*words, *more]) == 3
        told = capsys.readouterr().out
        assert "fewer masks in 1 volume (such as" in told and "s0/ct.nii.gz: no spleen)" in told
    if way == "bring":
        save(missing, masks["spleen"])
    if way == "leave out":
        shutil.rmtree(tmp_path / "in/s0")
        words.append("--prune")
    words += ["--accept-doubts"] if way == "accept" else []
    assert main([*words, "--dry-run"]) == 0 and main(words) == 0


@pytest.mark.parametrize("organ", ["kidney", "kidney's", "kidney, holds"])
def test_a_mask_of_several_values_is_one_class_and_doubted(tmp_path, capsys, organ):
    organs(tmp_path / "in")
    for case in ("s0", "s1"):
        save(tmp_path / "in" / case / f"segmentations/{organ}.nii.gz", CLASSES * 2)
    classes = {"liver": 1, "spleen": 2, organ: 3}
    words = merging(tmp_path, **classes)
    assert main(words) == 3
    told = capsys.readouterr().out
    assert "2 masks of several values (such as" in told and f"{organ}.nii.gz: 2, 4)" in told
    assert main([*words, "--accept-doubts"]) == 0
    note = f"mask {organ!r} holds 2, 4, which all become class 3"
    assert note in capsys.readouterr().out
    option = re.search(r"take (.+) out of the map", told)
    assert option is not None and "convert into a new corpus" in told
    del classes[option[1]]
    words = merging(tmp_path, **classes)
    words[2] += "2"
    assert main(words) == 0
    own, merged = read_manifest(Path(words[2]))[0].labels
    assert set(own.classes) == {0, 2, 4} and set(merged.classes) == {0, 1, 2}


@pytest.mark.parametrize("value", [1, 7, 255])
def test_a_mask_of_one_value_is_not_doubted(tmp_path, value):
    masks = organs(tmp_path / "in")
    for organ, mask in masks.items():
        save(tmp_path / f"in/s0/segmentations/{organ}.nii.gz", mask * np.uint8(value))
    assert main(merging(tmp_path, liver=1, spleen=2)) == 0


@pytest.mark.parametrize("lone", [False, True])
def test_a_label_called_as_the_merged_one_is_not_lost_without_a_word(tmp_path, capsys, lone):
    organs(tmp_path / "in")
    own = tmp_path / "in/s1/seg.nii.gz"
    save(own, CLASSES)
    if lone:
        shutil.rmtree(tmp_path / "in/s1/segmentations")
    words = merging(tmp_path, liver=1, spleen=2)
    for more in (["--dry-run"], []):
        assert main([*words, *more]) == 3
        told = capsys.readouterr().out
        assert f"{own})" in told and re.search("give the file another name", told)
    own.rename(tmp_path / "in/s1/lesion.nii.gz")
    words[2] += "2"
    assert main(words) == 0
    names = [[label.name for label in found.labels] for found in read_manifest(Path(words[2]))]
    assert names == [["seg"], ["lesion"] if lone else ["lesion", "seg"]]


def test_masks_that_were_moved_are_not_lost(tmp_path):
    organs(tmp_path / "in")
    (tmp_path / "map.json").write_text('{"liver": 1, "spleen": 2}')
    words = ["--workers", "1", "--merge-labels", str(tmp_path / "map.json")]
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "c"), *words]) == 0
    (tmp_path / "in").rename(tmp_path / "moved")
    assert main(["convert", str(tmp_path / "moved"), str(tmp_path / "c"), *words]) == 0


def test_masks_that_a_narrower_map_leaves_out_are_told(tmp_path, capsys):
    organs(tmp_path / "in")
    table = tmp_path / "map.json"
    words = ["convert", str(tmp_path / "in"), str(tmp_path / "c"), "--workers", "1"]
    words += ["--merge-labels", str(table)]
    table.write_text('{"liver": 1, "spleen": 2}')
    assert main(words) == 0
    whole = read_manifest(tmp_path / "c")
    for more, code in (([], 3), (["--accept-doubts"], 0)):
        table.write_text('{"liver": 1}')
        capsys.readouterr()
        assert main([*words, *more]) == code
        assert "was liver, spleen and is liver now" in capsys.readouterr().out
        assert main(words) == 0  # told once
        table.write_text('{"spleen": 2, "liver": 1}')  # "convert again with what told it before"
        assert main(words) == 3 and main(words) == 0  # spleen is no label of its own any more
        assert read_manifest(tmp_path / "c")[0].labels[0].classes == whole[0].labels[0].classes
