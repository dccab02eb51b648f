"""Volumes taken out for good: gone from disk, told in the history, and not back by themselves."""

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim3d.bench.corpora import anatomy_like
from mim3d.dataio.convert.run import convert
from mim3d.dataio.convert.upkeep import mend, remove
from mim3d.dataio.corpus.conversion import Rerun
from mim3d.dataio.corpus.history import HISTORY, Barred, Event, parse_history
from mim3d.dataio.corpus.names import TABLE, own_file
from mim3d.dataio.corpus.seen_files import SEEN
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.source import Source
from mim3d.engine.commands.cli import main


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, list[Source]]:
    """Two subjects of two volumes each, one of them labelled."""
    folder = tmp_path_factory.mktemp("remove")
    sources = []
    for i in range(4):
        volume = anatomy_like((30, 26, 28), i)
        path, label = str(folder / f"v{i}.nii.gz"), str(folder / f"l{i}.nii.gz")
        nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
        nib.save(nib.Nifti1Image((volume > 500).astype(np.uint8), np.eye(4)), label)
        labels = {"seg": label} if i == 1 else {}
        sources.append(Source(f"v{i}", (path,), labels, subject=f"p{i // 2}"))
    convert(sources, folder / "c.zarr", workers=1)
    return folder / "c.zarr", sources


@pytest.fixture
def corpus(made, tmp_path) -> Path:
    return shutil.copytree(made[0], tmp_path / "c.zarr")


def ids(corpus: Path) -> list[str]:
    found = Corpus.open(corpus)
    assert verify(corpus).problems == ()
    assert [found.table.volume_id(i) for i in range(found.table.n_volumes)] == [
        record.id for record in found.records
    ]
    return [record.id for record in found.records]


def test_a_withdrawn_consent(made, corpus, capsys):
    assert main(["remove", str(corpus), "--subject", "p0"]) == 0
    assert "2 volumes removed: v0, v1" in capsys.readouterr().out
    assert ids(corpus) == ["v2", "v3"]
    left = b"".join(f.read_bytes() for f in corpus.rglob("*") if f.is_file())
    for source in made[1][:2]:
        assert all(path.encode() not in left for path in source.paths)
    assert not (corpus / "v0").exists() and not (corpus / "v1").exists()
    (event,) = parse_history(own_file(corpus, HISTORY).read_bytes())
    assert (event.kind, event.volumes, event.subjects) == ("removed", ("v0", "v1"), ("p0",))


def test_what_was_removed_does_not_come_back_by_itself(made, corpus, tmp_path):
    remove(corpus, subjects=["p0"])
    report = convert(made[1], corpus, workers=1)
    assert [r.code for r in report.rejections] == ["removed", "removed"]
    assert ids(corpus) == ["v2", "v3"]
    moved = shutil.copy(made[1][0].images[0], tmp_path / "elsewhere.nii.gz")
    again = [Source("x", (str(moved),), subject="somebody"), Source("new", (str(moved),))]
    report = convert(again[:1], corpus, workers=1)
    assert [r.code for r in report.rejections] == ["removed"] and not (corpus / "x").exists()
    later = tmp_path / "later.nii.gz"
    nib.save(nib.Nifti1Image(anatomy_like((30, 26, 28), 9), np.eye(4)), later)
    report = convert([Source("later", (str(later),), subject="p0")], corpus, workers=1)
    assert [r.code for r in report.rejections] == ["removed"]
    assert "--readmit" in report.rejections[0].detail
    assert ids(corpus) == ["v2", "v3"]


def test_what_is_readmitted_comes_back(made, corpus, capsys):
    whole = ids(corpus)
    remove(corpus, volumes=["v1"])
    assert ids(corpus) == ["v0", "v2", "v3"]
    assert main(["remove", str(corpus), "--readmit", "v2"]) == 2
    assert "removed are: v1" in capsys.readouterr().err
    assert main(["remove", str(corpus), "--readmit", "v1"]) == 0
    assert convert(made[1], corpus, workers=1).rejections == ()
    assert ids(corpus) == whole
    assert [e.kind for e in parse_history(own_file(corpus, HISTORY).read_bytes())] == [
        "removed",
        "readmitted",
    ]


@pytest.mark.parametrize("words", [["--subject", "nobody"], ["--volume", "v0", "v9"], []])
def test_a_name_that_is_none_removes_nothing(corpus, words, capsys):
    assert main(["remove", str(corpus), *words]) == 2
    assert len(ids(corpus)) == 4 and not own_file(corpus, HISTORY).exists()


