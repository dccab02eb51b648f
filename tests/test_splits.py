"""Splits never leak: checked on the manifest records they are made from."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.dataio.manifest import Intensity, LabelRecord, VolumeRecord
from mim3d.engine.errors import ConfigError
from mim3d.engine.splits import SplitConfig, labelled_subset, make_splits, trailing_number

STATS = Intensity(0.0, 1.0, 0.5, 0.1, 0.0, 1.0)
LABEL = LabelRecord("seg", "|u1", {0: 10, 1: 5}, "x", "0", "0", 1)
EYE = tuple(tuple(float(i == j) for j in range(4)) for i in range(4))
RECORD = VolumeRecord(
    id="v",
    sources=("a.nii.gz",),
    source_sha256=("0",),
    subject="s",
    group="",
    split="",
    shape=(8, 8, 8),
    channels=1,
    dtype="<i2",
    slope=1.0,
    intercept=0.0,
    spacing_mm=(1.0, 1.0, 1.0),
    affine=EYE,
    original_orientation="RAS",
    original_affine=EYE,
    original_shape=(8, 8, 8),
    affine_from="sform",
    obliquity_deg=0.0,
    intensity=STATS,
    foreground=STATS,
    foreground_rule="otsu",
    foreground_threshold=0.0,
    foreground_box=((0, 0, 0), (8, 8, 8)),
    n_nan=0,
    n_inf=0,
    source_dtype="<i2",
    cast_max_error=0.0,
    labels=(LABEL,),
    shard_sha256="0",
    shard_bytes=1,
    metadata_sha256="0",
)


def cohort(numbers: list[int], unlabelled: tuple[int, ...] = ()) -> list[VolumeRecord]:
    return [
        replace(
            RECORD,
            id=f"hippocampus_{n:03d}",
            subject=f"hippocampus_{n:03d}",
            labels=() if n in unlabelled else (LABEL,),
        )
        for n in numbers
    ]


def test_every_subject_is_dealt_once_with_the_shares_asked_for() -> None:
    splits = make_splits(cohort(list(range(100))), "seg", SplitConfig(0.2, 0.1, seed=3))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (70, 20, 10)
    assert len({*splits.train, *splits.validation, *splits.test}) == 100
    assert splits.pretrain == splits.train
    assert splits.left_out == ()


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


def test_labelled_subsets_are_nested_and_sized() -> None:
    train = tuple(f"s{i:02d}" for i in range(50))
    few, more = labelled_subset(train, 5, seed=1), labelled_subset(train, 0.5, seed=1)
    assert (len(few), len(more)) == (5, 25)
    assert set(few) < set(more)
    assert labelled_subset(train, 1.0, seed=1) == train
    assert labelled_subset(train, 5, seed=2) != few
    with pytest.raises(ConfigError, match="60"):
        labelled_subset(train, 60, seed=0)
