"""A volume made anew must not become less, or another, without a word: refused, told, or asked."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from labelled_folder import labelled_folder

from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.manifest import VolumeRecord, read_manifest
from mim3d.dataio.corpus.writer import CorpusWriter
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.inspect.verify import AGAIN, verify
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.discover import discover
from mim3d.engine.commands.cli import main


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of three labelled images."""
    return labelled_folder(tmp_path_factory.mktemp("losses"))


@pytest.fixture
def place(made, tmp_path, monkeypatch) -> Path:
    """Sources in `raw` and their corpus `c`, in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "raw")
    assert converted() == 0
    return tmp_path


def converted(*more: str) -> int:
    return main(["convert", "raw", "c", "--workers", "1", *more])


def records() -> dict[str, VolumeRecord]:
    return {record.id: record for record in read_manifest(Path("c"))}


def labels(id: str) -> list[str]:
    return [label.name for label in records()[id].labels]


def flip(key: str) -> None:
    file = Path("c") / key
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)


def content(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def follow(printed: str, pattern: str) -> int:
    """Do what a message says: the command in it that fits."""
    command = next(c for c in re.findall(r"`mim3d ([^`]*)`", printed) if re.search(pattern, c))
    return main(shlex.split(command))


@pytest.mark.parametrize("key", ["P1/0/c.0.0.0", "P1/labels.seg/c.0.0.0"])
@pytest.mark.parametrize("way", ["mend", "convert"])
def test_a_damaged_volume_keeps_a_label_whose_file_is_gone(place, capsys, key, way):
    whole, label = content("c/P1"), Path("raw/P1_seg.nii.gz")
    file = label.read_bytes()
    label.unlink()
    flip(key)
    left = content("c/P1")
    if way == "mend":
        assert main(["verify", "c", "--mend"]) == 3
    else:
        assert converted("--verify") == 3
    told = capsys.readouterr().out
    assert "P1_seg.nii.gz: no such file" in told and "without label seg" in told
    assert content("c/P1") == left and labels("P1") == ["seg"]
    label.write_bytes(file)
    assert follow(told, "--mend$") == 0
    assert content("c/P1") == whole


def test_what_the_refusal_offers_makes_the_volume_without_the_label(place, capsys):
    Path("raw/P1_seg.nii.gz").unlink()
    flip("P1/0/c.0.0.0")
    main(["verify", "c", "--mend"])
    assert follow(capsys.readouterr().out, "--accept-losses") == 0
    told = capsys.readouterr().out
    assert "left out" in told and "P1_seg.nii.gz" in told
    assert labels("P1") == [] and labels("P0") == ["seg"]
    assert main(["verify", "c"]) == 0


def test_it_stays_in_the_manifest_though_its_folder_is_gone_too(place, capsys):
    """The image could be made anew; the label could not."""
    Path("raw/P1_seg.nii.gz").unlink()
    shutil.rmtree("c/P1")
    assert main(["verify", "c", "--mend"]) == 3
    assert labels("P1") == ["seg"]
    assert follow(capsys.readouterr().out, "--accept-losses") == 0
    assert labels("P1") == [] and main(["verify", "c"]) == 0


def test_mending_that_loses_a_whole_volume_is_no_success(place, capsys):
    for file in Path("raw").glob("P1*"):
        file.unlink()
    shutil.rmtree("c/P1")
    assert main(["verify", "c", "--mend"]) == 3
    assert "nothing is left of its folder" in capsys.readouterr().out
    assert [*records()] == ["P0", "P2"]


@pytest.mark.parametrize("suffix", ["", "_seg"])
def test_a_file_that_took_the_place_of_a_source_mends_nothing(place, capsys, suffix):
    whole, file = content("c/P1"), Path(f"raw/P1{suffix}.nii.gz")
    earlier = file.read_bytes()
    shutil.copy(f"raw/P2{suffix}.nii.gz", file)
    flip("P1/0/c.0.0.0")
    assert main(["verify", "c", "--mend"]) == 3
    told = capsys.readouterr().out
    assert f"{file.resolve()}: is another file than volume P1 was made of" in told
    other = file.read_bytes()
    file.write_bytes(earlier)
    assert follow(told, "--mend$") == 0 and content("c/P1") == whole
    file.write_bytes(other)
    flip("P1/0/c.0.0.0")
    capsys.readouterr()
    assert follow(told, "--accept-losses") == 0
    assert f"from another file than before: {file.resolve()}" in capsys.readouterr().out
    assert content("c/P1") != whole and main(["verify", "c", "--sources"]) == 0


def test_convert_tells_which_files_changed(place, capsys):
    shutil.copy("raw/P2_seg.nii.gz", "raw/P1_seg.nii.gz")
    assert converted("--accept-doubts") == 0
    told = capsys.readouterr().out
    assert "1 files changed" in told and "P1_seg.nii.gz" in told
    assert converted("--accept-doubts") == 0
    assert "files changed" not in capsys.readouterr().out


@pytest.fixture
def organs(made, tmp_path, monkeypatch) -> Path:
    """Two people, each with two labels."""
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        folder = Path(f"raw/P{i}")
        folder.mkdir(parents=True)
        files = {"ct": f"P{i}", "liver_mask": f"P{i}_seg", "spleen_mask": "P2_seg"}
        for name, file in files.items():
            shutil.copy(made / f"{file}.nii.gz", folder / f"{name}.nii.gz")
    assert converted() == 0
    return tmp_path


def test_one_of_two_labels_whose_file_is_gone_is_kept(organs, capsys):
    whole = content("c/P1_ct")
    Path("raw/P1/spleen_mask.nii.gz").unlink()
    assert converted() == 3
    told = capsys.readouterr().out
    assert "spleen_mask.nii.gz: no such file" in told and "--accept-losses" in told
    assert content("c/P1_ct") == whole and labels("P1_ct") == ["liver_mask", "spleen_mask"]
    assert converted("--accept-losses") == 3
    assert labels("P1_ct") == ["liver_mask"]
    assert converted() == 0


def test_a_label_that_has_another_name_now_is_not_lost(organs):
    Path("raw/P1/spleen_mask.nii.gz").rename("raw/P1/organ_mask.nii.gz")
    assert converted() == 0
    assert labels("P1_ct") == ["liver_mask", "organ_mask"]


def test_losses_are_accepted_where_something_is_mended(place, capsys):
    assert main(["verify", "c", "--accept-losses"]) == 2
    assert "give --mend too" in capsys.readouterr().err


def lose_line(way: str) -> None:
    """Lose the manifest line of P1: by a flipped bit, or whole."""
    file = Path("c/mim3d/manifest.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    changed = {"flip": lines[1].replace(b"P1.nii", b"Q1.nii", 1), "cut": b""}
    file.write_bytes(b"".join([lines[0], changed[way], lines[2]]))


@pytest.mark.parametrize("way", ["flip", "cut"])
def test_a_whole_volume_without_its_line_is_never_deleted(place, capsys, way):
    whole, corpus = content("c/P1"), content("c")
    away = {file: file.read_bytes() for file in Path("raw").glob("P1*")}
    for file in away:
        file.unlink()
    lose_line(way)
    for words in (["verify", "c", "--mend"], ["remove", "c", "--volume", "P0"]):
        assert main(words) == 2
        assert "run the same `mim3d convert` again" in capsys.readouterr().err
        assert content("c/P1") == whole
    for _ in range(2):
        assert converted() == 3
        told = capsys.readouterr().out
        assert "the manifest line of volume P1 was lost" in told
        assert content("c/P1--lost") == whole and [*records()] == ["P0", "P2"]
    assert main(["verify", "c", "--mend"]) == 3 and content("c/P1--lost") == whole
    for file, data in away.items():
        file.write_bytes(data)
    assert converted() == 0 and main(["verify", "c"]) == 0
    now = content("c")
    for files in (now, corpus):
        del files["mim3d/sources.jsonl"]
    assert now == corpus


def test_what_was_set_aside_is_deleted_by_the_words_of_the_message(place, capsys):
    for file in Path("raw").glob("P1*"):
        file.unlink()
    lose_line("cut")
    assert converted() == 3
    assert follow(capsys.readouterr().out, "remove") == 0
    assert not Path("c/P1--lost").exists()
    assert main(["verify", "c"]) == 0 and converted() == 0


def test_another_source_of_the_same_id_does_not_take_the_place_of_a_lost_one(place, capsys):
    whole = content("c/P1")
    shutil.copy("raw/P2.nii.gz", "raw/P1.nii.gz")
    lose_line("cut")
    assert converted("--accept-doubts") == 3
    assert content("c/P1--lost") == whole and content("c/P1") != whole
    assert [*records()] == ["P0", "P1", "P2"]


def test_what_was_removed_on_request_is_not_set_aside(place, monkeypatch):
    """Though the removal was interrupted before the folder was gone."""
    from mim3d.dataio.storage.store import LocalStore

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "delete", interrupted)
        assert main(["remove", "c", "--subject", "P1"]) != 0
    assert Path("c/P1").exists()
    assert converted() == 3
    assert not [path for path in Path("c").iterdir() if path.name.startswith("P1")]


def test_merging_into_a_corpus_that_lost_a_line_brings_it_back_or_keeps_it(place, capsys):
    """A volume whose line is lost takes no other's place, and is never deleted unseen."""
    assert main(["convert", "raw/P0.nii.gz", "a", "--workers", "1"]) == 0
    shutil.copytree("c", "b")
    lose_line("cut")
    capsys.readouterr()
    assert main(["merge", "a", "--into", "c", "--accept-doubts"]) == 3
    out = capsys.readouterr().out
    assert "P1: the manifest line of volume P1 was lost" in out
    assert "a: P0 has no label seg, which P0 of c has: left as it is there" in out
    assert labels("P0") == ["seg"] and Path("c/P1--lost").exists() and not Path("c/P1").exists()
    main(["merge", "b", "--into", "c", "--accept-doubts"])
    assert "1 volumes of b added, 2 already there" in capsys.readouterr().out
    assert not Path("c/P1--lost").exists() and verify("c").problems == ()
    shutil.rmtree("a")  # as that line says
    assert main(["convert", "raw", "a", "--workers", "1"]) == 0
    assert main(["merge", "a", "--into", "c", "--accept-doubts"]) == 0


