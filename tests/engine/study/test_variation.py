"""Settings that a user varies: every combination is planned, and what cannot be is refused."""

from dataclasses import replace
from typing import Any

import pytest

from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.splits import Splits
from mim3d.engine.study.arms import refuse_arms, varied_vit
from mim3d.engine.study.config import StudyConfig, Variant
from mim3d.engine.study.plan import pretrain_config, pretrainings, scored_cells
from mim3d.engine.study.preflight import refuse_shared_folders
from mim3d.engine.study.recipes import demo, study
from mim3d.engine.study.variation import varied

SPLITS = Splits(("a", "b"), ("c",), ("d",), ("a", "b"), (), ())


def test_every_combination_is_pretrained_and_scored_once() -> None:
    config = varied(demo(), ["crops=3200,6400", "mask_ratio=0.3,0.6,0.9"])
    assert config.ablation_axes == ("crops", "mask_ratio")
    keys = [p.key for p in pretrainings(config)]
    assert len(set(keys)) == len(keys)
    # SimCLR has no mask, so only its crops vary; scratch has neither.
    assert [key.split("_")[0] for key in keys].count("mae") == 6
    assert [key.split("_")[0] for key in keys].count("simclr") == 2
    assert [cell.arm for cell in scored_cells(config, {})].count("scratch") == len(config.seeds)
    crops = {
        (p.variant.crops, made.steps * made.global_batch)
        for p in pretrainings(config)
        if (made := pretrain_config(config, p, SPLITS))
    }
    assert crops == {(3200, 3200), (6400, 6400)}


def test_settings_reach_what_they_name() -> None:
    config = varied(demo(), ["width=32,96", "depth=2"])
    shapes = [varied_vit(config.vit, variant) for variant in config.variants]
    assert [(s.width, s.heads, s.depth) for s in shapes] == [(32, 1, 2), (96, 3, 2)]
    assert config.ablation_axes == ("width",)
    config = varied(demo(), ["global_batch=16,64"])
    batches = {
        (p.arm, pretrain_config(config, p, SPLITS).global_batch) for p in pretrainings(config)
    }
    assert batches == {("simclr", 16), ("simclr", 64), ("mae", 16), ("mae", 64)}


def test_labels_are_an_axis_of_their_own() -> None:
    config = varied(study("hippocampus"), ["labels=4,8,0.5"])
    assert config.labels == (4.0, 8.0, 0.5)
    assert config.ablation_axes == ("labels",)
    assert len(config.variants) == 1


def test_nothing_named_changes_nothing() -> None:
    assert varied(study("mask"), []) == study("mask")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mask_ratio"], "must be NAME=VALUE,VALUE"),
        (["masks=0.3"], "one of crop, depth, patch, width"),
        (["mask_ratio=0.3,a"], "no list of numbers"),
        (["patch=8.5"], "whole numbers"),
        (["patch=0"], "whole numbers"),
        (["mask_ratio=0.3,0.3"], "a value twice"),
        (["mask_ratio=0.3", "mask_ratio=0.6"], "names a setting twice"),
        (["mask_ratio=0.3,0.6", "patch=8,16", "crops=100,200"], "two at most"),
        (["patch=7"], "patch_size"),
        (["width=50"], "multiple of a head's width, 32"),
        (["mask_ratio=1.5"], "mask_ratio 1.5"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(words: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        varied(demo(), words)


def test_a_setting_that_changes_no_arm_is_refused() -> None:
    with pytest.raises(ConfigError, match="temperature changes none of arms scratch, mae"):
        varied(replace(demo(), arms=("scratch", "mae")), ["temperature=0.1,0.5"])
    swin: StudyConfig = study("swin")
    with pytest.raises(ConfigError, match="trains Swin"):
        varied(swin, ["patch=8,16"])


@pytest.mark.parametrize("name", ["mae-big", "mae"])
def test_a_given_encoder_is_not_varied_as_though_it_were_a_method(name: str) -> None:
    config = replace(demo(), arms=("scratch", "simmim", f"{name}=runs/big"))
    refuse_arms(varied(config, ["crop=24,32"]))  # that is of the encoder, whose crops may differ
    with pytest.raises(ConfigError, match="mask_ratio is varied: call it ") as told:
        refuse_arms(varied(config, ["mask_ratio=0.3,0.6"]))
    renamed = str(told.value).rpartition(" ")[2]
    config = varied(replace(config, arms=("scratch", "simmim", renamed)), ["mask_ratio=0.3,0.6"])
    refuse_arms(config)
    assert [cell.arm for cell in scored_cells(config, {})].count(f"given-{name}") == 2  # seeds


def test_weights_that_are_given_have_one_size() -> None:
    config = replace(demo(), arms=("scratch", "mine=runs/big"))
    with pytest.raises(ConfigError, match=r"vary depth makes other encoders .* leave the arm out"):
        refuse_arms(varied(config, ["depth=2,3"]))
    refuse_arms(varied(config, ["depth=2", "labels=4,8"]))
    refuse_arms(varied(replace(config, arms=("scratch",)), ["depth=2,3"]))
    refuse_arms(varied(config, ["patch=4,8"]))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"labels": (0.5, 0.5000001)}, "labels 0.5 and labels 0.5000001"),
        ({"arms": ("scratch", "a=one", "a-=two")}, "arm a and arm a-"),
        ({"variants": (Variant(lr=1e-3), Variant(lr=1.0000001e-3))}, "lr 0.001 and variant.lr"),
    ],
)
def test_two_runs_are_never_of_one_folder(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        refuse_shared_folders(replace(demo(), **changes))
    refuse_shared_folders(demo())


def test_crops_that_are_varied_below_a_step_are_refused_by_that_name() -> None:
    config = varied(replace(demo(), arms=("scratch", "mae")), ["crops=4,64"])
    few, enough = pretrainings(config)
    with pytest.raises(ConfigError, match=r"4 crops for mae .*: vary crops from 8 up"):
        pretrain_config(config, few, SPLITS)
    assert pretrain_config(config, enough, SPLITS).steps == 8


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"labels": ()}, "labels .* at least one"),
        ({"matching": ()}, "matching .* at least one"),
        ({"targets": (80.0, 90.0), "primary": 90.0}, "targets 80.0 must be above 0 and at most 1"),
        ({"ablation_axes": ("mask_ratio",)}, "by --vary mask_ratio=VALUE,VALUE"),
    ],
)
def test_what_would_be_run_for_nothing_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        replace(demo(), **changes)