@pytest.mark.parametrize("how", ["flip", "delete", "cut"])
def test_a_damaged_history_readmits_nobody(made, corpus, how):
    remove(corpus, subjects=["p0"])
    whole = own_file(corpus, HISTORY).read_bytes()
    if how == "delete":
        own_file(corpus, HISTORY).unlink()
    elif how == "cut":
        own_file(corpus, HISTORY).write_bytes(whole[:-9])
    else:
        own_file(corpus, HISTORY).write_bytes(whole.replace(b"p0", b"p8"))
    (problem,) = verify(corpus).problems
    assert problem.where == HISTORY and "--mend" in problem.detail
    if how == "flip":
        mend(corpus)
    else:
        report = convert(made[1], corpus, workers=1)
        assert [r.code for r in report.rejections] == ["removed", "removed"]
    assert own_file(corpus, HISTORY).read_bytes() == whole and ids(corpus) == ["v2", "v3"]
    if how == "cut":  # and the table that repeats it as well
        own_file(corpus, HISTORY).write_bytes(whole[:-9])
        own_file(corpus, TABLE).write_bytes(b"")
        with pytest.raises(CorpusError, match="delete it, and remove again"):
            convert(made[1], corpus, workers=1)
        own_file(corpus, HISTORY).unlink()
        convert(made[1], corpus, workers=1)
        remove(corpus, subjects=["p0"])
        assert ids(corpus) == ["v2", "v3"]


