"""What an ablation tests: the plan's pairs, their number, and one false alarm in 20 at most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from mim3d.engine.analysis.verdict import Statement, fixed_beforehand
from mim3d.engine.report.ablation import ablation_table
from mim3d.engine.report.limits import limits
from mim3d.engine.report.report import build_report
from mim3d.engine.runs.files import read_json, write_json, write_jsonl
from mim3d.engine.study.gather import headline_settings

Settings = dict[str, float]
CONTRASTIVE_LOSS = {"simclr": (2.2, 3.43)}


def name_of(settings: Settings) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in settings.items())


@dataclass(frozen=True)
class Plan:
    """An ablation as it was planned, and what of it is there."""

    variants: Sequence[Settings]
    arms: Sequence[str] = ("mae",)
    matter: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By arm, the varied settings that change it, where not all do."""
    seeds: int = 5
    labels: Sequence[float] = (1.0,)
    counts: Mapping[float, int] = field(default_factory=dict)
    tops: Mapping[str, float] = field(default_factory=dict)
    """Final score by `ARM VARIANT`, else 0.8."""
    lacking: Sequence[tuple[str, int | None]] = ()
    """`ARM VARIANT` and a seed that has no run; None: none has."""
    failed: Sequence[str] = ()
    per_seed: bool = True

    def variant_of(self, arm: str, settings: Settings) -> Settings:
        kept = self.matter.get(arm)
        return {k: v for k, v in settings.items() if kept is None or k in kept}

    def runs(self) -> list[tuple[str, str]]:
        made = [
            (arm, name_of(self.variant_of(arm, settings)))
            for settings in self.variants
            for arm in self.arms
        ]
        return list(dict.fromkeys(made))

    def rows(self) -> list[dict[str, Any]]:
        """Seed by seed, as a study writes them."""
        return [
            {**row, "n_labelled": self.counts.get(labels, round(64 * labels))}
            for labels in self.labels
            for seed in range(self.seeds)
            for arm, variant in self.runs()
            if not {(f"{arm} {variant}", seed), (f"{arm} {variant}", None)} & set(self.lacking)
            for row in rows_of(
                *(arm, seed, 1.0, self.tops.get(f"{arm} {variant}", 0.8), labels), variant=variant
            )
        ]

    def pretraining(self) -> list[dict[str, Any]]:
        return [
            pretraining_of(arm, *self.losses(arm, variant), variant) | {"seed": seed}
            for arm, variant in self.runs()
            if arm != "scratch"
            for seed in (range(self.seeds) if self.per_seed else [None])
        ]

    def losses(self, arm: str, variant: str) -> tuple[float, float]:
        return CONTRASTIVE_LOSS.get(arm, (0.99 if f"{arm} {variant}" in self.failed else 0.4, 1.0))

    def write(self, folder: Path) -> tuple[Study, Ablation]:
        write_study(folder)
        about = read_json(folder / "study.json")
        axes = list(dict.fromkeys(name for variant in self.variants for name in variant))
        axes += ["labels"] * (len(self.labels) > 1)
        own = {"mask_ratio": 0.6, "temperature": 0.1}
        names = {
            name_of(kept): own | kept
            for settings in self.variants
            for arm in self.arms
            for kept in [self.variant_of(arm, settings)]
        }
        about |= {"ablation": "some", "ablation_axes": axes, "variants": names, "arms": self.arms}
        about["settings"]["outcome"] = "area"
        about["config"] = {
            "seeds": list(range(self.seeds)),
            "labels": list(self.labels),
            "heads": ["unetr"],
            "arms": list(self.arms),
            "variants": [{"decoder_depth": None} | settings for settings in self.variants],
        }
        write_jsonl(folder / "results.jsonl", self.rows())
        write_json(folder / "pretraining.json", self.pretraining())
        write_json(folder / "study.json", about)
        return loaded(folder)


def loaded(folder: Path) -> tuple[Study, Ablation]:
    study = Study.load(folder)
    ablation = read_ablation(study, summarise(study))
    assert ablation is not None
    return study, ablation


def pairs(study: Study, ablation: Ablation) -> list[tuple[str, str]]:
    family = read_ablation_family(study, ablation)
    return [(label(m.setting), label(m.rival)) for m in family.members]


def label(setting: Setting) -> str:
    return f"{setting.arm} {setting.name}"


