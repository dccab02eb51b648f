"""A study's plan: which pretrainings and cells it has, and that arms are matched."""

from dataclasses import replace
from pathlib import Path

import pytest

from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.splits import Splits
from mim3d.engine.models.config import MAEConfig
from mim3d.engine.models.flops import crop_flops
from mim3d.engine.runs.files import write_json
from mim3d.engine.study.arms import arm_names, varied_vit
from mim3d.engine.study.config import FinetunePlan, StudyConfig, Variant, plain
from mim3d.engine.study.plan import (
    crops_seen,
    finetune_config,
    method_config,
    pretrain_config,
    pretrainings,
    scored_cells,
    tuning_cells,
)
from mim3d.engine.study.recipes import STUDIES, demo, study
from mim3d.engine.study.run import choose_lr, waits_for_nothing

SPLITS = Splits(("a", "b"), ("c",), ("d",), ("a", "b", "u"), (), ())
OUT = Path("study")


@pytest.mark.parametrize("name", STUDIES)
def test_every_named_study_plans(name: str) -> None:
    config = study(name)
    wanted, cells = pretrainings(config), [*tuning_cells(config), *scored_cells(config, {})]
    assert len({p.key for p in wanted}) == len(wanted)
    assert len({c.key for c in cells}) == len(cells)
    inits = {finetune_config(config, cell, SPLITS, OUT).init for cell in cells} - {""}
    assert inits == {str(OUT / "pretrain" / p.key) for p in wanted}
    for wanted_one in wanted:
        made = pretrain_config(config, wanted_one, SPLITS)
        assert made.data.subjects == ("a", "b", "u")
        assert plain(config)["name"] == name


def test_demo_is_two_seeds_by_three_arms_on_equal_crops() -> None:
    config = demo()
    assert len(scored_cells(config, {})) == 6
    made = {p.arm: pretrain_config(config, p, SPLITS) for p in pretrainings(config)}
    assert {m.steps * m.global_batch for m in made.values()} == {9600}
    assert made["mae"].vit == made["simclr"].vit


def test_equal_flops_buys_the_dearer_arm_fewer_crops() -> None:
    config = replace(demo(), matching=("crops", "flops"))
    assert arm_names(config) == ["scratch", "simclr", "mae", "simclr-flops"]
    wanted = next(p for p in pretrainings(config) if p.arm == "simclr-flops")
    crops = crops_seen(config, wanted)
    mae = crop_flops(config.pretrain.mae.method, config.vit).training * config.pretrain.crops
    own = crop_flops(config.pretrain.simclr.method, config.vit).training * crops
    assert own == pytest.approx(mae, rel=0.01)
    assert arm_names(replace(config, matching=("flops",))) == ["scratch", "mae", "simclr-flops"]


def test_equal_flops_can_be_those_of_another_method() -> None:
    """As many FLOPs as SimCLR spends buy the masked arms more crops."""
    arms = ("scratch", "simclr", "mae", "simmim")
    config = replace(demo(), arms=arms, matching=("flops",), flops_of="simclr")
    assert arm_names(config) == ["scratch", "simclr", "mae-flops", "simmim-flops"]
    spent = {
        p.arm: crops_seen(config, p)
        * crop_flops(method_config(config, p.arm, p.variant), config.vit).training
        for p in pretrainings(config)
    }
    assert spent["mae-flops"] == pytest.approx(spent["simclr"], rel=0.01)
    assert spent["simmim-flops"] == pytest.approx(spent["simclr"], rel=0.01)
    assert {p.arm: crops_seen(config, p) for p in pretrainings(config)}["mae-flops"] > 9600


def test_cells_of_a_seed_differ_in_their_start_alone() -> None:
    config = replace(demo(), arms=("scratch", "mae", "mine=/some/run"))
    cells = [c for c in scored_cells(config, {}) if c.seed == 1]
    made = [finetune_config(config, cell, SPLITS, OUT) for cell in cells]
    assert len({replace(m, init="") for m in made}) == 1
    assert [m.init for m in made] == ["", str(OUT / "pretrain" / "mae"), "/some/run"]
    assert [waits_for_nothing(config, c) for c in cells] == [True, False, True]


def test_tuning_scores_no_test_subject_and_picks_the_largest_area(tmp_path: Path) -> None:
    plan = FinetunePlan(lr=(1e-4, 1e-3), tuning_seeds=(100,))
    config = replace(demo(), finetune=plan)
    cells = tuning_cells(config)
    assert len(cells) == 6
    assert all(finetune_config(config, cell, SPLITS, OUT).test == () for cell in cells)
    assert finetune_config(config, scored_cells(config, {})[0], SPLITS, OUT).test == ("d",)
    for cell in cells:
        score = 0.5 if (cell.lr == 1e-3) == (cell.arm == "mae") else 0.1
        rows = [{"split": "validation", "step": s, "score": score * s} for s in (0, 1)]
        write_json(tmp_path / "cells" / cell.key / "result.json", {"rows": rows})
    rates = choose_lr(cells, tmp_path)
    assert rates == {
        ("scratch", "unetr"): (1e-4, 1.0),
        ("simclr", "unetr"): (1e-4, 1.0),
        ("mae", "unetr"): (1e-3, 1.0),
    }
    assert {c.lr for c in scored_cells(config, rates) if c.arm == "mae"} == {1e-3}


