"""A person is one subject: over visits, over kinds of image, and in tables of equal names."""

import json
import re

import pytest

from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.options import SourceOptions
from mim3d.dataio.sources.subjects import grouped
from mim3d.dataio.subjects.inferred import infer_subjects


def subjects(*names: str) -> list[str]:
    return [person.subject for person in infer_subjects(names, "root")]


@pytest.mark.parametrize("visit", ["visit{}", "ses-{}", "timepoint_{}", "2019-01-0{}", "m{}2"])
def test_visits_are_one_subject(visit):
    names = [f"p{p}/{visit.format(v)}/t1.nii" for p in (1, 2) for v in (1, 2)]
    assert subjects(*names) == ["p1", "p1", "p2", "p2"]


def test_many_visits_of_many_kinds_are_one_subject():
    kinds = ("t1", "t2", "flair", "dwi")
    names = [f"p1/visit{v}/{k}.nii" for v in range(9) for k in kinds]
    names += [f"p2/visit{v}/anat/p2_visit{v}_{k}.nii" for v in range(9) for k in kinds]
    assert set(subjects(*names[:36])) == {"p1"}
    assert set(subjects(*names[36:])) == {"p2"}


def test_visits_above_people_are_not_their_subject():
    names = [f"visit{v}/P{p}.nii" for v in (1, 2) for p in range(20)]
    assert subjects(*names) == [f"P{p}" for p in range(20)] * 2


@pytest.mark.parametrize("end", [("_0000", "_0001"), ("_0000", "_0001", "_0002")])
def test_channels_of_a_case_are_one_subject(end):
    names = [f"images/F22_000{case}{channel}.nii" for case in (1, 2, 3) for channel in end]
    assert subjects(*names) == [f"F22_000{case}" for case in (1, 2, 3) for _ in end]
    assert subjects(*names[:-1]) == subjects(*names)[:-1]


def test_numbers_of_people_are_no_channels():
    names = [f"images/amos22_000{number}.nii" for number in range(4)]
    assert len(set(subjects(*names))) == 4


def test_numbers_in_names_make_no_visits_of_a_person():
    assert subjects("P1.nii", "P1_2.nii") == ["P1", "P1_2"]


@pytest.mark.parametrize("root", ["", "/mnt/data/", "s3://bucket/raw/", "../elsewhere/"])
def test_tables_take_the_folder_that_differs(tmp_path, root):
    names = ["c0/imaging.nii", "c1/imaging.nii", "a/P1.nii", "b/P1.nii", "imagesTr/P2_t1.nii"]
    names += ["imagesTr/P2_t2.nii", "p/visit1/t1.nii", "p/visit2/t1.nii"]
    for name in names:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "data")
    base = str(tmp_path / "data") + "/" if root.startswith("/") else root
    rows = [base + name for name in names]
    (tmp_path / "data" / "t.csv").write_text("image\n" + "\n".join(rows) + "\n")
    (tmp_path / "data" / "list.json").write_text(
        json.dumps({"training": [{"image": row} for row in rows]})
    )
    want = ["c0", "c1", "a/P1", "b/P1", "P2", "P2", "p", "p"]
    for file in ("t.csv", "list.json"):
        found = discover(str(tmp_path / "data" / file)).sources
        assert [s.subject for s in found] == want
        assert [s.id for s in found][:4] == ["c0_imaging", "c1_imaging", "a_P1", "b_P1"]
        assert len({s.id for s in found}) == len(found)


def test_what_a_table_tells_stands(tmp_path):
    for name in ("a/t1.nii", "b/t1.nii"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "t.csv").write_text("id,image,subject\nX,a/t1.nii,S\nY,b/t1.nii,S\n")
    found = discover(str(tmp_path / "t.csv")).sources
    assert [(s.id, s.subject) for s in found] == [("X", "S"), ("Y", "S")]


@pytest.mark.parametrize(
    ("names", "doubted"),
    [
        (["amos22/imagesTr/amos_000{}.nii"], False),
        (["ds000001/sub-0{}/anat/sub-0{}_T1w.nii"], False),
        (["set_1/case_0{}/case_0{}_ct.nii"], False),
        (["R001/sub-r001s00{}/sub-r001s00{}_T1w.nii"], False),
        (["P001/scan00{}/t1.nii", "P001/scan00{}/t2.nii"], True),
        (["amos22/imagesTr/P1_{}.nii"], True),
    ],
)
def test_only_names_like_series_are_doubted(tmp_path, names, doubted):
    for name in names:
        for number in (1, 2, 3):
            path = tmp_path / name.replace("{}", str(number))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "P9_1.nii").touch()
    assert bool(grouped(discover(str(tmp_path))).doubts) == doubted