def said(plan: Plan, folder: Path) -> tuple[Statement, AblationFamily]:
    study, ablation = plan.write(folder)
    return ablation_statement(study, ablation), read_ablation_family(study, ablation)


MASKS = [{"mask_ratio": r, "patch": p} for p in (8.0, 4.0) for r in (0.6, 0.9)]
LOW = {f"mae mask_ratio 0.9, patch {p}": 0.6 for p in (8, 4)}
FIRST = "mae mask ratio 0.6, patch 8"


def test_a_grid_is_held_against_the_setting_that_is_listed_first(tmp_path: Path) -> None:
    study, ablation = Plan(MASKS, tops=LOW).write(tmp_path)
    family = read_ablation_family(study, ablation)
    others = ("mask ratio 0.9, patch 8", "mask ratio 0.6, patch 4", "mask ratio 0.9, patch 4")
    assert pairs(study, ablation) == [(f"mae {name}", FIRST) for name in others]
    assert family.size == 3
    assert [m.p_value for m in family.members] == holm([m.area.p_value for m in family.members])
    found = ablation_statement(study, ablation)
    assert found.kind == "finding"
    assert found.text == (
        "Some varied: MAE's area under the validation curve differs significantly from that of "
        "mask ratio 0.6, patch 8 in 2 of 3 comparisons."
    )
    assert "MAE, mask ratio 0.9, patch 8: -0.1" in found.detail
    assert "; 5 seeds), p" in found.detail
    assert "MAE, mask ratio 0.6, patch 4: +0.000 (every seed gives the same" in found.detail
    assert "A claim would want 10 seeds." in found.detail
    rows = {row[0]: row for row in ablation_table(ablation, family, "Dice").rows}
    assert rows["MAE, mask ratio 0.6, patch 8"][2:4] == ("(rival)", "–")
    assert rows["MAE, mask ratio 0.9, patch 8"][2].endswith("\nagainst mask ratio 0.6, patch 8")
    assert rows["MAE, mask ratio 0.9, patch 8"][3] == "< 0.001"


def test_the_rival_is_the_plans_first_whichever_runs_are_there(tmp_path: Path) -> None:
    """Otherwise a run that failed would turn the question round."""
    plan = Plan(MASKS, tops=LOW, lacking=[("mae mask_ratio 0.6, patch 8", 0)], seeds=6)
    study, ablation = plan.write(tmp_path)
    assert {rival for _, rival in pairs(study, ablation)} == {FIRST}
    found = ablation_statement(study, ablation)
    assert found.text.endswith("in 2 of 3 comparisons so far.")
    assert found.kind == "neutral"
    assert "5 of 6 seeds" in found.detail
    assert "every figure is interim: no interval or p is corrected" in found.detail
    none, family = said(
        replace(plan, lacking=[("mae mask_ratio 0.6, patch 8", None)]), tmp_path / "none"
    )
    assert family.members == ()
    assert family.size == 3
    assert none.text == "Some varied: nothing could be compared so far."


def test_a_run_that_is_lost_silences_only_its_own_comparison(tmp_path: Path) -> None:
    plan = Plan(MASKS, tops=LOW, lacking=[("mae mask_ratio 0.6, patch 4", 2)])
    found, family = said(plan, tmp_path)
    assert family.size == 3
    assert sum(m.p_value is not None for m in family.members) == 2
    assert "in 2 of 3 comparisons so far" in found.text


CROPS = [{"crop": c} for c in (32.0, 24.0)]
GAIN = {f"scratch crop {c}": 0.6 for c in (32, 24)}


def test_a_control_in_the_study_is_the_rival_at_the_same_setting(tmp_path: Path) -> None:
    """The question of crops and labels is what pretraining gives at each of them."""
    study, ablation = Plan(CROPS, ("scratch", "mae"), tops=GAIN).write(tmp_path)
    assert pairs(study, ablation) == [(f"mae crop {c}", f"scratch crop {c}") for c in (32, 24)]
    found = ablation_statement(study, ablation)
    assert (
        "MAE's area under the validation curve differs significantly from scratch's in 2 of 2"
        in (found.text)
    )
    family = read_ablation_family(study, ablation)
    cells = [row[2] for row in ablation_table(ablation, family, "Dice").rows]
    assert cells[0] == cells[1] == "(rival)"
    assert all(cell.endswith("against scratch") for cell in cells[2:])