def test_the_encoders_rate_is_the_grids_second_axis() -> None:
    plan = FinetunePlan(lr=(1e-3,), encoder_lr_scale=(0.1, 1.0), tuning_seeds=(100,))
    config = replace(demo(), finetune=plan)
    cells = tuning_cells(config)
    assert len({cell.key for cell in cells}) == len(cells) == 6
    made = {finetune_config(config, cell, SPLITS, OUT).encoder_lr_scale for cell in cells}
    assert made == {0.1, 1.0}
    chosen = scored_cells(config, {("mae", "unetr"): (1e-3, 0.1)})
    assert {(c.arm, c.encoder_lr_scale) for c in chosen} == {
        ("scratch", 0.1),
        ("simclr", 0.1),
        ("mae", 0.1),
    }
    with pytest.raises(ConfigError, match="encoder_lr_scale"):
        FinetunePlan(encoder_lr_scale=(0.1, 1.0))


def test_a_search_of_pretext_settings_leaves_the_test_subjects_alone() -> None:
    config = study("pretext")
    made = {p.key: pretrain_config(config, p, SPLITS) for p in pretrainings(config)}
    assert len(made) == 24
    by_arm: dict[str, set[tuple[float, int, float | None]]] = {}
    for key, run in made.items():
        own = getattr(run.method, "mask_ratio", None) or getattr(run.method, "temperature", None)
        arm = key.split("_")[0]
        by_arm.setdefault(arm, set()).add((run.schedule.lr, run.global_batch, own))
        assert run.data.loader.augment == ("auto" if arm == "simclr" else "none")
    assert {len(settings) for settings in by_arm.values()} == {8}
    assert {run.global_batch * run.steps for run in made.values()} == {96_000}
    cells = scored_cells(config, {})
    assert {finetune_config(config, cell, SPLITS, OUT).test for cell in cells} == {()}


def test_variants_touch_only_arms_they_matter_to() -> None:
    variant = Variant(mask_ratio=0.5, patch=4, decoder_depth=1, decoder_width=32)
    assert variant.of("scratch") == Variant(patch=4)
    assert variant.of("simmim") == Variant(mask_ratio=0.5, patch=4)
    config = replace(demo(), arms=("scratch", "mae"), variants=(variant, Variant(mask_ratio=0.9)))
    cells = scored_cells(config, {})
    assert {c.variant.name for c in cells if c.arm == "scratch"} == {"patch 4", ""}
    assert varied_vit(config.vit, variant).patch_size == (4, 4, 4)
    method = method_config(config, "mae", variant)
    assert isinstance(method, MAEConfig)
    assert (method.mask_ratio, method.decoder_depth, method.decoder_width) == (0.5, 1, 32)


@pytest.mark.parametrize("name", ["hippocampus", "swin", "paper", "paper-swin"])
def test_studies_that_claim_something_pretrain_for_every_seed(name: str) -> None:
    config = study(name)
    by_arm: dict[str, set[int | None]] = {}
    for one in pretrainings(config):
        by_arm.setdefault(one.arm, set()).add(one.seed)
    wanted = {*config.finetune.tuning_seeds, *config.seeds}
    assert all(seeds == wanted for seeds in by_arm.values())


def test_pretraining_per_seed() -> None:
    config = demo()
    config = replace(config, pretrain=replace(config.pretrain, per_seed=True))
    assert [(p.arm, p.seed) for p in pretrainings(config)] == [
        ("simclr", 0),
        ("simclr", 1),
        ("mae", 0),
        ("mae", 1),
    ]
    inits = [finetune_config(config, c, SPLITS, OUT).init for c in scored_cells(config, {})]
    assert str(OUT / "pretrain" / "mae_seed-1") in inits


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arms": ("moco",)}, "moco"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (0, 0)}, "each once"),
        ({"primary": 0.5}, "primary"),
        ({"smoothing": 2}, "odd"),
    ],
)
def test_impossible_studies_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(demo(), **change)
    with pytest.raises(ConfigError, match="demo"):
        study("unknown")


def test_a_grid_needs_seeds_that_are_not_scored() -> None:
    with pytest.raises(ConfigError, match="tuning_seeds"):
        FinetunePlan(lr=(1e-3, 1e-4))
    with pytest.raises(ConfigError, match="tune the rate and be scored"):
        StudyConfig(seeds=(0,), finetune=FinetunePlan(lr=(1e-3, 1e-4), tuning_seeds=(0,)))
