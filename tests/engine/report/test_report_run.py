"""What the report says was run: configurations as lines, subjects as ranges, scores by metric."""

from pathlib import Path
from typing import Any

from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.summary import summarise
from mim3d.engine.report.palette import LIGHT, Palette, colours_of_others
from mim3d.engine.report.provenance import flat, subjects_in_words
from mim3d.engine.report.scores import final_table, missed
from mim3d.engine.runs.files import write_json, write_jsonl


def test_a_configuration_becomes_lines() -> None:
    config = {"name": "x", "data": {"seeds": [0, 1], "label": ""}, "swin": None}
    assert flat(config) == [("name", "x"), ("data.seeds", "0, 1")]
    variants = {"variants": [{"patch": 4, "crop": None}, {"patch": 8}]}
    assert flat(variants) == [("variants.0.patch", "4"), ("variants.1.patch", "8")]


def test_subjects_become_ranges() -> None:
    names = [f"hippocampus_{n:03d}" for n in (3, 1, 4, 5, 9)]
    assert subjects_in_words(names) == "hippocampus_001, 003–005, 009"
    assert subjects_in_words(["anna", "bert", "s2"]) == "anna, bert, s2"
    assert subjects_in_words([]) == ""


def test_arms_given_by_path_have_colours_of_their_own() -> None:
    arms = ["scratch", "simclr", "ours", "theirs", "old", "simclr-flops"]
    palette = Palette(LIGHT, colours_of_others(arms))
    colours = [palette.arm(arm) for arm in arms]
    assert len(set(colours)) == 5
    assert colours[1] == colours[5]
    assert palette.arm("never named") in LIGHT.values()


def scored(arm: str, seed: int, **more: Any) -> dict[str, Any]:
    row = {"arm": arm, "head": "unetr", "labels": 1.0, "variant": "", "tuning": False}
    row |= {"split": "test", "step": 20, "crops": 0, "flops": 0.0, "seconds": 0.0, "seed": seed}
    return row | more


def test_distances_tell_what_they_leave_out(tmp_path: Path) -> None:
    rows, cases = [], []
    for seed in (0, 1):
        values = {"score": 0.4, "dice_by_class": [0.8, 0.0], "hd95": 2.0, "hd95_undefined": 3}
        rows.append(scored("mae", seed, **values, hd95_by_class=[2.0, None]))
        rows.append({**rows[-1], "split": "validation"})
        for dice, hd95 in (([0.8, 0.0], [2.0, None]), ([0.8, None], [2.0, None])):
            cases.append(scored("mae", seed, volume="v", dice=dice, hd95=hd95))
    write_jsonl(tmp_path / "results.jsonl", rows)
    write_jsonl(tmp_path / "cases.jsonl", cases)
    write_json(tmp_path / "study.json", {"arms": ["mae"], "batch": 4})
    study = Study.load(tmp_path)
    (group,) = summarise(study)
    table = final_table(study, group)
    assert table is not None
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["missed"] == "2 of 6"
    assert row["missed\nclass 1"] == "0 of 4"
    assert row["missed\nclass 2"] == "2 of 2"
    assert row["HD95\nclass 2"] == "–"
    assert row["HD95\nclass 1"] == "2.00 ± 0.00"
    assert "test subjects" in table.note
    (tmp_path / "cases.jsonl").unlink()
    study = Study.load(tmp_path)
    table = final_table(study, group)
    assert table is not None
    assert table.rows[0][3] == "6"


def test_missed_of_unknown_cases() -> None:
    assert missed([{"dice": [1.0], "hd95": []}], [0]) == ""