def test_a_control_whose_runs_are_to_come_is_not_replaced(tmp_path: Path) -> None:
    """The interim report would test what the final one does not."""
    plan = Plan(CROPS, ("scratch", "simclr", "mae"), tops=GAIN)
    found, family = said(
        replace(plan, lacking=[(f"simclr crop {c}", None) for c in (32, 24)]), tmp_path
    )
    assert family.members == ()
    assert family.size == 2
    assert found.text == "Some varied: nothing could be compared so far."


def test_scratch_that_a_setting_does_not_change_is_the_rival_of_all(tmp_path: Path) -> None:
    plan = Plan([{"mask_ratio": r} for r in (0.6, 0.9)], ("scratch", "mae"), {"scratch": ()})
    study, ablation = plan.write(tmp_path)
    assert {rival for _, rival in pairs(study, ablation)} == {"scratch its own settings"}
    assert read_ablation_family(study, ablation).size == 2


def test_settings_that_differ_from_the_controls_are_held_against_their_first(
    tmp_path: Path,
) -> None:
    """Two temperatures of SimCLR stand at each mask ratio: neither is *the* control."""
    variants = [{"mask_ratio": r, "temperature": t} for r in (0.6, 0.9) for t in (0.1, 0.5)]
    matter = {"mae": ("mask_ratio",), "simclr": ("temperature",)}
    study, ablation = Plan(variants, ("simclr", "mae"), matter).write(tmp_path)
    assert pairs(study, ablation) == [("mae mask ratio 0.9", "mae mask ratio 0.6")]
    assert read_ablation_family(study, ablation).size == 1


def test_simclr_alone_is_compared_with_itself(tmp_path: Path) -> None:
    study, ablation = Plan([{"temperature": t} for t in (0.1, 0.5)], ("simclr",)).write(tmp_path)
    assert pairs(study, ablation) == [("simclr temperature 0.5", "simclr temperature 0.1")]


def test_arms_of_equal_flops_are_described_only(tmp_path: Path) -> None:
    study, ablation = Plan(CROPS, ("simclr", "mae", "mae-flops")).write(tmp_path)
    assert {one for one, _ in pairs(study, ablation)} == {"mae crop 32", "mae crop 24"}
    assert read_ablation_family(study, ablation).size == 2


def test_masked_arms_are_held_against_simclr_at_each_number_of_labels(tmp_path: Path) -> None:
    """Also where a share and a number come to as many subjects (16 of 64)."""
    counts = {8.0: 8, 16.0: 16, 0.25: 16}
    arms = ("scratch", "simclr", "mae", "simmim")
    study, ablation = Plan([{}], arms, labels=tuple(counts), counts=counts).write(tmp_path)
    family = read_ablation_family(study, ablation)
    found = {(m.setting.arm, m.rival.arm) for m in family.members}
    assert found == {("mae", "simclr"), ("simmim", "simclr")}
    assert family.size == len(family.members) == 6
    assert all(m.setting.group is m.rival.group for m in family.members)


def test_labels_that_do_not_vary_are_of_the_plans_first(tmp_path: Path) -> None:
    plan = Plan(MASKS, labels=(1.0, 8.0), lacking=[("mae mask_ratio 0.6, patch 8", 0)])
    study, _ = plan.write(tmp_path)
    about = study.about | {"ablation_axes": ["mask_ratio", "patch"]}
    study = replace(study, about=about)
    ablation = read_ablation(study, summarise(study))
    assert ablation is not None
    family = read_ablation_family(study, ablation)
    assert {m.setting.group.group.labels for m in family.members} == {1.0}
    assert family.size == 3


def test_what_did_not_learn_is_not_compared_and_still_counts(tmp_path: Path) -> None:
    found, family = said(Plan(MASKS, tops=LOW, failed=["mae mask_ratio 0.9, patch 4"]), tmp_path)
    assert len(family.members) == 2
    assert family.size == 3
    assert "1 of 3 comparisons could not be made" in found.detail
    first = Plan(MASKS, failed=["mae mask_ratio 0.6, patch 8"])
    found, family = said(first, tmp_path / "first")
    assert family.members == ()
    assert "nothing could be compared" in found.text