def planted(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


@pytest.mark.parametrize("file", ["{}/{}.nii", "{}/{}/image.nii", "all/{}/0{}/x/scan.nii"])
@pytest.mark.parametrize(
    ("folders", "n_people", "doubted"),
    [
        (("CT", "MR"), 4, "hold the same bare numbers"),
        (("CECT", "T2w"), 4, "hold the same bare numbers"),
        (("CT", "PET"), 4, ""),
        (("T1", "T2"), 4, ""),
        (("Train", "Test"), 8, ""),
        (("siteA", "siteB"), 8, ""),
        (("AD", "CN"), 8, ""),
        (("arterial", "venous"), 8, "stand in several folders"),
    ],
)
def test_bare_numbers_in_several_folders(tmp_path, file, folders, n_people, doubted):
    """One person by several kinds of image, others where people are counted anew; else doubted."""
    names = [file.format(folder, number) for folder in folders for number in range(1, 5)]
    people = grouped(discover(planted(tmp_path, *names)))
    assert people.n_subjects == n_people
    assert [doubted in doubt for doubt in people.doubts] == ([True] if doubted else [])


def test_the_pattern_told_for_bare_numbers_keeps_people_of_two_scanners_apart(tmp_path):
    root = planted(tmp_path, *(f"{kind}/{n}/x.nii" for kind in ("CT", "MR") for n in (1, 2)))
    (doubt,) = grouped(discover(root)).doubts
    pattern = re.search(r"--subject '([^']+)'", doubt)
    people = grouped(discover(root, options=SourceOptions(subject=pattern[1] if pattern else None)))
    assert (people.n_subjects, people.doubts) == (4, ())


def test_names_with_a_scanner_before_are_doubted_but_those_of_a_known_data_set(tmp_path):
    (tmp_path / "a").mkdir()
    root = planted(tmp_path / "a", *(f"{kind}_0{n}.nii" for kind in ("ct", "mr") for n in (1, 2)))
    people = grouped(discover(root))
    assert people.n_subjects == 4 and "4 subjects may be images of 2 people" in people.doubts[0]
    names = [f"{kind}_train_100{n}_image.nii" for kind in ("ct", "mr") for n in (1, 2)]
    people = grouped(discover(planted(tmp_path / "b", *names)))
    assert (people.n_subjects, people.doubts) == (4, ())


@pytest.mark.parametrize(
    ("names", "rows", "told", "people"),
    [
        # The end of one path, with its suffix and without, and of a folder.
        (["a/P1/t1.nii", "a/P2/t1.nii"], ["P1/t1.nii,A", "P2/t1,B"], "", {"A", "B"}),
        (["a/b/P1/t1.nii", "a/c/P1/t1.nii"], ["b/P1,A", "c/P1,B"], "", {"A", "B"}),
        # The end of several people's paths.
        (["P1/t1.nii", "P2/t1.nii"], ["t1.nii,A"], "t1.nii) name several files", {"A"}),
        (["P1/t1.nii", "P2/t1.nii"], ["t1,A"], "(P1/t1.nii, P2/t1.nii)", {"A"}),
        (["P1/ct/a.nii", "P2/ct/a.nii"], ["ct,A"], "(P1/ct, P2/ct)", {"A"}),
        # Of one person's, or of one folder that is somebody's.
        (["T1/P1.nii", "T2/P1.nii"], ["P1,A"], "", {"A"}),
        (["s/P1/a.nii", "s/P2/a.nii"], ["s,A"], "", {"A"}),
    ],
)
def test_a_row_is_the_end_of_a_path_and_doubted_where_of_several_peoples(
    tmp_path, names, rows, told, people
):
    table = tmp_path / "who.csv"
    table.write_text("\n".join(["file,subject", *rows]))
    root = planted(tmp_path / "raw", *names)
    found = discover(root, options=SourceOptions(subjects=str(table)))
    assert {source.subject for source in found.sources} == people
    assert [told in line for line in found.warnings] == ([True] if told else [])
    accepting = SourceOptions(subjects=str(table), accept_doubts=True)
    assert not discover(root, options=accepting).warnings
    if told:
        table.write_text("\n".join(["file,subject", *(f"{n},{n[:2]}" for n in names)]))
        found = discover(root, options=SourceOptions(subjects=str(table)))
        assert {source.subject for source in found.sources} == {"P1", "P2"}
        assert not found.warnings


def test_rows_that_contradict_each_other_about_a_file_are_told(tmp_path):
    """The one with more of its name stands; that of a folder is for all its other files."""
    root = planted(tmp_path / "raw", "a/P1_L.nii", "a/P1_R.nii", "a/P2.nii")
    table = tmp_path / "who.csv"
    table.write_text("file,subject\nP1_L.nii,X\nP1_L,Z\na,Y\nP1_R,X\n")
    found = discover(root, options=SourceOptions(subjects=str(table)))
    assert [source.subject for source in found.sources] == ["X", "X", "Y"]
    (told,) = found.warnings
    assert "1 row of" in told and "(such as P1_L: Z)" in told and "(such as P1_L.nii: X)" in told
    table.write_text("file,subject\nP1_L.nii,X\na,Y\nP1_R,X\n")
    assert not discover(root, options=SourceOptions(subjects=str(table))).warnings
