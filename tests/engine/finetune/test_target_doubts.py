"""Targets that may be none, and those that are lost by how a subject is written."""

import pytest

from mim3d.engine.finetune.targets import called_otherwise, read_targets, read_values


def table(folder, *rows):
    file = folder / "t.csv"
    file.write_text("\n".join(["subject,target", *rows]) + "\n")
    return file


@pytest.mark.parametrize("word", ["unknown", "NONE", "?", "-9", "9999"])
def test_a_class_that_is_often_none_is_doubted_until_it_is_called_otherwise(tmp_path, word):
    (doubt,) = read_targets(table(tmp_path, "a,1", f"b,{word}", "c,1")).doubts
    assert f"class {word!r} of t.csv may mean that nothing is known (b)" in doubt
    assert read_targets(table(tmp_path, "a,1", f"b,is {word}", "c,1")).doubts == ()
    assert read_targets(table(tmp_path, "a,1", "b,", "c,0")).doubts == ()
    assert read_targets(table(tmp_path, "a,-1", "b,1", "c,0")).doubts == ()


@pytest.mark.parametrize(
    ("others", "word", "doubted"),
    [
        (("61", "70"), "-9", True),
        (("61", "70"), "999", True),
        (("61", "70"), "-9.0", False),
        (("-8", "12"), "-9", False),
        (("400", "980"), "999", False),
        ((), "-9", False),
    ],
)
def test_a_number_that_is_often_none_is_doubted_where_it_lies_apart(
    tmp_path, others, word, doubted
):
    rows = [f"p{i},{value}" for i, value in enumerate(others or ("-99",))]
    found = read_values(table(tmp_path, *rows, f"x,{word}")).doubts
    assert len(found) == doubted
    assert not doubted or f"write {word}.0" in found[0]


def test_names_alike_but_for_capitals_or_spaces_are_told_unless_both_are_there():
    (line,) = called_otherwise("t.csv", ["P1", "p 2", "p3", "P3", "q"], ["p1", "p2", "p3"], "c")
    assert line.startswith("2 subjects of t.csv are in c but for capitals or spaces")
    assert "(such as 'P1', there 'p1')" in line
    assert called_otherwise("t.csv", ["p1", "zz"], ["p1", "p2"], "c") == []
