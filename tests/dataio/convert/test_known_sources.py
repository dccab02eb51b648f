"""What a corpus already holds is recognised: labels that come later, other paths, moved files."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim3d.dataio.convert import known_sources
from mim3d.dataio.convert.known_sources import recognise
from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.corpus.seen_files import SEEN
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.phantom import make_cohort
from mim3d.dataio.sources.source import Source


def save(path: Path, seed: int, *, label: bool = False) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, 3 if label else 500, (14, 15, 16))
    nib.save(nib.Nifti1Image(voxels.astype(np.uint8 if label else np.int16), np.eye(4)), path)
    return str(path)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two volumes, one of them labelled."""
    for i, name in enumerate("ab"):
        save(tmp_path / "raw" / f"{name}.nii.gz", i)
    save(tmp_path / "raw" / "a_seg.nii.gz", 9, label=True)
    return tmp_path / "raw"


def run(source: Path | str, corpus: Path):
    found = discover(str(source))
    return convert(found.sources, corpus, workers=1, skipped=found.skipped)


def records(corpus: Path) -> dict[str, VolumeRecord]:
    assert not verify(corpus).problems
    return {record.id: record for record in Corpus.open(corpus).records}


def files(corpus: Path) -> dict[str, bytes]:
    paths = (p for p in corpus.rglob("*") if p.is_file() and p.name != SEEN)
    return {str(p.relative_to(corpus)): p.read_bytes() for p in paths}


def test_a_label_that_comes_later_replaces_the_volume(raw, tmp_path):
    run(raw, tmp_path / "c")
    save(raw / "b_seg.nii.gz", 8, label=True)
    report = run(raw, tmp_path / "c")
    assert (report.n_converted, report.n_unchanged, report.n_volumes) == (1, 1, 2)
    run(raw, tmp_path / "fresh")
    assert files(tmp_path / "c") == files(tmp_path / "fresh")
    assert run(raw, tmp_path / "c").n_unchanged == 2


def test_a_missing_label_of_a_datalist_that_comes_later(tmp_path):
    for i, name in enumerate("ab"):
        save(tmp_path / f"msd/imagesTr/{name}.nii.gz", i)
    save(tmp_path / "msd/labelsTr/a.nii.gz", 5, label=True)
    report = run(tmp_path / "msd", tmp_path / "c")
    assert [r.code for r in report.rejections] == ["missing-label"]
    save(tmp_path / "msd/labelsTr/b.nii.gz", 6, label=True)
    run(tmp_path / "msd", tmp_path / "c")
    run(tmp_path / "msd", tmp_path / "fresh")
    assert files(tmp_path / "c") == files(tmp_path / "fresh")


def test_a_second_claimant_keeps_its_id_when_its_label_comes(tmp_path):
    images = [save(tmp_path / f"{i}.nii.gz", i) for i in range(2)]
    label = save(tmp_path / "l.nii.gz", 7, label=True)
    bare = [Source("x", (image,)) for image in images]
    labelled = [bare[0], Source("x", bare[1].images, {"seg": label})]
    convert(bare, tmp_path / "c", workers=1)
    convert(labelled, tmp_path / "c", workers=1)
    convert(labelled, tmp_path / "fresh", workers=1)
    assert files(tmp_path / "c") == files(tmp_path / "fresh")


def test_a_glob_of_images_takes_no_label_away_and_doubles_nothing(raw, tmp_path):
    run(f"{raw}/[ab].nii.gz", tmp_path / "c")
    run(raw, tmp_path / "c")
    whole = files(tmp_path / "c")
    report = run(f"{raw}/[ab].nii.gz", tmp_path / "c")
    assert report.n_unchanged == 2 and files(tmp_path / "c") == whole


def test_labels_that_are_named_are_the_labels(raw, tmp_path):
    image, other = str(raw / "a.nii.gz"), save(raw / "z.nii.gz", 4, label=True)
    convert([Source("a", (image,), {"wrong": other})], tmp_path / "c", workers=1)
    convert([Source("a", (image,), {"seg": str(raw / "a_seg.nii.gz")})], tmp_path / "c", workers=1)
    assert [a.name for a in records(tmp_path / "c")["a"].labels] == ["seg"]


def test_a_label_that_is_anothers_now_is_not_kept(raw, tmp_path):
    label = str(raw / "a_seg.nii.gz")
    a, b = (Source(n, (str(raw / f"{n}.nii.gz"),)) for n in "ab")
    convert([a, Source("b", b.images, {"seg": label})], tmp_path / "c", workers=1)
    convert([Source("a", a.images, {"seg": label}), b], tmp_path / "c", workers=1)
    got = records(tmp_path / "c")
    assert len(got["a"].labels) == 1 and not got["b"].labels


@pytest.mark.parametrize("way", ["dots", "link", "file-link"])
def test_the_same_files_by_another_path_are_not_doubled(raw, tmp_path, way):
    run(raw, tmp_path / "c")
    (tmp_path / "x").mkdir()
    other = tmp_path / "x" / ".." / "raw"
    if way == "link":
        other = tmp_path / "link"
        other.symlink_to(raw)
    if way == "file-link":
        other = tmp_path / "links"
        other.mkdir()
        for file in raw.iterdir():
            (other / file.name).symlink_to(file)
    report = run(other, tmp_path / "c")
    assert (report.n_volumes, report.n_unchanged, report.n_converted) == (2, 2, 0)
    run(raw, tmp_path / "c")
    run(raw, tmp_path / "fresh")
    assert files(tmp_path / "c") == files(tmp_path / "fresh")