OWN_PARTS = {
    "folder": "",
    "every file in it": "*.*",
    "all but its array": "*.jsonl chunks.table",
}


@pytest.fixture(params=[*OWN_PARTS.values()], ids=[*OWN_PARTS])
def lost_own(place, request) -> str:
    """The corpus without its own files; P1 and the label of P2 are gone from the sources."""
    for file in ("P1", "P1_seg", "P2_seg"):
        Path(f"raw/{file}.nii.gz").rename(f"{file}.nii.gz")
    shutil.copytree("c", "whole")
    if not request.param:
        shutil.rmtree("c/mim3d")
    for pattern in request.param.split():
        for file in Path("c/mim3d").glob(pattern):
            file.unlink()
    return request.param


def test_no_volume_is_deleted_where_the_own_files_are_lost(lost_own, capsys):
    volumes = {id: content(f"c/{id}") for id in ("P1", "P2")}
    (problem,) = verify("c").problems
    assert "was lost with the files beside it" in problem.detail and AGAIN in problem.detail
    assert converted() == 3  # as it says
    told = capsys.readouterr().out
    assert "volume P1 was lost" in told and "volume P2 was lost" in told
    bare = lost_own != OWN_PARTS["all but its array"]
    assert ("history.jsonl: was lost, and with it which subjects were removed" in told) == bare
    assert {id: content(f"c/{id}--lost") for id in volumes} == volumes
    assert [*records()] == ["P0", "P2"] and labels("P2") == []
    assert main(["verify", "c"]) == 3 and "P1--lost" in capsys.readouterr().out
    for file in ("P1", "P1_seg", "P2_seg"):
        Path(f"{file}.nii.gz").rename(f"raw/{file}.nii.gz")
    assert converted() == 0 and main(["verify", "c"]) == 0  # as the message says
    now, corpus = content("c"), content("whole")
    for files in (now, corpus):
        del files["mim3d/sources.jsonl"]
    assert now == corpus


