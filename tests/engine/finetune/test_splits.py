"""Splits never leak: checked on the manifest records they are made from."""

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.dataio.corpus.manifest import LabelRecord
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.splits import SplitConfig, labelled_subset, make_splits, trailing_number

LABEL = LabelRecord("seg", "|u1", {0: 10, 1: 5}, "x", "0", "0", 1)


@dataclass(frozen=True)
class Record:
    """What splits need of a manifest's record."""

    id: str
    subject: str
    group: str = ""
    labels: tuple[LabelRecord, ...] = (LABEL,)


def cohort(numbers: list[int], unlabelled: tuple[int, ...] = ()) -> list[Record]:
    name = "hippocampus_{:03d}".format
    return [Record(name(n), name(n), labels=() if n in unlabelled else (LABEL,)) for n in numbers]


def test_every_subject_is_dealt_once_with_the_shares_asked_for() -> None:
    splits = make_splits(cohort(list(range(100))), "seg", SplitConfig(0.2, 0.1, seed=3))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (70, 20, 10)
    assert len({*splits.train, *splits.validation, *splits.test}) == 100
    assert splits.pretrain == splits.train
    assert splits.left_out == ()


def test_held_out_subjects_can_be_counted() -> None:
    splits = make_splits(cohort(list(range(100))), "seg", SplitConfig(8, 0.1))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (82, 8, 10)
    few = make_splits(cohort(list(range(8))), "seg", SplitConfig(8, 8))
    assert (len(few.train), len(few.validation), len(few.test)) == (4, 2, 2)


def test_seeds_deal_differently_and_repeatably() -> None:
    records = cohort(list(range(60)))
    one, again, other = (make_splits(records, "seg", SplitConfig(seed=s)) for s in (0, 0, 1))
    assert one == again
    assert one.validation != other.validation


