"""Who is who in merged corpora, and what only a merge can get wrong: copies, classes, halves."""

import gzip
import re
import shlex
import shutil
import unicodedata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim3d.bench.corpora import anatomy_like
from mim3d.dataio.convert import merge as merging
from mim3d.dataio.convert.merge import merge
from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.names import own_file
from mim3d.dataio.corpus.quarantine import quarantine_place
from mim3d.dataio.corpus.writer import CorpusWriter
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.source import Source
from mim3d.engine.commands.cli import main


def part(
    folder: Path, name: str, scans: dict[str, int], classes: dict[int, str] | None = None
) -> Path:
    """A corpus with a scan `v.nii.gz` for each subject, of a seed; with classes, labelled."""
    sources = []
    for subject, seed in scans.items():
        place = folder / "raw" / name / subject
        place.mkdir(parents=True, exist_ok=True)
        volume = anatomy_like((20, 18, 22), seed)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), place / "v.nii.gz")
        labels, names = {}, {}
        if classes:
            drawn = np.zeros(volume.shape, np.uint8)
            for number in classes:
                drawn[:2, :2, number] = number
            nib.save(nib.Nifti1Image(drawn, np.eye(4)), place / "l.nii.gz")
            labels, names = {"seg": str(place / "l.nii.gz")}, {"seg": classes}
        images = (str(place / "v.nii.gz"),)
        sources.append(Source(f"{subject}_v", images, labels, subject=subject, class_names=names))
    convert(sources, folder / f"{name}.zarr", workers=1)
    return folder / f"{name}.zarr"


def merged(*words: str | Path) -> int:
    return main(["merge", *map(str, words)])


def subjects_of(corpus: Path) -> dict[str, str]:
    return {record.id: record.subject for record in Corpus.open(corpus).records}


@pytest.fixture
def sessions(tmp_path) -> tuple[Path, Path]:
    """Two sessions of p1 and p2, and one of somebody else in each."""
    first = part(tmp_path, "first", {"p1": 1, "p2": 2, "p3": 3})
    return first, part(tmp_path, "second", {"p1": 4, "p2": 5, "p6": 6})


def test_a_half_made_or_damaged_part_is_refused_with_what_completes_it(sessions, tmp_path, capsys):
    """What of it was committed would be taken for all that there is."""
    manifest = own_file(sessions[1], "manifest.jsonl")
    whole, table = manifest.read_bytes(), own_file(sessions[1], "chunks.table")
    manifest.write_bytes(b"".join(whole.splitlines(keepends=True)[1:]))
    assert merged(*sessions, "--into", tmp_path / "all.zarr") == 2
    assert "bytes, and had" in capsys.readouterr().err
    manifest.write_bytes(whole + whole.splitlines(keepends=True)[0].replace(b"p1_v", b"p9_v"))
    assert merged(*sessions, "--into", tmp_path / "all.zarr") == 2
    capsys.readouterr()
    manifest.write_bytes(whole)
    aside = table.rename(tmp_path / "table")
    assert merged(*sessions, "--into", tmp_path / "all.zarr") == 2
    assert f"{sessions[1]}: the chunk table is missing" in capsys.readouterr().err
    assert not (tmp_path / "all.zarr").exists()
    aside.rename(table)
    assert merged(*sessions, "--into", tmp_path / "all.zarr", "--accept-doubts") == 0


def test_a_conversion_that_was_killed_is_no_part(sessions, tmp_path, capsys, monkeypatch):
    raw, part = tmp_path / "raw" / "second", sessions[1]
    shutil.copytree(raw / "p6", raw / "p7")
    nib.save(nib.Nifti1Image(anatomy_like((20, 18, 22), 9), np.eye(4)), raw / "p7" / "v.nii.gz")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CorpusWriter, "close", killed)
        assert main(["convert", str(raw), str(part), "--workers", "1"]) == 130
    capsys.readouterr()
    assert merged(*sessions, "--into", tmp_path / "all.zarr") == 2
    told = capsys.readouterr().err
    assert f"{part}: a conversion or a merge did not finish" in told
    remedy = re.search(r"run the same `mim3d (convert)` again to complete it", told)
    assert remedy and main([remedy[1], str(raw), str(part), "--workers", "1"]) == 0
    assert merged(*sessions, "--into", tmp_path / "all.zarr", "--accept-doubts") == 0