def test_what_cannot_mend_lost_own_files_refuses_and_leaves_all(lost_own, capsys):
    left = content("c")
    for words in (
        ["remove", "c", "--subject", "P0"],
        ["remove", "c", "--volume", "P1"],
        ["verify", "c", "--mend"],
        ["convert", "raw", "c", "--chunk", "8"],
    ):
        assert main(words) == 2
        told = capsys.readouterr().err
        assert "run the same `mim3d convert` again" in told or "--chunk" in words
        assert content("c") == left


def test_a_merge_into_lost_own_files_deletes_no_volume(lost_own, capsys):
    volumes = {id: content(f"c/{id}") for id in ("P1", "P2")}
    assert main(["convert", "raw", "part", "--workers", "1"]) == 0
    assert main(["convert", "P1.nii.gz", "more", "--workers", "1", "--subject", "1"]) == 0
    capsys.readouterr()
    assert main(["merge", "part", "more", "--into", "c"]) == 3
    told = capsys.readouterr().out
    assert "volume P1 was lost" in told and "volume P2 was lost" in told
    assert {id: content(f"c/{id}--lost") for id in volumes} == volumes
    assert {"P0", "P2"} <= {*records()} and not Path("c/P0--lost").exists()


def test_killed_between_looking_and_setting_aside_loses_nothing(lost_own, monkeypatch):
    whole = content("c/P1")
    with monkeypatch.context() as patched:
        patched.setattr(CorpusWriter, "set_aside", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(discover("raw").sources, "c", workers=1)
    assert converted() == 3 and content("c/P1--lost") == whole


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_a_first_conversion_never_committed_is_dropped(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "raw")
    with monkeypatch.context() as patched:
        patched.setattr(CorpusWriter, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(discover("raw").sources, "c", workers=1)
    assert Path("c/P1/zarr.json").exists()
    (problem,) = verify("c").problems
    assert problem.detail == "a conversion committed no volume yet; " + AGAIN
    with pytest.raises(CorpusError, match="nothing is committed yet"):
        _ = Corpus.open("c").records
    for file in Path("raw").glob("P1*"):
        file.unlink()
    assert converted() == 0 and verify("c").problems == ()  # as it says
    assert sorted(p.name for p in Path("c").glob("P*")) == ["P0", "P2"]