@given(st.sets(st.integers(1, 300), min_size=60, max_size=200), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_neighbouring_numbers_never_stand_in_different_splits(numbers: set[int], seed: int) -> None:
    unlabelled = tuple(sorted(numbers)[::9])
    splits = make_splits(
        cohort(sorted(numbers), unlabelled), "seg", SplitConfig(seed=seed, keep="number")
    )
    parts = [splits.test, splits.validation, splits.pretrain]
    for index, part in enumerate(parts):
        others = {trailing_number(s) for other in parts[:index] for s in other}
        for subject in part:
            number = trailing_number(subject)
            assert number is not None
            assert not {number - 1, number, number + 1} & others
    together = {*splits.train, *splits.validation, *splits.test, *splits.left_out, *splits.pretrain}
    assert len(together) == len(numbers)


def test_groups_stay_together() -> None:
    records = [
        replace(record, group=f"site{index // 4}")
        for index, record in enumerate(cohort(list(range(80))))
    ]
    splits = make_splits(records, "seg", SplitConfig(keep="group"))
    site = {record.subject: record.group for record in records}
    sites = [{site[s] for s in part} for part in (splits.train, splits.validation, splits.test)]
    assert not sites[0] & sites[1] | sites[0] & sites[2] | sites[1] & sites[2]


def test_unlabelled_subjects_pretrain_only_and_are_told() -> None:
    splits = make_splits(cohort(list(range(40)), unlabelled=(1, 2, 3)), "seg", SplitConfig())
    pretrain_only = set(splits.pretrain) - set(splits.train)
    assert pretrain_only == {"hippocampus_001", "hippocampus_002", "hippocampus_003"}
    assert "3 of 40 subjects have no label 'seg'" in splits.notes[0]


def test_subjects_without_a_target_are_told_as_such() -> None:
    named = [f"hippocampus_{n:03d}" for n in range(36)]
    splits = make_splits(
        cohort(list(range(40))), "seg", SplitConfig(), dict.fromkeys([*named, "stranger"], "x")
    )
    assert "4 of 40 subjects have no target" in splits.notes[0]
    assert "1 of 37 subjects with a target are not in the corpus: stranger" in splits.notes[1]
    assert not {"hippocampus_036"} & {*splits.train, *splits.validation, *splits.test}
    with pytest.raises(ConfigError, match="0 subjects with a target"):
        make_splits(cohort(list(range(40))), "seg", SplitConfig(), {"stranger": "x"})


def test_a_label_that_the_corpus_has_not_is_answered_with_those_it_has() -> None:
    with pytest.raises(ConfigError) as told:
        make_splits(cohort(list(range(40))), "liver", SplitConfig())
    found = re.search(r"set --data\.label (\S+), which the corpus has", str(told.value))
    assert found is not None
    assert make_splits(cohort(list(range(40))), found[1], SplitConfig()).train


@pytest.mark.parametrize(
    ("split", "note"),
    [
        (SplitConfig(30, 2), "validation: 10 of 40 labelled subjects, a quarter, in the place of"),
        (SplitConfig(2, 11), "test: 10 of 40 labelled subjects, a quarter, in the place of the 11"),
        (SplitConfig(keep="group"), "40 subjects have no group in the manifest, and are each"),
    ],
)
def test_what_is_dealt_otherwise_than_asked_is_told(split: SplitConfig, note: str) -> None:
    assert any(
        one.startswith(note) for one in make_splits(cohort(list(range(40))), "seg", split).notes
    )
    plain = make_splits(cohort(list(range(40))), "seg", SplitConfig(10, 2, keep="number"))
    assert not any("in the place of" in one or "alone" in one for one in plain.notes)


def test_volumes_of_one_subject_go_together() -> None:
    records = cohort(list(range(30)))
    twice = records + [replace(record, id=record.id + "_t2") for record in records]
    splits = make_splits(twice, "seg", SplitConfig())
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 30


def test_too_few_labels_are_an_error_that_names_the_label() -> None:
    with pytest.raises(ConfigError, match="'seg'"):
        make_splits(cohort([1, 2], unlabelled=(1, 2)), "seg", SplitConfig())
    with pytest.raises(ConfigError, match=r"split\.validation"):
        SplitConfig(validation=0.6, test=0.4)


@pytest.mark.parametrize("keep", ["number", "group"])
@pytest.mark.parametrize("test", [0, 2])
def test_the_split_that_is_named_for_few_blocks_deals_them(keep: Any, test: float) -> None:
    """Ten neighbouring numbers are one block, and one site is one group."""
    records = [replace(record, group="one site") for record in cohort(list(range(10)))]
    split = SplitConfig(2, test, keep=keep)
    with pytest.raises(ConfigError) as told:
        make_splits(records, "seg", split)
    found = dict(re.findall(r"--data\.split\.(\w+) ([\w.]+)", str(told.value)))
    assert found
    changes = {k: float(v) if v[0].isdigit() else v for k, v in found.items()}
    mended = make_splits(records, "seg", replace(split, **changes))
    assert mended.train
    assert mended.validation


@pytest.mark.parametrize("split", [SplitConfig(), SplitConfig(1, 0), SplitConfig(0, 0)])
def test_the_split_that_is_named_for_two_subjects_deals_them(split: SplitConfig) -> None:
    two = cohort([1, 2])
    with pytest.raises(ConfigError) as told:
        make_splits(two, "seg", split)
    found = re.search(r"set --data\.split\.(\w+) ([\d.]+)", str(told.value))
    assert found is not None
    mended = make_splits(two, "seg", replace(split, **{found[1]: float(found[2])}))
    assert len(mended.train) == len(mended.validation) == 1


def test_labelled_subsets_are_nested_and_sized() -> None:
    train = tuple(f"s{i:02d}" for i in range(50))
    few, more = labelled_subset(train, 5, seed=1), labelled_subset(train, 0.5, seed=1)
    assert (len(few), len(more)) == (5, 25)
    assert set(few) < set(more)
    assert labelled_subset(train, 1.0, seed=1) == train
    assert labelled_subset(train, 5, seed=2) != few
    with pytest.raises(ConfigError, match="60"):
        labelled_subset(train, 60, seed=0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 50), rare=st.integers(3, 12))
def test_classes_are_dealt_each_by_itself(seed: int, rare: int) -> None:
    """Every part knows a class of three subjects or more, and has its share of it."""
    records = cohort(list(range(60)))
    targets = {r.subject: "rare" if i < rare else "common" for i, r in enumerate(records)}
    splits = make_splits(records, "seg", SplitConfig(0.2, 0.2, seed=seed), targets)
    for part, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        found = [targets[subject] for subject in getattr(splits, part)].count("rare")
        assert found >= 1
        assert abs(found - share * rare) <= 1.0
    plain = make_splits(records, "seg", SplitConfig(0.2, 0.2, seed=seed, stratify=False), targets)
    assert plain.train == make_splits(records, "seg", SplitConfig(0.2, 0.2, seed=seed)).train
    assert "rare" in splits.notes[-1]