def test_the_remedy_of_namesakes_settles_who_they_are(sessions, tmp_path, capsys):
    """Also where names of files had told it, which lie in several places then."""
    into, raw = tmp_path / "all.zarr", [tmp_path / "raw" / each for each in ("first", "second")]
    parts = [tmp_path / f"{folder.name}.z" for folder in raw]
    for folder, part in zip(raw, parts, strict=True):
        assert main(["convert", str(folder), str(part), "--workers", "1"]) == 0
    assert merged(*parts, "--into", into) == 3
    remedy = re.search(r"with (--same-subjects) \S+ \(or (all)\)", capsys.readouterr().out)
    assert remedy and merged(*parts, "--into", into, *remedy.groups()) == 0
    assert len(set(subjects_of(into).values())) == 4
    # The ids that a merge tells may stand in a table.
    ids = [id for id in subjects_of(into) if id.startswith("first")]
    table = tmp_path / "who.csv"
    table.write_text("file,subject\n" + "".join(f"{id},A{id[-4:]}\n" for id in ids))
    assert merged(*parts, "--into", tmp_path / "b.zarr", "--subjects", table) == 0
    assert {"Ap1_v", "Ap2_v"} < set(subjects_of(tmp_path / "b.zarr").values())


def test_one_name_in_two_spellings_is_doubted(tmp_path, capsys):
    """Accents as letters of their own, as a Mac writes names, and as one."""
    forms = [unicodedata.normalize(form, "Jörg") for form in ("NFC", "NFD")]
    parts = [part(tmp_path, f"c{i}", {name: i}) for i, name in enumerate(forms)]
    into = tmp_path / "all.zarr"
    assert merged(*parts, "--into", into) == 3
    assert "1 subject of the same name in several corpora" in capsys.readouterr().out
    assert merged(*parts, "--into", into, "--same-subjects", forms[1]) == 0
    assert len(set(subjects_of(into).values())) == 1


def test_a_name_of_two_corpora_is_doubted_and_the_remedy_makes_it_one(sessions, tmp_path, capsys):
    into = tmp_path / "all.zarr"
    words = (*sessions, "--into", into)
    assert merged(*words) == 3
    out = capsys.readouterr().out
    assert "2 subjects of several corpora told apart: p1: first/p1 (first_p1_v)" in out
    assert "2 subjects of the same name in several corpora, taken for several people" in out
    assert len(set(subjects_of(into).values())) == 6
    found = re.search(r"with (--same-subjects p1) \(or (all)\) makes them one", out)
    assert found
    assert merged(*words, *shlex.split(found[1])) == 3  # p2 is left
    assert subjects_of(into) == {
        **{"first_p1_v": "p1", "second_p1_v": "p1", "p3_v": "p3", "p6_v": "p6"},
        **{"first_p2_v": "first/p2", "second_p2_v": "second/p2"},
    }
    assert merged(*words, "--same-subjects", found[2]) == 0
    assert set(subjects_of(into).values()) == {"p1", "p2", "p3", "p6"}
    assert "2 subjects of several corpora taken for one person: p1" in capsys.readouterr().out
    assert merged(*words) == 0  # a name once given stays
    assert "told apart" not in capsys.readouterr().out
    assert verify(into).problems == ()


def test_people_of_one_name_are_accepted_and_stay_so(sessions, tmp_path, capsys):
    into = tmp_path / "all.zarr"
    assert merged(*sessions, "--into", into, "--accept-doubts") == 0
    assert "note: 2 subjects of the same name" in capsys.readouterr().out
    assert subjects_of(into)["first_p1_v"] == "first/p1"
    assert main(["inspect", str(into), "--no-pictures"]) == 0


def test_a_table_tells_who_is_who_as_for_convert(sessions, tmp_path, capsys):
    """Also of people that are called otherwise in each corpus, by end of path, id or folder."""
    into, table = tmp_path / "all.zarr", tmp_path / "who.csv"
    raw = tmp_path / "raw"
    table.write_text(
        f"file,subject\n{raw}/first/p3,Ann\np6_v,Ann\nsecond/p1/v.nii.gz,Bob\np9,Eve\n"
    )
    assert merged(*sessions, "--into", into, "--subjects", table) == 3
    out = capsys.readouterr().out
    assert f"1 row of {table} (such as p9) name no file" in out and "1 subject of the same" in out
    who = subjects_of(into)
    assert (who["p3_v"], who["p6_v"], who["second_p1_v"]) == ("Ann", "Ann", "Bob")
    assert {who["first_p1_v"], who["first_p2_v"], who["second_p2_v"]} == {
        *("p1", "first/p2", "second/p2"),
    }


