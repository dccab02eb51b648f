"""What was declared of volumes before a second `convert`: it stays, or its change needs a look."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from labelled_folder import labelled_folder

from mim3d.dataio.corpus.manifest import VolumeRecord, manifest_bytes, read_manifest
from mim3d.dataio.corpus.names import MANIFEST, own_file
from mim3d.dataio.inspect.doubts import corpus_doubts
from mim3d.dataio.inspect.verify import verify
from mim3d.engine.commands.cli import main


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of three labelled images."""
    return labelled_folder(tmp_path_factory.mktemp("second"))


@pytest.fixture
def place(made, tmp_path, monkeypatch) -> Path:
    """Sources in `raw`, in the current folder, with tables beside."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "raw")
    Path("who.csv").write_text("file,subject\nP0,A\nP1,A\nP2,B\n")
    return tmp_path


def converted(*more: str, source: str = "raw", corpus: str = "c") -> int:
    return main(["convert", source, corpus, "--workers", "1", *more])


def records(corpus: str = "c") -> list[VolumeRecord]:
    return read_manifest(Path(corpus))


def subjects() -> list[str]:
    return [record.subject for record in records()]


def table(name: str, *rows: str, columns: str = "image,label,subject,split") -> str:
    """A CSV beside the images; the path of it."""
    Path("raw", name).write_text("\n".join([columns, *rows]) + "\n")
    return f"raw/{name}"


DECLARED = [["--subjects", "who.csv"], ["--subject", "P"], ["--dataset", "D"]]


@pytest.mark.parametrize("words", DECLARED, ids=lambda words: words[0])
@pytest.mark.parametrize("accepted", [False, True])
def test_people_stay_who_they_were_declared_to_be(place, capsys, words, accepted):
    assert converted(*words, *["--accept-doubts"] * accepted) == 0
    whole = own_file("c", MANIFEST).read_bytes()
    capsys.readouterr()
    assert converted() == 0
    told = capsys.readouterr().out
    first = records()[0].subject
    assert f"the subject of P0 and 2 more volumes stays {first}, told before" in told
    if not (accepted and words[0] == "--dataset"):  # where names alone were accepted
        assert own_file("c", MANIFEST).read_bytes() == whole
    assert subjects() == {"who.csv": ["A", "A", "B"], "P": ["P"] * 3}.get(
        words[1], ["D/P0", "D/P1", "D/P2"]
    )
    assert verify("c").problems == ()


def test_doubts_accepted_later_undo_no_declared_people(place):
    assert converted("--subjects", "who.csv") == 0
    assert converted("--accept-doubts") == 0 and subjects() == ["A", "A", "B"]


def test_another_declaration_is_taken_and_told(place, capsys):
    """By an option it is meant; a table that says otherwise than before needs a look."""
    assert converted("--subject", "P") == 0
    capsys.readouterr()
    assert converted("--subjects", "who.csv") == 0 and subjects() == ["A", "A", "B"]
    told = capsys.readouterr().out
    assert "note: the subject of P0 and 2 more volumes was P and is A now" in told
    rows = [f"P{i}.nii.gz,P{i}_seg.nii.gz,X," for i in range(3)]
    assert converted(source=table("l.csv", *rows)) == 3 and subjects() == ["X"] * 3
    told = capsys.readouterr().out
    assert "warning: the subject of P0 and 2 more volumes was A and is X now" in told
    assert converted(source="raw/l.csv") == 0
    assert converted("--subject", "P", "--accept-doubts") == 0 and subjects() == ["P"] * 3
    assert converted("--accept-doubts", source="raw/l.csv") == 0 and subjects() == ["X"] * 3


@pytest.mark.parametrize(
    ("first", "then", "changed"),
    [
        (["--dataset", "one"], ["--dataset", "two"], "one/P0 and is two/P0"),
        (["--subjects", "who.csv"], ["--dataset", "two"], "A and is two/P0"),
        (["--subject", "P", "--dataset", "one"], ["--dataset", "two"], "one/P and is two/P0"),
        (
            ["--subject", "P", "--dataset", "one"],
            ["--subject", "P", "--dataset", "two"],
            "one/P and is two/P",
        ),
    ],
)
def test_another_data_set_of_declared_people_is_told(place, capsys, first, then, changed):
    assert converted(*first) == 0
    before = subjects()
    capsys.readouterr()
    assert converted(*then, "--dry-run") == 3 and subjects() == before
    assert converted(*then) == 3
    line = f"warning: the subject of P0 and 2 more volumes was {changed} now"
    assert capsys.readouterr().out.count(line) == 2
    assert converted(*first, "--accept-doubts") == 0 and subjects() == before  # as it says
    assert converted(*then, "--accept-doubts") == 0 and converted(*then) == 0


def test_a_data_set_of_people_that_names_had_told_is_no_warning(place):
    assert converted() == 0
    assert converted("--dataset", "one") == 0 and subjects()[0] == "one/P0"
    assert converted("--dataset", "one", "--subjects", "who.csv") == 0


def test_declaring_people_that_names_had_told_is_no_warning(place, capsys):
    """It is the remedy of the doubts that names give."""
    assert converted() == 0
    assert converted("--subjects", "who.csv") == 0
    assert "note: the subject of P0 and 2 more volumes was P0 and is A now" in (
        capsys.readouterr().out
    )
    assert subjects() == ["A", "A", "B"]


def test_new_files_beside_declared_people_are_told_when_they_go_by_names(place, capsys):
    away = [shutil.move(file, "..") for file in list(Path("raw").glob("P2*"))]
    assert converted("--subjects", "who.csv", "--accept-doubts") == 0
    for file in away:
        shutil.move(file, "raw")
    assert converted() == 3
    told = capsys.readouterr().out
    assert "go by names" in told and "P2.nii.gz: P2" in told
    assert subjects() == ["A", "A", "P2"]
    assert converted("--subjects", "who.csv") == 0 and subjects() == ["A", "A", "B"]


def test_splits_sets_and_names_of_classes_stay(place, capsys):
    rows = [f"P{i}.nii.gz,P{i}_seg.nii.gz,{s},{split},site" for i, (s, split) in
            enumerate([("A", "train"), ("B", "train"), ("C", "test")])]  # fmt: skip
    assert converted(source=table("l.csv", *rows, columns="image,label,subject,split,group")) == 0
    whole = own_file("c", MANIFEST).read_bytes()
    assert converted("--layout", "folder") == 0
    told = capsys.readouterr().out
    (line,) = [line for line in told.splitlines() if "the split of P0 and 2 more" in line]
    assert "stays train" in line and line.endswith("a table's column `split` tells another")
    assert own_file("c", MANIFEST).read_bytes() == whole


def test_another_split_is_taken_and_told(place, capsys):
    rows = ["P0.nii.gz,P0_seg.nii.gz,A,train", "P1.nii.gz,P1_seg.nii.gz,B,test"]
    assert converted(source=table("l.csv", *rows)) == 0
    changed = table("m.csv", rows[0].replace("train", "test"), rows[1])
    assert converted(source=changed) == 3
    assert "the split of P0 was train and is test now" in capsys.readouterr().out
    assert [record.split for record in records()] == ["test", "test"]
    assert converted(source=changed) == 0


@pytest.mark.parametrize("way", ["one table", "two tables", "dry run"])
def test_a_subject_in_several_splits_is_told_with_its_volumes(place, capsys, way):
    rows = ["P0.nii.gz,P0_seg.nii.gz,A,train", "P1.nii.gz,P1_seg.nii.gz,A,test"]
    if way == "two tables":
        assert converted(source=table("a.csv", rows[0])) == 0
        assert converted(source=table("b.csv", rows[1])) == 3
    else:
        assert converted(*["--dry-run"] * (way == "dry run"), source=table("l.csv", *rows)) == 3
    told = capsys.readouterr().out
    assert "1 subject with volumes in several splits (such as A: train: P0; test: P1)" in told
    if way == "dry run":
        assert converted("--dry-run", "--accept-doubts", source="raw/l.csv") == 0
        return
    assert main(["inspect", "c", "--no-pictures"]) == 3
    one = table("l.csv", rows[0], rows[1].replace("test", "train"))  # as the message says
    assert converted(source=one) == 3 and "several splits" not in str(corpus_doubts(records()))
    assert converted(source=one) == 0


def decathlon(name: str, number: int, organ: str) -> str:
    """A Decathlon task of one case whose class 1 is the organ; its folder."""
    folder = Path(name)
    for part, suffix in {"imagesTr": "", "labelsTr": "_seg"}.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        shutil.copy(f"raw/P{number}{suffix}.nii.gz", folder / part / f"P{number}.nii.gz")
    case = {f: f"./{f}sTr/P{number}.nii.gz" for f in ("image", "label")}
    about = {"labels": {"0": "background", "1": organ}, "modality": {"0": "CT"}, "training": [case]}
    (folder / "dataset.json").write_text(json.dumps(about))
    return name


def test_one_number_of_two_names_is_refused_before_anything_is_written(place, capsys):
    assert converted(source=decathlon("d1", 0, "liver")) == 0
    whole = own_file("c", MANIFEST).read_bytes()
    assert converted(source=decathlon("d2", 1, "spleen")) == 2
    told = capsys.readouterr().err
    assert "label seg: 1 is 'liver' in c and 'spleen' in the sources given" in told
    assert own_file("c", MANIFEST).read_bytes() == whole and not Path("c/P1").exists()
    assert converted(source="d2", corpus="other") == 0  # kept apart, as the message says
    assert converted(source=decathlon("d2", 1, "LIVER")) == 0  # or named alike
    assert converted(source="d1") == 0


def test_a_class_named_anew_is_told_and_one_not_named_keeps_its_name(place, capsys):
    assert converted(source=decathlon("d1", 0, "liver")) == 0
    assert converted(source=decathlon("d1", 0, "kidney")) == 3
    assert "of class 1 of label seg of P0 was liver and is kidney now" in capsys.readouterr().out
    assert converted(source="d1") == 0
    (Path("d1") / "list.csv").write_text("image,label\nimagesTr/P0.nii.gz,labelsTr/P0.nii.gz\n")
    assert converted(source="d1/list.csv") == 0
    assert records()[0].labels[0].class_names == {0: "background", 1: "kidney"}


def test_a_corpus_that_has_two_names_already_is_told_and_can_be_added_to(place, capsys):
    assert converted(source=decathlon("d1", 0, "liver")) == 0
    assert converted(source=decathlon("d2", 1, "liver")) == 0
    first, second = records()
    label = replace(second.labels[0], class_names={1: "spleen"})
    text = manifest_bytes([first, replace(second, labels=(label,))])
    own_file("c", MANIFEST).write_bytes(text)
    assert "1 is 'liver' in P0 and 'spleen' in P1" in str(corpus_doubts(records()))
    assert converted(source="d1") == 3
    assert "a network learns both as one class" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        (["63", "126"], "--label-values 63,126"),
        (["seg=63", "seg=126"], "--label-values seg=63,126"),
        (["63", "--label-values", "126"], "--label-values 63 126"),
        (["63", "--label_values=126"], "--label-values 63 126"),
    ],
)
def test_values_of_which_the_last_alone_would_count_are_refused(place, capsys, words, whole):
    assert converted("--label-values", *words) == 2
    assert whole in capsys.readouterr().err and not Path("c").exists()


def test_values_of_a_label_and_of_all_others_are_two_words(place):
    assert converted("--label-values", "63", "seg=1") == 0
    assert set(records()[0].labels[0].classes) == {0, 1}


def test_values_of_a_label_that_is_not_there_are_told(place, capsys):
    assert converted("--label-values", "tumour=1") == 3
    told = capsys.readouterr().out
    assert "--label-values names label 'tumour', which no volume has; its labels are seg" in told
    assert converted("--label-values", "tumour=1", "--accept-doubts") == 0


@pytest.mark.parametrize("option", ["--volume", "--subject"])
def test_an_option_of_several_values_given_twice_is_refused(place, capsys, option):
    assert converted() == 0
    assert main(["remove", "c", option, "P0", f"{option}=P1"]) == 2
    told = capsys.readouterr().err
    assert len(records()) == 3
    words = re.search(rf"write ({option} .*)", told)
    assert words and main(["remove", "c", *shlex.split(words[1])]) == 0
    assert [record.id for record in records()] == ["P2"]


def test_removing_what_is_gone_already_is_no_error(place, capsys):
    assert converted() == 0
    assert main(["remove", "c", "--subject", "P0"]) == 0
    history = own_file("c", "history.jsonl").read_bytes()
    for words in (["--subject", "P0"], ["--volume", "P0"]):
        assert main(["remove", "c", *words]) == 0
        told = capsys.readouterr().out
        assert "0 volumes removed" in told and "P0 was removed on 2" in told
    assert own_file("c", "history.jsonl").read_bytes() == history
    assert main(["remove", "c", "--volume", "P0", "nobody"]) == 2 and len(records()) == 2
    assert main(["remove", "c", "--volume", "P0", "P1"]) == 0 and len(records()) == 1


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["--volume", "p1"], "--volume P1 or --subject A may be meant"),
        (["--subject", "P1.nii.gz"], "--volume P1 or --subject A may be meant"),
        (["--volume", "a"], "--volume P0 or --subject A may be meant"),
    ],
)
def test_a_name_that_is_none_is_told_with_what_may_be_meant(place, capsys, words, near):
    assert converted("--subjects", "who.csv") == 0
    assert main(["remove", "c", *words]) == 2
    told = capsys.readouterr().err
    assert near in told and len(records()) == 3
    listed = re.search(r"`mim3d ([^`]*)`", told)
    assert listed and main([*shlex.split(listed[1]), "--no-pictures"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"P2 +│ B ", shown)


def test_removing_from_what_is_no_corpus_says_so(place, capsys):
    Path("empty").mkdir()
    for corpus in ("nowhere", "empty"):
        assert main(["remove", corpus, "--subject", "P0"]) == 2
        assert f"{corpus}: is no corpus" in capsys.readouterr().err
    assert not Path("nowhere").exists() and not [*Path("empty").iterdir()]


def test_an_ignored_value_that_cannot_be_changed_any_more_is_told(place, capsys):
    assert converted() == 0
    assert converted("--ignore-label", "1") == 3
    told = capsys.readouterr().out
    assert "the ignored value of label seg of P0 and 2 more volumes stays None, though 1" in told
    assert converted("--ignore-label", "1", "--accept-doubts") == 0
    assert converted("--ignore-label", "1", corpus="new") == 0  # as the message says
    assert converted("--ignore-label", "1", corpus="new") == 0


def test_a_label_that_others_took_the_place_of_is_told(place, capsys):
    assert converted(source=table("l.csv", "P0.nii.gz,P0_seg.nii.gz", columns="image,label")) == 0
    other = table("m.csv", "P0.nii.gz,P0_seg.nii.gz", columns="image,label:tumour")
    assert converted(source=other) == 3
    told = " ".join(capsys.readouterr().out.split())
    assert "the set of labels of P0 was seg and is tumour now" in told
    assert converted(source="raw/l.csv") == 3  # as the message says
    assert [label.name for label in records()[0].labels] == ["seg"]
    assert converted("--accept-doubts", source=other) == 0
    assert "note: the set of labels of P0 was seg" in capsys.readouterr().out
    assert converted(source=other) == 0
