"""What an ablation tests: the right pairs, their number, and no more than one false alarm in 20."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from synthetic_study import pretraining_of, rows_of, write_study

from mim3d.engine.analysis.ablation import Ablation, Setting, read_ablation
from mim3d.engine.analysis.ablation_family import AblationFamily, read_ablation_family
from mim3d.engine.analysis.ablation_statement import ablation_statement
from mim3d.engine.analysis.figures import figures_of
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.speedup import ALPHA, holm
from mim3d.engine.analysis.summary import summarise
from mim3d.engine.report.ablation import ablation_table
from mim3d.engine.report.report import build_report
from mim3d.engine.runs.files import read_json, write_json, write_jsonl

Tops = Mapping[tuple[str, str], float]
"""Final score by arm and variant."""


def study_of(
    folder: Path,
    tops: Tops,
    variants: dict[str, dict[str, Any]],
    axes: list[str],
    failed: tuple[str, ...] = (),
    seeds: int = 5,
    labels: tuple[float, ...] = (1.0,),
) -> tuple[Study, Ablation]:
    write_study(folder)
    rows = [
        row
        for (arm, name), top in tops.items()
        for count in labels
        for seed in range(seeds)
        for row in rows_of(arm, seed, 1.0, top=top, variant=name, labels=count)
    ]
    losses = {"simclr": (2.2, 3.43)}
    pretraining = [
        pretraining_of(arm, *losses.get(arm, (0.99 if name in failed else 0.4, 1.0)), name)
        for arm, name in tops
        if arm != "scratch"
    ]
    arms = list(dict.fromkeys(arm for arm, _ in tops))
    about = read_json(folder / "study.json")
    about |= {"ablation": "some", "ablation_axes": axes, "variants": variants, "arms": arms}
    about["config"] = {"seeds": seeds, "labels": list(labels), "heads": ["unetr"]}
    write_jsonl(folder / "results.jsonl", rows)
    write_json(folder / "pretraining.json", pretraining)
    write_json(folder / "study.json", about)
    study = Study.load(folder)
    ablation = read_ablation(study, summarise(study))
    assert ablation is not None
    return study, ablation


MASKS = {
    f"mask_ratio {r:g}, patch {p}": {"mask_ratio": r, "patch": p}
    for p in (8, 4)
    for r in (0.6, 0.9)
}


def pairs(family: AblationFamily) -> list[tuple[str, str]]:
    return [(label(m.setting), label(m.rival)) for m in family.members]


def label(setting: Setting) -> str:
    return f"{setting.arm} {setting.name}"


def test_a_grid_is_held_against_the_setting_that_is_listed_first(tmp_path: Path) -> None:
    tops = {("mae", name): 0.8 - 0.2 * ("0.9" in name) for name in MASKS}
    study, ablation = study_of(tmp_path, tops, MASKS, ["mask_ratio", "patch"])
    family = read_ablation_family(study, ablation)
    first = "mae mask ratio 0.6, patch 8"
    others = ("mask ratio 0.9, patch 8", "mask ratio 0.6, patch 4", "mask ratio 0.9, patch 4")
    assert pairs(family) == [(f"mae {name}", first) for name in others]
    assert family.size == 3
    assert [m.p_value for m in family.members] == holm([m.area.p_value for m in family.members])
    said = ablation_statement(study, ablation)
    assert said.kind == "finding"
    assert "certainly differs in 2 of 3 comparisons" in said.text
    assert "MAE, mask ratio 0.9, patch 8: -0.1" in said.detail
    assert "against mask ratio 0.6, patch 8, p" in said.detail
    rows = {row[0]: row for row in ablation_table(ablation, family, "Dice").rows}
    assert rows["MAE, mask ratio 0.6, patch 8"][2:4] == ("–", "–")
    assert float(rows["MAE, mask ratio 0.9, patch 8"][3]) < ALPHA


def test_a_control_in_the_study_is_the_rival_at_the_same_setting(tmp_path: Path) -> None:
    """The question of crops and labels is what pretraining gives at each of them."""
    crops = {f"crop {c}": {"crop": c} for c in (32, 24)}
    tops = {(arm, name): top for name in crops for arm, top in (("scratch", 0.6), ("mae", 0.8))}
    study, ablation = study_of(tmp_path, tops, crops, ["crop"])
    family = read_ablation_family(study, ablation)
    assert pairs(family) == [(f"mae crop {c}", f"scratch crop {c}") for c in (32, 24)]
    assert family.size == 2
    assert "against scratch, p" in ablation_statement(study, ablation).detail
    assert ablation_table(ablation, family, "Dice").header[2] == "against scratch"


def test_scratch_that_a_setting_does_not_change_is_the_rival_of_all(tmp_path: Path) -> None:
    masks = {f"mask_ratio {r:g}": {"mask_ratio": r} for r in (0.6, 0.9)}
    tops = {("mae", name): 0.8 for name in masks} | {("scratch", ""): 0.7}
    study, ablation = study_of(tmp_path, tops, masks | {"": {"mask_ratio": 0.6}}, ["mask_ratio"])
    family = read_ablation_family(study, ablation)
    assert [rival for _, rival in pairs(family)] == ["scratch its own settings"] * 2
    assert family.size == 2


def test_masked_arms_are_held_against_simclr_at_each_number_of_labels(tmp_path: Path) -> None:
    tops = {(arm, ""): 0.8 for arm in ("scratch", "simclr", "mae", "simmim")}
    study, ablation = study_of(tmp_path, tops, {"": {}}, ["labels"], labels=(1.0, 8.0))
    family = read_ablation_family(study, ablation)
    found = {(m.setting.arm, m.rival.arm) for m in family.members}
    assert found == {("mae", "simclr"), ("simmim", "simclr")}
    assert family.size == len(family.members) == 4
    assert all(m.setting.values == m.rival.values for m in family.members)


def test_what_did_not_learn_is_not_compared_and_still_counts(tmp_path: Path) -> None:
    tops = {("mae", name): 0.8 for name in MASKS}
    unlearned = ("mask_ratio 0.9, patch 4",)
    study, ablation = study_of(tmp_path, tops, MASKS, ["mask_ratio", "patch"], failed=unlearned)
    family = read_ablation_family(study, ablation)
    assert len(family.members) == 2
    assert family.size == 3
    first = ("mask_ratio 0.6, patch 8",)
    study, ablation = study_of(tmp_path / "b", tops, MASKS, ["mask_ratio", "patch"], failed=first)
    assert read_ablation_family(study, ablation).members == ()
    assert "nothing could be compared" in ablation_statement(study, ablation).text


def test_settings_that_are_still_to_run_count(tmp_path: Path) -> None:
    tops = {("mae", name): 0.8 for name in list(MASKS)[:2]}
    study, ablation = study_of(tmp_path, tops, MASKS, ["mask_ratio", "patch"])
    assert read_ablation_family(study, ablation).size == 3


def test_figures_have_the_comparison(tmp_path: Path) -> None:
    tops = {("mae", name): 0.8 - 0.2 * ("0.9" in name) for name in MASKS}
    study_of(tmp_path, tops, MASKS, ["mask_ratio", "patch"])
    first, *others = figures_of(build_report(tmp_path))["ablation"]
    by_name = {(o["settings"]["mask_ratio"], o["settings"]["patch"]): o for o in [first, *others]}
    assert by_name[0.6, 8]["against"] is None
    against = by_name[0.9, 8]["against"]
    assert against["rival"] == {"arm": "mae", "settings": {"mask_ratio": 0.6, "patch": 8}}
    areas, own = by_name[0.6, 8]["area"], by_name[0.9, 8]["area"]
    assert against["area"]["mean"] == pytest.approx(np.mean([own[s] - areas[s] for s in own]))
    assert against["p_holm"] < ALPHA


@cache
def stamped(folder: Path) -> tuple[Study, Ablation]:
    ratios = (0.6, 0.15, 0.3, 0.45, 0.75, 0.9)
    masks = {
        f"mask_ratio {r:g}, patch {p}": {"mask_ratio": r, "patch": p}
        for p in (8, 16)
        for r in ratios
    }
    return study_of(folder, {("mae", name): 0.8 for name in masks}, masks, ["mask_ratio", "patch"])


def test_of_settings_that_do_not_differ_one_report_in_twenty_claims_anything(
    tmp_path: Path,
) -> None:
    """Areas of twelve settings with a share common to a seed, as curves of one seed have it."""
    study, ablation = stamped(tmp_path)
    rng, nulls, false = np.random.default_rng(3), 400, 0
    by_itself = 0
    for _ in range(nulls):
        areas = rng.normal(0.5, 0.08, (1, 5)) + rng.normal(0, 0.02, (12, 5))
        made = replace(
            ablation,
            settings=tuple(
                replace(s, summary=replace(s.summary, area=dict(enumerate(row))))
                for s, row in zip(ablation.settings, areas.tolist(), strict=True)
            ),
        )
        family = read_ablation_family(study, made)
        false += ablation_statement(study, made).kind == "finding"
        by_itself += any((m.area.p_value or 1.0) < ALPHA for m in family.members)
    assert false <= stats.binom.ppf(0.995, nulls, ALPHA)
    # Uncorrected, the same nulls would claim far more often: the bound is no matter of course.
    assert by_itself > 3 * nulls * ALPHA