def test_capitals_alone_are_doubted_and_a_name_of_one_corpus_is_refused(tmp_path, capsys):
    parts = [part(tmp_path, "a", {"p1": 1}), part(tmp_path, "b", {"P1": 2, "q": 3})]
    into = tmp_path / "all.zarr"
    assert merged(*parts, "--into", into, "--same-subjects", "q") == 2
    assert "q: is no subject of several corpora; those are p1" in capsys.readouterr().err
    assert not into.exists()
    assert merged(*parts, "--into", into) == 3
    assert merged(*parts, "--into", into, "--same-subjects", "P1") == 0
    assert sorted(subjects_of(into).values()) == ["p1", "p1", "q"]


def test_one_corpus_joins_a_corpus_that_exists(sessions, tmp_path, capsys):
    into, more = tmp_path / "all.zarr", part(tmp_path, "more", {"p1": 8})
    assert merged(sessions[0], "--into", into) == 2
    assert "name two or more, or one with --into a corpus that exists" in capsys.readouterr().err
    assert merged(*sessions, "--into", into, "--accept-doubts") == 0
    assert merged(more, "--into", into) == 3  # three people are called p1 now
    assert "p1: more/p1 (p1_v), first/p1 (first_p1_v), second/p1" in capsys.readouterr().out
    assert subjects_of(into)["p1_v"] == "more/p1"
    assert merged(more, "--into", into, "--same-subjects", "p1") == 3
    assert subjects_of(into)["p1_v"] == "p1"


def test_a_later_corpus_of_the_same_folder_name_is_another_one(tmp_path):
    """Else `part/p1` of the first would be whom `part/p1` of the second is."""
    first, second = part(tmp_path / "x", "part", {"p1": 1}), part(tmp_path / "y", "part", {"p1": 2})
    other, into = part(tmp_path, "other", {"p1": 3}), tmp_path / "all.zarr"
    merge([first, other], into)
    merge([second], into)
    records = Corpus.open(into).records
    assert len({record.subject for record in records}) == 3
    assert len({record.group for record in records}) == 3


def test_a_removed_person_stays_out_under_the_name_that_is_one(sessions, tmp_path):
    assert main(["remove", str(sessions[0]), "--subject", "p1"]) == 0
    into = tmp_path / "all.zarr"
    assert merged(*sessions, "--into", into, "--subjects", table_of_p1(tmp_path)) == 3
    assert "p1" not in subjects_of(into).values()


def table_of_p1(folder: Path) -> Path:
    (folder / "who.csv").write_text("file,subject\np1_v,p1\n")
    return folder / "who.csv"


def test_copies_under_two_subjects_are_told_also_where_they_were_packed_anew(tmp_path, capsys):
    a, b = part(tmp_path, "a", {"p1": 1, "p2": 2}), part(tmp_path, "b", {"q1": 1, "q2": 3})
    assert merged(a, b, "--into", tmp_path / "all.zarr") == 3
    assert "1 file of the same content under several subjects" in capsys.readouterr().out
    packed = (tmp_path / "raw/a/p1/v.nii.gz").read_bytes()
    (tmp_path / "copy.nii").write_bytes(gzip.decompress(packed))
    (tmp_path / "t.csv").write_text(
        f"image,subject\n{tmp_path}/raw/a/p1/v.nii.gz,p1\n{tmp_path}/copy.nii,other\n"
    )
    words = ["convert", str(tmp_path / "t.csv"), str(tmp_path / "c.zarr"), "--workers", "1"]
    assert main(words) == 3
    assert "1 file of the same content under several subjects" in capsys.readouterr().out
    (tmp_path / "again.nii").write_bytes(gzip.decompress(packed))
    with (tmp_path / "t.csv").open("a") as table:  # by bytes two are alike, by voxels three
        table.write(f"{tmp_path}/again.nii,third\n")
    assert main(words) == 3
    out = capsys.readouterr().out
    assert "1 file of the same content" in out and "again.nii of third" in out


