"""The report's numbers as JSON values, for `--json`."""

from pathlib import Path
from typing import Any

from mim3d.engine.analysis.ablation import Ablation, read_ablation
from mim3d.engine.analysis.ablation_family import SettingComparison, read_ablation_family
from mim3d.engine.analysis.family import (
    first_groups,
    primary_share,
    read_family,
    runs_awaited,
)
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.speedup import PairedDifference, PairedRatio, bootstrap_interval
from mim3d.engine.analysis.statements import first_statement
from mim3d.engine.analysis.summary import ArmSummary, GroupSummary, summarise


def figures_of(report: Path) -> dict[str, Any]:
    """The report's main numbers, for --json."""
    study = Study.load(report.parent)
    groups = summarise(study)
    ablation = read_ablation(study, groups)
    found = {
        "report": str(report),
        "headline": first_statement(study, groups, ablation).whole,
        "primary": primary_share(study),
        "groups": {g.group.title: group_figures(g) for g in groups},
        "pretraining": pretraining_figures(study),
    }
    if ablation:
        return found | {"ablation": ablation_figures(study, ablation)}
    return found | {"tested": tested_figures(study, groups)}


def tested_figures(study: Study, groups: list[GroupSummary]) -> dict[str, Any]:
    """The family of the headline: p corrected (Holm) for so many comparisons of the plan.

    `interim` says that runs are still to come. All p outside are of one test by itself.
    """
    firsts = first_groups(groups)
    family = read_family(study, *firsts)
    return {
        "of": family.size,
        "interim": runs_awaited(study, *firsts),
        "p_holm": {
            "/".join(filter(None, (c.first, c.second, c.encoder))): p
            for c, p in zip(family.members, family.p_values, strict=True)
        },
    }


PRETRAINING = ("arm", "encoder", "variant", "seed", "loss", "floor", "trained", "crops", "leaked")


def group_figures(group: GroupSummary) -> dict[str, Any]:
    """Targets, what each arm needed and ended with, ratios and ledgers of one group."""
    return {
        "targets": {str(target.share): target.score for target in group.targets},
        "refused": {str(t.share): t.refused for t in group.targets if t.refused},
        "untrained": list(group.untrained),
        "final": {arm.arm: dict(arm.final) for arm in group.arms},
        "hd95": {arm.arm: dict(arm.hd95) for arm in group.arms},
        "area": {arm.arm: dict(arm.area) for arm in group.arms},
        "steps": {arm.arm: reach_figures(arm) for arm in group.arms},
        "speedup": {
            f"{c.first}/{c.second}": {
                str(share): ratio_figures(r) | {"bootstrap": list(bootstrap_interval(r))}
                for share, r in c.at.items()
            }
            for c in group.comparisons
        },
        "ledgers": {
            f"{c.first}/{c.second}": {
                f"{ledger}, {unit}": ratio_figures(r) for (ledger, unit), r in c.ledgers.items()
            }
            for c in group.comparisons
        },
        "differences": {
            f"{c.first}/{c.second}": {
                "final": difference_figures(c.final),
                "area": difference_figures(c.area),
            }
            for c in group.comparisons
        },
    }


def reach_figures(arm: ArmSummary) -> dict[str, Any]:
    """By target, how many seeds of an arm reached it, and what each spent, reached or not."""
    return {
        str(share): {
            "reached": sum(run.reached for run in reaches.values()),
            "seeds": len(reaches),
            "spent": {str(seed): run.cost for seed, run in reaches.items()},
            "unreached": [seed for seed, run in reaches.items() if not run.reached],
            "early": [seed for seed, run in reaches.items() if run.early],
        }
        for share, reaches in arm.reaches.items()
    }


def ratio_figures(found: PairedRatio) -> dict[str, Any]:
    """A ratio with all that it can carry."""
    return {
        "ratio": found.ratio,
        "bound": found.bound,
        "low": found.low,
        "high": found.high,
        "p": found.p_value,
        "pairs": found.pairs,
        "complete": found.complete,
        "first_reached": found.first_reached,
        "second_reached": found.second_reached,
        "per_pair": list(found.per_pair),
        "why": found.why,
    }


def difference_figures(found: PairedDifference) -> dict[str, Any]:
    """A mean difference with its interval and test."""
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "p": found.p_value,
        "pairs": found.pairs,
    }


def ablation_figures(study: Study, ablation: Ablation) -> list[dict[str, Any]]:
    """Every setting of an ablation with its scores and steps, and its area against its rival's.

    `against` is None of a rival and of what could not be compared.
    """
    family = read_ablation_family(study, ablation)
    return [
        {
            "arm": setting.arm,
            "settings": dict(setting.values),
            "learned": setting.learned,
            "final": dict(setting.final),
            "area": dict(setting.summary.area),
            "against": comparison_figures(c, family.size) if (c := family.of(setting)) else None,
            "reached": sum(run.reached for run in setting.reaches.values()),
            "steps": {str(seed): run.cost for seed, run in setting.reaches.items()},
        }
        for arm in ablation.arms
        for setting in ablation.of(arm)
    ]


def comparison_figures(found: SettingComparison, size: int) -> dict[str, Any]:
    """A setting's area less its rival's, with p corrected for so many comparisons of the plan."""
    rival = {"arm": found.rival.arm, "settings": dict(found.rival.values)}
    return {
        "rival": rival,
        "area": difference_figures(found.area),
        "p_holm": found.p_value,
        "of": size,
    }


def pretraining_figures(study: Study) -> list[dict[str, Any]]:
    """Verdict and cost of every pretraining."""
    return [{key: p.get(key) for key in PRETRAINING} for p in study.pretraining]