def test_the_studys_own_settings_among_the_variants_count(tmp_path: Path) -> None:
    plan = Plan([{}, {"mask_ratio": 0.75}, {"mask_ratio": 0.9}], failed=["mae mask_ratio 0.75"])
    _, family = said(plan, tmp_path)
    assert family.size == 2


def test_settings_that_are_still_to_run_count(tmp_path: Path) -> None:
    lacking = [(f"mae mask_ratio {r}, patch 4", None) for r in (0.6, 0.9)]
    found, family = said(Plan(MASKS, tops=LOW, lacking=lacking), tmp_path)
    assert family.size == 3
    assert found.text.endswith("in 1 of 3 comparisons so far.")
    assert "2 of 3 comparisons could not be made" in found.detail


def test_one_pretraining_for_all_seeds_is_no_finding(tmp_path: Path) -> None:
    found, _ = said(Plan(MASKS, tops=LOW, per_seed=False), tmp_path)
    assert found.kind == "neutral"
    assert "Seeds of a setting share one pretraining" in found.detail


def test_few_seeds_and_equal_differences_are_not_tested(tmp_path: Path) -> None:
    few, _ = said(Plan(MASKS, tops=LOW, seeds=3), tmp_path)
    assert few.text == "Some varied: 3 seeds, too few to test."
    dead = Plan(MASKS[:2], tops={f"mae mask_ratio {r}, patch 8": 0.0 for r in (0.6, 0.9)})
    study, ablation = dead.write(tmp_path / "dead")
    flat = tuple(
        replace(s, summary=replace(s.summary, area=dict.fromkeys(range(5), 0.0)))
        for s in ablation.settings
    )
    found = ablation_statement(study, replace(ablation, settings=flat))
    assert "no comparison could be tested, for every seed gives the same" in found.text


def test_figures_have_the_comparison(tmp_path: Path) -> None:
    Plan(MASKS, tops=LOW).write(tmp_path)
    found = figures_of(build_report(tmp_path))["ablation"]
    by_name = {(o["settings"]["mask_ratio"], o["settings"]["patch"]): o for o in found}
    assert by_name[0.6, 8]["against"] is None
    against = by_name[0.9, 8]["against"]
    assert against["rival"] == {"arm": "mae", "settings": {"mask_ratio": 0.6, "patch": 8}}
    areas, own = by_name[0.6, 8]["area"], by_name[0.9, 8]["area"]
    assert against["area"]["mean"] == pytest.approx(np.mean([own[s] - areas[s] for s in own]))
    assert against["p_holm"] < ALPHA
    assert against["of"] == 3


def test_what_was_fixed_beforehand_is_told_of_outcome_and_settings(tmp_path: Path) -> None:
    study, _ = Plan(MASKS).write(tmp_path)
    assert "when the headline's outcome and comparisons were chosen" in fixed_beforehand(study)
    first = headline_settings(study.about["settings"], study.about["config"])
    assert first["settings"] == [name_of(settings) for settings in MASKS]
    kept = replace(study, about=study.about | {"asked_first": first})
    assert "outcome, comparisons and smoothing were on file" in fixed_beforehand(kept)
    turned = study.about["config"] | {"variants": study.about["config"]["variants"][::-1]}
    changed = replace(study, about=study.about | {"asked_first": first, "config": turned})
    assert "Changed after the study had begun: settings from ['mask_ratio 0.6, patch 8'" in (
        fixed_beforehand(changed)
    )
    told = " ".join(limits(kept, summarise(kept)))
    assert "speed-ups are read off" not in told
    assert "logarithms" not in told


def test_of_settings_that_do_not_differ_one_report_in_twenty_claims_anything(
    tmp_path: Path,
) -> None:
    """Areas of twelve settings with a share common to a seed, as curves of one seed have it."""
    ratios = (0.6, 0.15, 0.3, 0.45, 0.75, 0.9)
    study, ablation = Plan(
        [{"mask_ratio": r, "patch": p} for p in (8.0, 16.0) for r in ratios]
    ).write(tmp_path)
    rng, nulls, false = np.random.default_rng(3), 200, 0
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
        false += any(m.significant for m in family.members)
        by_itself += any((m.area.p_value or 1.0) < ALPHA for m in family.members)
    assert false <= stats.binom.ppf(0.995, nulls, ALPHA)
    # Uncorrected, the same nulls would claim far more often: the bound is no matter of course.
    assert by_itself > 3 * nulls * ALPHA