def test_classes_that_a_corpus_does_not_know_are_told(tmp_path, capsys):
    a = part(tmp_path, "a", {"p1": 1}, {1: "liver", 2: "spleen"})
    b = part(tmp_path, "b", {"q1": 2}, {1: "liver", 3: "kidney"})
    same = part(tmp_path, "same", {"r1": 3}, {1: "liver", 2: "spleen"})
    plain = part(tmp_path, "plain", {"s1": 4})
    assert merged(a, b, "--into", tmp_path / "x.zarr") == 3
    out = capsys.readouterr().out
    assert "label 'seg' has other classes" in out and "(no 3 in a; no 2 in b)" in out
    assert merged(a, same, plain, "--into", tmp_path / "y.zarr") == 0
    assert merged(b, "--into", tmp_path / "y.zarr") == 3
    assert merged(b, "--into", tmp_path / "y.zarr", "--accept-doubts") == 0


def test_a_half_way_merge_tells_the_command_that_completes_it(
    sessions, tmp_path, capsys, monkeypatch
):
    into, linked = tmp_path / "all.zarr", []
    real = merging.link_folder

    def link(*args):
        if len(linked) == 4:
            raise KeyboardInterrupt
        linked.append(real(*args))

    monkeypatch.setattr(merging, "link_folder", link)
    assert merged(*sessions, "--into", into, "--accept-doubts") == 130
    monkeypatch.setattr(merging, "link_folder", real)
    assert "the same command goes on" in capsys.readouterr().err
    raw = str(tmp_path / "raw/first")
    commands = (
        ["inspect", str(into), "--no-pictures"],
        ["remove", str(into), "--subject", "p3"],
        ["convert", raw, str(into)],
        ["export-nifti", str(into), str(tmp_path / "back")],
    )
    remedies = set()
    for command in commands:
        assert main(command) == 2
        remedies |= set(re.findall(r"run `mim3d (merge [^`]*)` again", capsys.readouterr().err))
    (remedy,) = remedies
    assert main(["verify", str(into)]) == 3
    told = capsys.readouterr().out
    assert f"run `mim3d {remedy}` again" in told and "mim3d convert" not in told
    assert main(shlex.split(remedy)) == 0
    assert len(Corpus.open(into).records) == 6 and verify(into).problems == ()


def test_the_same_merge_mends_a_damaged_manifest_and_tells_what_it_cannot(
    sessions, tmp_path, capsys
):
    into = tmp_path / "all.zarr"
    words = (*sessions, "--into", into, "--accept-doubts")
    assert merged(*words) == 0
    manifest = into / "mim3d/manifest.jsonl"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:100] + b"x" + whole[101:])
    assert main(["inspect", str(into), "--no-pictures"]) == 2
    assert "or the same `mim3d merge` where that made it" in capsys.readouterr().err
    assert merged(*words) == 0 and manifest.read_bytes() == whole
    assert verify(into).problems == ()
    manifest.write_bytes(whole[:100] + b"x" + whole[101:])  # first_p1_v
    more = part(tmp_path, "more", {"s": 9})
    capsys.readouterr()
    assert merged(more, "--into", into) == 3
    out = capsys.readouterr().out
    assert "the manifest line of volume first_p1_v was lost" in out
    assert "or merge the corpus that it was of" in out and (into / "first_p1_v--lost").exists()
    assert merged(*words) == 0 and "first_p1_v" in subjects_of(into)
    assert not (into / "first_p1_v--lost").exists()


def test_what_the_destination_had_left_out_is_still_listed(sessions, tmp_path):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no image")
    into = tmp_path / "all.zarr"
    convert([Source("bad", (str(bad),))], sessions[0], workers=1)
    merge(sessions, into)
    convert([Source("bad", (str(bad),))], into, workers=1)
    merge(sessions, into)
    assert str(bad) in Path(quarantine_place(str(into))).read_text()


def test_places_that_are_no_corpus_are_called_so(sessions, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("x")
    for words, line in (
        ((*sessions, "--into", file), f"{file}: is a file, and a corpus is a folder"),
        ((*sessions, "--into", ""), "the destination's name is empty"),
        ((sessions[0], file, "--into", tmp_path / "z"), f"{file}: no corpus; `mim3d convert SRC"),
        ((sessions[0], tmp_path / "raw", "--into", tmp_path / "z"), "raw: no corpus; `mim3d conv"),
    ):
        assert merged(*words) == 2
        assert line in capsys.readouterr().err
    with pytest.raises(CorpusError, match="0 corpora to merge"):
        merge([], tmp_path / "z")
