"""Several corpora as one: no voxel copied, the parts untouched, samples those of one corpus."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mim3d.bench.corpora import anatomy_like
from mim3d.dataio.convert.merge import merge
from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion, Rerun
from mim3d.dataio.corpus.seen_files import SEEN
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.source import Source
from mim3d.engine.commands.cli import main

CONFIG = LoaderConfig(crop_size=(16, 16, 16), micro_batch=4, seed=3)


def made(folder: Path, name: str, seeds: range, recipe: Conversion | None = None) -> Path:
    sources = []
    for i in seeds:
        (folder / name).mkdir(parents=True, exist_ok=True)
        volume = anatomy_like((30, 26, 28), i)
        path, label = folder / name / f"v{i}.nii.gz", folder / name / f"l{i}.nii.gz"
        nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
        nib.save(nib.Nifti1Image((volume > 500).astype(np.uint8), np.eye(4)), label)
        labels = {"seg": str(label)} if i % 2 else {}
        sources.append(Source(f"v{i}", (str(path),), labels, subject=f"p{i}"))
    convert(sources, folder / f"{name}.zarr", recipe, workers=1)
    return folder / f"{name}.zarr"


@pytest.fixture
def parts(tmp_path) -> tuple[Path, Path]:
    """Two corpora; v2 of subject p2 is in both, and is another scan in each."""
    a, b = made(tmp_path, "a", range(3)), made(tmp_path, "b", range(2, 5))
    return a, b


def content(root: Path) -> dict[str, bytes]:
    files = (f for f in root.rglob("*") if f.is_file() and f.name != SEEN)
    return {str(f.relative_to(root)): f.read_bytes() for f in files}


def test_merged_by_links(parts, tmp_path, capsys):
    before = [content(part) for part in parts]
    words = ["merge", *map(str, parts), "--into", str(tmp_path / "all.zarr")]
    assert main([*words, "--accept-doubts"]) == 0
    out = capsys.readouterr().out
    assert "3 volumes of a, 3 volumes of b added" in out
    assert "told apart: p2: a/p2 (a_v2), b/p2 (b_v2)" in out
    assert "2 ids changed: v2 of a is a_v2; v2 of b is b_v2" in out
    corpus = Corpus.open(tmp_path / "all.zarr")
    assert [(r.id, r.subject, r.group) for r in corpus.records] == [
        ("a_v2", "a/p2", "a"),
        ("b_v2", "b/p2", "b"),
        ("v0", "p0", "a"),
        ("v1", "p1", "a"),
        ("v3", "p3", "b"),
        ("v4", "p4", "b"),
    ]
    assert verify(corpus.root).problems == ()
    shard = corpus.root / "v1/labels.seg/c.0.0.0"
    assert shard.samefile(parts[0] / "v1/labels.seg/c.0.0.0")
    assert [content(part) for part in parts] == before
    assert main([*words, "--accept-doubts"]) == 0
    assert "no volume added, 6 already there" in capsys.readouterr().out


def test_samples_are_those_of_one_corpus_at_any_world_size(parts, tmp_path):
    merge([parts[0], made(tmp_path, "rest", range(3, 5))], tmp_path / "all.zarr")
    half = replace(CONFIG, micro_batch=2)
    with (
        Loader(made(tmp_path, "one", range(5)), CONFIG) as one,
        Loader(tmp_path / "all.zarr", CONFIG) as merged,
        Loader(tmp_path / "all.zarr", half, rank=0, world=2) as first,
        Loader(tmp_path / "all.zarr", half, rank=1, world=2) as second,
    ):
        for _ in range(3):
            wanted = next(one).image
            assert torch.equal(next(merged).image, wanted)
            assert torch.equal(torch.cat([next(first).image, next(second).image]), wanted)


def test_what_happens_to_a_part_later_does_not_reach_the_whole(parts, tmp_path):
    merge(parts, tmp_path / "all.zarr")
    whole = content(tmp_path / "all.zarr")
    path = tmp_path / "a" / "v1.nii.gz"
    nib.save(nib.Nifti1Image(anatomy_like((30, 26, 28), 99), np.eye(4)), path)
    convert([Source("v1", (str(path),), subject="p1")], parts[0], workers=1)
    assert main(["remove", str(parts[1]), "--subject", "p3"]) == 0
    assert content(tmp_path / "all.zarr") == whole and verify(tmp_path / "all.zarr").problems == ()


def test_what_cannot_be_merged_is_told(parts, tmp_path, monkeypatch, capsys):
    other = made(tmp_path, "other", range(1), Conversion(chunk=8))
    with pytest.raises(CorpusError, match="chunk 16 and 8"):
        merge([parts[0], other], tmp_path / "x.zarr")
    assert main(["merge", str(parts[0]), "--into", str(tmp_path / "x.zarr")]) == 2
    assert main(["merge", str(parts[0]), "s3://b/c", "--into", str(tmp_path / "x.zarr")]) == 2
    assert main(["merge", str(parts[0]), str(tmp_path / "no"), "--into", "x.zarr"]) == 2
    (parts[0] / "v1/0/c.0.0.0").unlink()
    with pytest.raises(CorpusError, match=f"`mim3d verify {parts[0]} --mend`"):
        merge(parts, tmp_path / "x.zarr")
    assert main(["verify", str(parts[0]), "--mend"]) == 0
    merge(parts, tmp_path / "x.zarr")
    assert verify(tmp_path / "x.zarr").problems == ()

    def link(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("mim3d.dataio.storage.links.os.link", link)
    with pytest.raises(CorpusError, match="on the same file system"):
        merge(parts, tmp_path / "y.zarr")


def subjects_of(corpus: Path) -> list[str]:
    return [record.subject for record in Corpus.open(corpus).records]


def merged(*words: str) -> int:
    return main(["merge", *words])


def test_who_was_removed_does_not_come_back_by_a_merge(parts, tmp_path, capsys):
    into = str(tmp_path / "all.zarr")
    words = (*map(str, parts), "--into", into, "--accept-doubts")
    assert merged(*words) == 0
    assert main(["remove", into, "--subject", "p3"]) == 0
    capsys.readouterr()
    assert merged(*words) == 3
    out = capsys.readouterr().out
    assert "'p3' was removed on" in out and f"`mim3d remove {into} --readmit p3`" in out
    assert "p3" not in subjects_of(Path(into))
    assert main(["remove", into, "--readmit", "p3"]) == 0
    assert merged(*words) == 0
    assert "p3" in subjects_of(Path(into))


def test_who_was_removed_from_a_part_stays_out_of_the_whole(parts, tmp_path, capsys):
    into = tmp_path / "all.zarr"
    copy = tmp_path / "c" / "another.nii.gz"
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "a" / "v1.nii.gz").read_bytes())
    convert([Source("again", (str(copy),), subject="q")], tmp_path / "c.zarr", workers=1)
    assert main(["remove", str(parts[0]), "--subject", "p1"]) == 0
    words = (*map(str, parts), str(tmp_path / "c.zarr"), "--into", str(into), "--accept-doubts")
    assert merged(*words) == 3
    assert {"q", "p1"}.isdisjoint(subjects_of(into))
    out = capsys.readouterr().out
    assert "'q' is a file of 'p1', which was removed on" in out
    again = Source("v1", (str(tmp_path / "a" / "v1.nii.gz"),), subject="p1")
    report = convert([again], into, workers=1)
    assert [r.code for r in report.rejections] == ["removed"]
    assert "p1" not in subjects_of(into)
    assert main(["remove", str(into), "--readmit", "p1"]) == 0  # as the line says
    assert merged(*words) == 0
    assert "q" in subjects_of(into)


def test_a_name_of_two_parts_bars_the_one_who_was_removed_alone(parts, tmp_path):
    """p2 is another person in the third part, with a scan of their own."""
    path, into = tmp_path / "other.nii.gz", tmp_path / "all.zarr"
    nib.save(nib.Nifti1Image(anatomy_like((30, 26, 28), 77), np.eye(4)), path)
    convert([Source("v2", (str(path),), subject="p2")], tmp_path / "other.zarr", workers=1)
    assert main(["remove", str(parts[0]), "--subject", "p2"]) == 0
    assert merged(str(parts[0]), str(tmp_path / "other.zarr"), "--into", str(into)) == 0
    assert sorted(subjects_of(into)) == ["p0", "p1", "p2"]


def test_who_is_removed_from_a_part_later_is_told_with_what_takes_them_out(parts, tmp_path, capsys):
    into = str(tmp_path / "all.zarr")
    words = (*map(str, parts), "--into", into, "--accept-doubts")
    assert merged(*words) == 0
    assert main(["remove", str(parts[1]), "--subject", "p3"]) == 0
    capsys.readouterr()
    assert merged(*words) == 3
    out = capsys.readouterr().out
    assert f"`mim3d remove {into} --volume v3` takes it out" in out
    assert out.count("warning:") == 1
    assert main(["remove", into, "--volume", "v3"]) == 0
    assert merged(*words) == 0
    assert "p3" not in subjects_of(Path(into))


def test_a_part_more_brings_nothing_twice(parts, tmp_path, capsys):
    """With `more`, v0 and p0 are names of two corpora, which they were not before."""
    into, more = tmp_path / "all.zarr", made(tmp_path, "more", range(10, 11))
    other = made(tmp_path / "x", "other", range(1))
    merge([parts[0], more], into)
    before = subjects_of(into)
    words = (str(parts[0]), str(more), str(other), "--into", str(into))
    assert merged(*words, "--accept-doubts") == 0
    assert "1 volumes of other added, 4 already there" in capsys.readouterr().out
    assert sorted(subjects_of(into)) == sorted([*before, "other/p0"])


def test_a_corpus_twice_and_a_destination_that_is_a_part_are_refused(parts, tmp_path, capsys):
    before = [content(part) for part in parts]
    (tmp_path / "link").symlink_to(parts[0])
    assert merged(str(parts[0]), str(tmp_path / "link"), "--into", str(tmp_path / "x.zarr")) == 2
    assert f"{parts[0]}: is named twice" in capsys.readouterr().err
    assert merged(*map(str, parts), "--into", str(tmp_path / "link")) == 2
    assert "is one of the corpora to be merged" in capsys.readouterr().err
    assert [content(part) for part in parts] == before
    assert not (tmp_path / "x.zarr").exists()


def test_a_number_of_two_names_is_refused(parts, tmp_path, capsys):
    def named(name: str, seed: int, classes: dict[int, str]) -> Path:
        folder = tmp_path / name
        made(tmp_path / "m", name, range(seed, seed + 1))
        source = tmp_path / "m" / name
        labels = {"seg": str(source / f"l{seed}.nii.gz")}
        images = (str(source / f"v{seed}.nii.gz"),)
        scan = Source(name, images, labels, subject=name, class_names={"seg": classes})
        convert([scan], folder, workers=1)
        return folder

    liver, tumour = named("liver", 21, {1: "liver"}), named("tumour", 23, {1: "tumour"})
    into = tmp_path / "x.zarr"
    assert merged(str(liver), str(tumour), "--into", str(into)) == 2
    assert f"label seg: 1 is 'liver' in {liver.name}" in capsys.readouterr().err
    assert not into.exists()
    merge([liver, parts[0]], into)
    before = content(into)
    assert merged(str(parts[0]), str(tumour), "--into", str(into)) == 2
    assert "1 is 'liver' in" in capsys.readouterr().err
    assert content(into) == before
    same = named("Liver2", 25, {1: "Liver"})
    assert merged(str(liver), str(same), "--into", str(tmp_path / "y.zarr")) == 0


def test_a_later_merge_replaces_nobody_and_joins_no_two_people(parts, tmp_path):
    """v2 and p2 of the later part are another scan of another person than those that are there."""
    into, path = tmp_path / "all.zarr", tmp_path / "other.nii.gz"
    merge([parts[0], made(tmp_path, "more", range(10, 11))], into)
    before = {r.id: r.shard_sha256 for r in Corpus.open(into).records}
    nib.save(nib.Nifti1Image(anatomy_like((30, 26, 28), 77), np.eye(4)), path)
    convert([Source("v2", (str(path),), subject="p2")], tmp_path / "other.zarr", workers=1)
    others = [tmp_path / "other.zarr", made(tmp_path, "last", range(12, 13))]
    done = merge(others, into)
    assert done.renamed == ("p2",) and done.volumes == {"other": 1, "last": 1}
    found = {r.id: r for r in Corpus.open(into).records}
    assert {id: found[id].shard_sha256 for id in before} == before
    assert (found["v2"].subject, found["other_v2"].subject) == ("p2", "other/p2")
    assert verify(into).problems == ()
    again = merge(others, into)
    assert (again.volumes, again.n_known) == ({}, 2)


def test_a_name_once_given_stays_when_its_scan_is_converted_anew(parts, tmp_path):
    """With b beside it v2 of a is a_v2 of a/p2; with another part beside it, it still is."""
    into, path = tmp_path / "all.zarr", tmp_path / "a" / "v2.nii.gz"
    merge(parts, into)
    nib.save(nib.Nifti1Image(anatomy_like((30, 26, 28), 55), np.eye(4)), path)
    convert([Source("v2", (str(path),), subject="p2")], parts[0], workers=1)
    more = made(tmp_path, "more", range(10, 11))
    done = merge([parts[0], more], into)
    assert done.volumes == {"more": 1} and done.replaced == ("a_v2: is as a has it now",)
    found = {r.id: r for r in Corpus.open(into).records}
    anew = next(r for r in Corpus.open(parts[0]).records if r.id == "v2")
    assert found["a_v2"].shard_sha256 == anew.shard_sha256
    assert found["a_v2"].subject == "a/p2" and "v2" not in found and len(found) == 7


def test_two_names_of_a_number_in_one_corpus_do_not_stop_its_merge(parts, tmp_path):
    """Nothing a merge makes worse; `in another corpus` would name the same one twice."""
    folder = tmp_path / "both.zarr"
    made(tmp_path / "m", "both", range(21, 24))
    raw = tmp_path / "m" / "both"
    scans = []
    for i, name in ((21, "liver"), (23, "tumour")):
        labels = {"seg": str(raw / f"l{i}.nii.gz")}
        scan = Source(f"w{i}", (str(raw / f"v{i}.nii.gz"),), labels, class_names={"seg": {1: name}})
        scans.append(scan)
    convert(scans, folder, workers=1)
    assert len(merge([folder, parts[0]], tmp_path / "x.zarr").volumes) == 2


def test_what_is_damaged_in_the_whole_is_linked_anew(parts, tmp_path, capsys):
    into = tmp_path / "all.zarr"
    words = ["merge", *map(str, parts), "--into", str(into), "--accept-doubts"]
    assert main(words) == 0
    intact = content(into)
    shutil.rmtree(into / "v0")
    (into / "b_v2/zarr.json").unlink()
    shard = next((into / "v3").glob("labels.seg/c*"))
    shard.unlink()
    shard.write_bytes(b"torn")
    capsys.readouterr()
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "no volume added, 6 already there" in out
    assert "3 volumes damaged: " in out and "linked anew from" in out
    assert not verify(into).problems
    assert content(into) == intact
    assert not verify(parts[1]).problems  # what was torn had lost its link to the part


def test_what_a_part_has_otherwise_or_no_more_is_told(parts, tmp_path, capsys):
    into = tmp_path / "all.zarr"
    words = ["merge", *map(str, parts), "--into", str(into), "--accept-doubts"]
    assert main(words) == 0
    nib.save(nib.Nifti1Image(anatomy_like((30, 26, 28), 9), np.eye(4)), tmp_path / "a/v0.nii.gz")
    (tmp_path / "b/v4.nii.gz").unlink()
    left = [Source("v0", (str(tmp_path / "a/v0.nii.gz"),), subject="p0")]
    convert(left, parts[0], workers=1)
    kept = Source("v3", (str(tmp_path / "b/v3.nii.gz"),), subject="p3")
    convert([kept], parts[1], workers=1, rerun=Rerun(prune=True))
    capsys.readouterr()
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "no volume added, 4 already there" in out
    assert "1 volume replaced: v0: is as a has it now" in out
    remedy = re.search(r"not have any more stay \(v4\): `mim3d (remove [^`]*)`", out)
    assert remedy is not None
    assert main(remedy[1].split()) == 0
    assert "v4" not in {record.id for record in Corpus.open(into).records}