def test_killed_while_it_removes_nothing_comes_back(made, corpus, monkeypatch):
    from mim3d.dataio.corpus.writer import CorpusWriter

    monkeypatch.setattr(CorpusWriter, "close", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        remove(corpus, subjects=["p0"])
    monkeypatch.undo()
    remove(corpus, subjects=["p0"])
    assert ids(corpus) == ["v2", "v3"]
    convert(made[1], corpus, workers=1)
    assert ids(corpus) == ["v2", "v3"]


def test_pruning_is_told_and_may_come_back(made, corpus, tmp_path):
    moved = tmp_path / "v9.nii.gz"
    shutil.copy(made[1][0].images[0], moved)
    nib.save(nib.Nifti1Image(anatomy_like((30, 26, 28), 9), np.eye(4)), moved)
    convert([Source("v9", (str(moved),))], corpus, workers=1)
    content = moved.read_bytes()
    moved.unlink()
    report = convert(made[1], corpus, workers=1, rerun=Rerun(prune=True))
    assert (report.n_removed, report.gone) == (1, ())
    (event,) = parse_history(own_file(corpus, HISTORY).read_bytes())
    assert (event.kind, event.volumes) == ("pruned", ("v9",))
    moved.write_bytes(content)
    assert convert([Source("v9", (str(moved),))], corpus, workers=1).n_converted == 1
    assert own_file(corpus, SEEN).exists() and ids(corpus)[-1] == "v9"


def packed_anew(source: Source, folder: Path) -> dict[str, Path]:
    """The image of a source by other bytes: unpacked, packed harder, and with its axes turned."""
    image = nib.Nifti1Image.from_filename(source.images[0])
    voxels = np.asarray(image.dataobj)
    places = {name: folder / f"{name}.nii.gz" for name in ("harder", "turned")}
    places["plain"] = folder / "plain.nii"
    raw = gzip.decompress(Path(source.images[0]).read_bytes())
    places["plain"].write_bytes(raw)
    places["harder"].write_bytes(gzip.compress(raw, 9))
    affine = np.diag([-1.0, 1, 1, 1])
    affine[0, 3] = voxels.shape[0] - 1
    nib.save(nib.Nifti1Image(voxels[::-1], affine), places["turned"])
    return places


@pytest.mark.parametrize("how", ["plain", "harder", "turned"])
def test_a_scan_packed_anew_under_another_name_stays_out(made, corpus, tmp_path, how):
    path = packed_anew(made[1][0], tmp_path)[how]
    remove(corpus, subjects=["p0"])
    report = convert([Source("x", (str(path),), subject="q")], corpus, workers=1)
    assert [r.code for r in report.rejections] == ["removed"]
    assert ids(corpus) == ["v2", "v3"] and not (corpus / "x").exists()
    assert main(["remove", str(corpus), "--readmit", "p0"]) == 0  # as the line says
    assert convert([Source("x", (str(path),), subject="q")], corpus, workers=1).rejections == ()
    assert "x" in ids(corpus)


def test_a_file_that_becomes_a_removed_scan_goes_too(made, tmp_path):
    other, into = tmp_path / "o.nii.gz", tmp_path / "c.zarr"
    shutil.copy(made[1][2].images[0], other)
    sources = [*made[1][:2], Source("o", (str(other),), subject="q")]
    convert(sources, into, workers=1)
    remove(into, subjects=["p0"])
    shutil.copy(made[1][0].images[0], other)
    report = convert(sources, into, workers=1, rerun=Rerun(rehash=True))
    assert {r.code for r in report.rejections} == {"removed"} and len(report.rejections) == 3
    assert "q" not in {record.subject for record in report.records}
    assert Corpus.open(into).records == [] and not (into / "o").exists()


def test_a_copy_left_under_another_name_is_told_with_what_takes_it_out(made, tmp_path, capsys):
    path, into = packed_anew(made[1][0], tmp_path)["plain"], tmp_path / "c.zarr"
    air = tmp_path / "air.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.eye(4)), air)
    empty = [Source(f"e{i}", (str(shutil.copy(air, tmp_path / f"e{i}.nii.gz")),)) for i in (1, 2)]
    sources = [made[1][0], Source("x", (str(path),), subject="q"), *empty]
    convert(sources, into, workers=1)
    assert main(["remove", str(into), "--subject", "p0"]) == 3
    out = capsys.readouterr().out
    assert f"`mim3d remove {into} --volume x` takes it out" in out
    damaged = convert(sources, into, workers=1, rerun=Rerun(verify=True))
    assert "x" in {record.id for record in damaged.records}  # told, and not taken in silence
    assert main(["remove", str(into), "--volume", "x"]) == 0
    convert(sources, into, workers=1)
    assert ids(into) == ["e1", "e2"]


@pytest.mark.parametrize("way", ["subject", "volume"])
def test_letting_one_in_again_lets_in_no_other(made, corpus, tmp_path, way):
    """Of those that one command removed."""
    other = tmp_path / "v9.nii.gz"
    nib.save(nib.Nifti1Image(anatomy_like((30, 26, 28), 9), np.eye(4)), other)
    convert([Source("v9", (str(other),), subject="p9")], corpus, workers=1)
    names = {"subject": ["p0", "p1"], "volume": ["v0", "v2"]}[way]
    gone = {"subject": ["v2", "v3"], "volume": ["v2"]}[way]
    assert main(["remove", str(corpus), f"--{way}", *names]) == 0
    assert main(["remove", str(corpus), "--readmit", names[0]]) == 0
    report = convert(made[1], corpus, workers=1)
    assert [id for id in ("v0", "v1", "v2", "v3") if id not in ids(corpus)] == gone
    assert {each.code for each in report.rejections} == {"removed"}
    assert all(f"--readmit {names[1]}`" in each.detail for each in report.rejections)
    assert main(["remove", str(corpus), "--readmit", names[1]]) == 0
    assert convert(made[1], corpus, workers=1).rejections == () and len(ids(corpus)) == 5


def test_of_a_corpus_whose_people_are_all_gone_one_is_let_in_again(made, corpus, capsys):
    """An empty manifest is no damaged one, unless the table tells of volumes."""
    manifest = own_file(corpus, "manifest.jsonl")
    whole = manifest.read_bytes()
    manifest.write_bytes(b"")
    assert main(["remove", str(corpus), "--subject", "p0"]) == 2
    assert "is missing or empty" in capsys.readouterr().err
    manifest.write_bytes(whole)
    assert main(["remove", str(corpus), "--subject", "p0", "p1"]) == 0
    assert manifest.read_bytes() == b""
    detail = convert(made[1], corpus, workers=1).rejections[0].detail
    assert main(detail.split("`")[1].split()[1:]) == 0
    assert {each.subject for each in convert(made[1], corpus, workers=1).records} == {"p0"}


def test_a_volume_of_a_removed_person_is_let_in_with_the_person_alone(made, corpus, capsys):
    assert main(["remove", str(corpus), "--subject", "p0"]) == 0
    capsys.readouterr()
    assert main(["remove", str(corpus), "--readmit", "v0"]) == 2
    words = capsys.readouterr().err.split("`")[1].split()[1:]
    assert main(words) == 0 and words[-1] == "p0"
    assert convert(made[1], corpus, workers=1).rejections == ()


def test_an_event_of_several_people_stands_until_all_are_let_in():
    """As earlier versions wrote them: nothing tells whose the hashes are."""
    removed = Event("removed", "2026-11-30", ("a1", "b1"), ("a", "b"), ("fa", "fb"))
    one = Event("readmitted", "2026-12-01", subjects=("a",))
    left = Barred([removed, one])
    assert left.event(subject="a") is None and left.event(subject="b") is not None
    assert left.event(files=["fa"]) is not None
    both = Event("readmitted", "2026-12-01", subjects=("b",))
    assert Barred([removed, one, both]).events == []


def test_no_corpus_is_made_within_another(made, corpus, capsys):
    """The outer one deletes what is not its own."""
    image = made[1][0].images[0]
    for words in (
        ["convert", image, str(corpus / "inner")],
        ["merge", str(made[0]), str(corpus), "--into", str(corpus / "v0" / "inner")],
    ):
        assert main(words) == 2
        assert f"lies in the corpus {corpus.resolve()}" in capsys.readouterr().err
    assert main(["convert", image, str(corpus.parent / "inner"), "--accept-doubts"]) == 0