def test_links_beside_their_files_are_told(raw, tmp_path):
    for name in ("a", "a_seg"):
        (raw / f"{name.replace('a', 'copy')}.nii.gz").symlink_to(raw / f"{name}.nii.gz")
    (raw / "alone.nii.gz").symlink_to(raw / "a.nii.gz")
    for unchanged in (0, 2):
        report = run(raw, tmp_path / "c")
        assert [r.code for r in report.rejections] == ["duplicate-source"] * 2
        assert (report.n_volumes, report.n_unchanged) == (2, unchanged)


def test_one_image_with_two_peoples_labels_is_two_volumes(raw, tmp_path):
    image, other = str(raw / "a.nii.gz"), save(raw / "z.nii.gz", 4, label=True)
    labels = (str(raw / "a_seg.nii.gz"), other)
    made = [Source(f"a{i}", (image,), {"seg": label}) for i, label in enumerate(labels)]
    convert(made[:1], tmp_path / "c", workers=1)
    assert convert(made, tmp_path / "c", workers=1).n_volumes == 2
    assert convert(made, tmp_path / "c", workers=1).n_unchanged == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_moved_files_keep_their_volumes_under_their_new_path(raw, tmp_path, workers):
    run(raw, tmp_path / "c")
    before = {id: r.shard_sha256 for id, r in records(tmp_path / "c").items()}
    (tmp_path / "deep").mkdir()
    shutil.move(raw, tmp_path / "deep" / "moved")
    (tmp_path / "deep/moved/b.nii.gz").rename(tmp_path / "deep/moved/other.nii.gz")
    found = discover(str(tmp_path / "deep" / "moved"))
    report = convert(found.sources, tmp_path / "c", workers=workers)
    assert (report.n_converted, report.n_unchanged) == (0, 2)
    got = records(tmp_path / "c")
    assert {id: r.shard_sha256 for id, r in got.items()} == before
    assert got["a"].sources == (str(tmp_path / "deep/moved/a.nii.gz"),)
    assert got["a"].labels[0].source == str(tmp_path / "deep/moved/a_seg.nii.gz")
    assert got["b"].sources == (str(tmp_path / "deep/moved/other.nii.gz"),)
    assert convert(found.sources, tmp_path / "c", workers=1).n_unchanged == 2


def test_other_files_where_some_are_gone_are_new(raw, tmp_path):
    run(raw, tmp_path / "c")
    shutil.rmtree(raw)
    save(tmp_path / "more" / "a.nii.gz", 77)
    report = run(tmp_path / "more", tmp_path / "c")
    assert (report.n_converted, report.n_volumes) == (1, 3)


def test_a_subject_told_otherwise_changes_the_record_alone(raw, tmp_path):
    image = (str(raw / "b.nii.gz"),)
    convert([Source("b", image, subject="P1")], tmp_path / "c", workers=1)
    report = convert([Source("b", image, subject="P2")], tmp_path / "c", workers=1)
    assert (report.n_converted, report.n_unchanged) == (0, 1)
    assert records(tmp_path / "c")["b"].subject == "P2"


def test_nothing_is_asked_of_files_that_are_known_by_path(raw, tmp_path, monkeypatch):
    run(raw, tmp_path / "c")
    monkeypatch.setattr(known_sources, "file_ids", lambda paths: pytest.fail("asked a file"))
    assert run(raw, tmp_path / "c").n_unchanged == 2


def test_a_hundred_thousand_sources_take_no_quadratic_time(raw, tmp_path):
    run(raw, tmp_path / "c")
    record = records(tmp_path / "c")["b"]
    n = 100_000
    held = [known(record, f"/old/{i}.nii", f"v{i}", f"xxh3:{i}") for i in range(n)]
    made = [Source(f"v{i}", (f"/new/{i}.nii",)) for i in range(n)]
    hashes = {source.images: (f"xxh3:{i}",) for i, source in enumerate(made)}
    found = recognise(made, held, lambda sources: hashes)
    assert all(group[0].id == source.id for source, group in found.sources)


def known(record: VolumeRecord, path: str, id: str, hash: str) -> VolumeRecord:
    fields = vars(record) | {"id": id, "sources": (path,), "source_hash": (hash,)}
    return VolumeRecord(**fields)


def test_a_corpus_inside_its_source_is_no_source(tmp_path):
    make_cohort(tmp_path / "raw", 2)
    first = run(tmp_path / "raw", tmp_path / "raw" / "deep" / "corpus")
    again = run(tmp_path / "raw", tmp_path / "raw" / "deep" / "corpus")
    assert not first.rejections and not again.rejections
    assert again.n_unchanged and not again.n_converted
    (tmp_path / "raw" / "deep" / "corpus" / "zarr.json").write_text("{")  # damaged, still a corpus
    assert not discover(str(tmp_path / "raw")).skipped
    with pytest.raises(ValueError, match="export-nifti"):
        discover(str(tmp_path / "raw" / "deep" / "corpus"))
