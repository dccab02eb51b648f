"""Inspection: figures that add up, pictures with the right proportions and colours."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.names import TABLE, own_file
from mim3d.dataio.inspect.montage import (
    LABEL_COLOURS,
    Plane,
    class_colours,
    fullest_slices,
    overlay,
    read_planes,
)
from mim3d.dataio.inspect.summary import size_in_words, span, summarise
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.phantom import make_cohort
from mim3d.dataio.sources.source import Source
from mim3d.engine.commands.cli import main


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    root = tmp_path_factory.mktemp("inspect")
    found = discover(str(make_cohort(root / "cohort", 6)))
    broken = root / "broken.nii.gz"
    broken.write_bytes(b"not gzip")
    sources = [*found.sources, *discover(str(broken)).sources]
    convert(sources, root / "c.zarr", workers=1)
    return Corpus.open(root / "c.zarr")


def test_the_summary_adds_up(corpus):
    summary = summarise(corpus.records)
    arrays = list(corpus.root.glob("*/0/c.0.0.0"))
    labels = list(corpus.root.glob("*/labels.seg/c.0.0.0"))
    assert summary.n_volumes == summary.n_subjects == len(arrays) == 6
    assert summary.stored_bytes == sum(a.stat().st_size for a in [*arrays, *labels])
    assert summary.n_voxels == sum(int(np.prod(r.shape)) for r in corpus.records)
    assert [c.cls for c in summary.classes] == [1, 2, 3]
    assert all(c.n_volumes == 6 and c.n_voxels > 0 for c in summary.classes)
    low, middle, high = summary.shape_span[0]
    assert low <= middle <= high


def test_the_command_prints_tables_and_draws(corpus, tmp_path, capsys):
    words = ["inspect", str(corpus.root), "--out", str(tmp_path), "--volumes", "3", "--rows", "2"]
    assert main([*words, "--json", str(tmp_path / "f.json")]) == 0
    printed = capsys.readouterr().out
    assert "6 of 6 subjects" in printed
    assert "first 2 of 6" in printed
    assert "broken.nii.gz" in printed
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["n_volumes"] == 6
    assert sum(figures["quarantined"].values()) == 1
    montage = imread(tmp_path / "montage.png")
    assert montage.shape[0] > 300
    for colour in LABEL_COLOURS[:3]:
        near = np.abs(montage[..., :3] - np.array(to_rgb(colour))).max(axis=-1) < 0.02
        assert near.sum() > 20
    assert imread(tmp_path / "histograms.png").std() > 0.05


def test_planes_cut_through_the_label_in_true_proportions(corpus):
    reader = ShardReader(corpus.table, corpus.root)
    for record in corpus.records:
        planes = read_planes(record, corpus.table, reader)
        assert all(plane.classes for plane in planes)
        seen = set.union(*(plane.classes for plane in planes))
        assert seen == {("seg", 1), ("seg", 2), ("seg", 3)}
        z, y, x = record.shape
        assert [p.image.shape for p in planes] == [(y, x), (z, x), (z, y)]
        mm = record.spacing_mm
        assert [p.aspect for p in planes] == pytest.approx(
            [mm[1] / mm[2], mm[0] / mm[2], mm[0] / mm[1]]
        )
        assert planes[0].letters == ("L", "R", "P", "A")
        assert planes[2].letters == ("P", "A", "I", "S")
        assert all(p.image.min() >= 0 and p.image.max() <= 1 for p in planes)
    reader.close()


def test_the_overlay_outlines_classes_and_leaves_the_rest_grey():
    label = np.zeros((9, 9), int)
    label[2:7, 2:7] = 2
    plane = Plane(np.full((9, 9), 0.5), label, 1.0, 1.0, ("L", "R", "P", "A"))
    picture = overlay(plane, {("seg", 2): LABEL_COLOURS[1]})
    np.testing.assert_allclose(picture[0, 0], 0.5)
    np.testing.assert_allclose(picture[2, 4], to_rgb(LABEL_COLOURS[1]))
    assert 0 < np.abs(picture[4, 4] - 0.5).max() < 0.3


def test_slices_show_most_classes_and_small_ones_count():
    label = np.zeros((30, 20, 20), np.int16)
    label[2:20, 2:18, 2:18] = 7  # a large organ, everywhere
    label[15:18, 4:6, 9:12] = -3  # a small one
    label[27, 19, 19] = 400
    assert fullest_slices(label) == (16, 5, 10)
    assert fullest_slices(label[..., :1] * 0 + 1) == (15, 10, 0)


def test_every_class_of_every_label_has_its_own_colour():
    classes = {(name, cls) for name in ("lesion", "seg") for cls in range(1, 40)}
    colours = class_colours(classes)
    assert set(colours) == classes
    assert len(set(colours.values())) == len(classes)
    assert [*class_colours({("seg", 1), ("seg", 2)}).values()] == [*LABEL_COLOURS[:2]]


@pytest.mark.parametrize("number", ["0", "-2"])
def test_a_montage_of_no_volume_is_one_line(corpus, tmp_path, capsys, number):
    assert main(["inspect", str(corpus.root), "--out", str(tmp_path), "--volumes", number]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_a_half_written_corpus_is_shown_as_far_as_it_goes(corpus, tmp_path, capsys):
    half = shutil.copytree(corpus.root, tmp_path / "half.zarr")
    own_file(half, TABLE).unlink()
    assert main(["inspect", str(half), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "6 of 6 subjects" in printed
    assert "no montage" in printed
    assert "mim3d convert" in printed.replace("\n", " ")
    assert not (tmp_path / "out" / "montage.png").exists()


def test_a_folder_that_is_no_corpus_is_one_line(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "zarr.json" in capsys.readouterr().err


@pytest.mark.parametrize(("values", "expected"), [((3, 3, 3), "3"), ((1, 2, 9), "1..2..9")])
def test_span(values, expected):
    assert span(values, ".0f") == expected


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (50, "2.00x smaller than raw"),
        (105, "1.05x larger than raw"),
        (100, "as large as raw"),
        (0, "100.00x smaller than raw"),
    ],
)
def test_a_corpus_larger_than_raw_is_called_so(corpus, stored, words):
    summary = replace(summarise(corpus.records), raw_bytes=100, stored_bytes=stored)
    assert size_in_words(summary) == words


def test_one_file_of_two_people_is_named_once_with_both(tmp_path, capsys):
    path = discover(str(make_cohort(tmp_path / "cohort", 2))).sources[0].images[0]
    for name in ("ann", "bob"):
        convert([Source(name, (path,), subject=name)], tmp_path / f"{name}.zarr", workers=1)
    parts = [str(tmp_path / "ann.zarr"), str(tmp_path / "bob.zarr")]
    assert main(["merge", *parts, "--into", str(tmp_path / "c.zarr")]) == 3
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "c.zarr"), "--no-pictures"]) == 3
    assert f"(such as {path} of ann and of bob)" in capsys.readouterr().out
    words = ["merge", *parts, "--into", str(tmp_path / "one.zarr"), "--subjects"]
    (tmp_path / "who.csv").write_text(f"file,subject\n{path},ann\n")
    assert main([*words, str(tmp_path / "who.csv")]) == 0
    assert main(["inspect", str(tmp_path / "one.zarr"), "--no-pictures"]) == 0
    assert "ann (as declared) has 2: phantom_000 (2 times)" in capsys.readouterr().out


def test_a_label_on_another_grid_names_its_image_once(tmp_path, capsys):
    first = discover(str(make_cohort(tmp_path / "cohort", 2))).sources[0]
    label = tmp_path / "label.nii"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), label)
    convert([Source("a", first.images, {"seg": str(label)})], tmp_path / "c", workers=1)
    assert main(["inspect", str(tmp_path / "c"), "--no-pictures"]) == 0
    line = capsys.readouterr().out.replace("\n", "").partition("quarantined: ")[2]
    assert line.count(first.images[0]) == 1 and "the image was converted without it" in line
