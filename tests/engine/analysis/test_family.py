"""The family of tested statements: false alarms of a whole report, both kinds of seeds, limits."""

import gzip
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from synthetic_study import own_pretrainings, rows_of, write_study

from mim3d.engine.analysis.description import secondary_statements
from mim3d.engine.analysis.family import PAPER_RATIO, headline_family, read_family
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.speedup import joint_interval, paired_ratio
from mim3d.engine.analysis.summary import summarise
from mim3d.engine.analysis.verdict import headline
from mim3d.engine.runs.files import read_json, write_json
from mim3d.engine.study.curves import Reach

REAL = Path(__file__).resolve().parents[3] / "bench/results/2026-11-25-hippocampus-ten-seeds"
ARMS = ("scratch", "simclr", "mae", "simmim")
CLAIM = re.compile(r"\bconverged\b|(?<!No )\bsignificant\b|p [=<]", re.IGNORECASE)


@cache
def real_study() -> Study:
    """Ten seeds of four arms, as they were measured."""
    lines = gzip.decompress((REAL / "results.jsonl.gz").read_bytes()).splitlines()
    rows = [row for line in lines if not (row := json.loads(line)).get("tuning")]
    about, pretraining = (read_json(REAL / f"{name}.json") for name in ("study", "pretraining"))
    return Study(about, rows, [], pretraining, REAL)


def permuted(seed: int, n_seeds: int) -> Study:
    """The same study with the arms of every seed interchanged: the arms do not differ."""
    study, rng = real_study(), np.random.default_rng([seed, n_seeds])
    chosen = rng.choice(10, n_seeds, replace=False)
    deal = {int(s): dict(zip(ARMS, rng.permutation(ARMS), strict=True)) for s in chosen}
    rows = [r | {"arm": str(deal[r["seed"]][r["arm"]])} for r in study.rows if r["seed"] in deal]
    about = study.about | {"config": {"seeds": [int(s) for s in chosen]}}
    return replace(study, rows=rows, about=about)


@pytest.mark.slow
@pytest.mark.parametrize(("n_seeds", "nulls"), [(5, 300), (10, 150)])
def test_of_arms_that_do_not_differ_one_report_in_twenty_claims_anything(
    n_seeds: int, nulls: int
) -> None:
    family_wise, any_by_itself = 0, 0
    for seed in range(nulls):
        study = permuted(seed, n_seeds)
        groups = summarise(study)
        first, *others = headline(study, groups), *secondary_statements(study, groups)
        assert not [s.whole for s in others if s.kind == "finding" or CLAIM.search(s.whole)]
        family_wise += first.kind == "finding" or "more slowly" in first.text
        every = [r.p_value for c in groups[0].comparisons for r in c.at.values()]
        every += [p for c in groups[0].comparisons for p in (c.final.p_value, c.area.p_value)]
        any_by_itself += any(p is not None and p < 0.05 for p in every)
    most = stats.binom.ppf(0.995, nulls, 0.05)
    assert family_wise <= most
    # The same nulls do set off tests by themselves: the bound above is no matter of course.
    assert any_by_itself > most


def pairs(
    rng: np.random.Generator, seeds: int, truth: float, own: bool, pretrained: float
) -> tuple[list[Reach], list[Reach]]:
    """Costs of two arms: encoders vary by `pretrained`, fine-tuning by 0.08, in logarithms."""
    shape = seeds if own else 1
    encoders = rng.normal(0, pretrained, (2, shape)) + np.zeros((2, seeds))
    shared = rng.normal(0, 0.2, seeds)
    logs = 4.6 + shared + encoders + rng.normal(0, 0.08, (2, seeds))
    logs[1] += np.log(truth)
    first, second = ([Reach(float(np.exp(x)), True) for x in arm] for arm in logs)
    return first, second


def covered(seeds: int, own: bool, pretrained: float = 0.1, rounds: int = 1500) -> float:
    """How often the interval of a study holds the true ratio of the methods."""
    rng, hits = np.random.default_rng([seeds, own]), 0
    for _ in range(rounds):
        found = paired_ratio(*pairs(rng, seeds, 1.2, own, pretrained))
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1.2 <= found.high
    return hits / rounds


@pytest.mark.parametrize("seeds", [5, 10])
def test_pairs_with_pretrainings_of_their_own_cover_both_kinds_of_seeds(seeds: int) -> None:
    error = 3 * (0.95 * 0.05 / 1500) ** 0.5
    assert covered(seeds, own=True) == pytest.approx(0.95, abs=error)
    assert covered(seeds, own=False) < 0.75  # why one encoder pair stands for no method


@pytest.mark.parametrize(("budget", "noise"), [(np.inf, 0.05), (250.0, 0.3), (190.0, 0.3)])
def test_the_widened_intervals_hold_together(budget: float, noise: float) -> None:
    """Also where runs do not reach the target in time, and the ratio is a bound."""
    rng, wrong, bounds, rounds = np.random.default_rng(0), 0, 0, 1500
    for _ in range(rounds):
        studies = [pairs(rng, 5, PAPER_RATIO, True, noise) for _ in range(2)]
        both = [paired_ratio(*within(budget, *arms)) for arms in studies]
        highs = [joint_interval(found, 2)[1] for found in both]
        wrong += any(high is not None and high < PAPER_RATIO for high in highs)
        bounds += any(found.bound == "at most" for found in both)
    assert wrong <= stats.binom.ppf(0.999, rounds, 0.025)
    assert wrong > 0
    assert (bounds > 30) is (budget < np.inf)


def within(budget: float, *arms: list[Reach]) -> list[list[Reach]]:
    """The same runs, each ended by the budget."""
    return [[Reach(min(r.cost, budget), r.cost <= budget) for r in arm] for arm in arms]


@pytest.mark.parametrize("late", [1, 3])
def test_a_bound_is_widened_at_the_end_that_it_supports(late: int) -> None:
    first = [Reach(110.0 + 3 * k, k >= late) for k in range(8)]
    second = [Reach(100.0 + k, True) for k in range(8)]
    slower, faster = paired_ratio(first, second), paired_ratio(second, first)
    assert (slower.bound, faster.bound) == ("at most", "at least")
    assert joint_interval(slower, 1) == pytest.approx((None, slower.high))
    assert joint_interval(faster, 1) == pytest.approx((faster.low, None))
    low, high = joint_interval(slower, 2)
    assert low is None
    assert high is not None
    assert high > (slower.high or 0)
    assert joint_interval(faster, 2) == pytest.approx((1 / high, None))


def test_the_method_is_named_only_where_every_seed_has_its_own_pretraining(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=6)
    study = Study.load(folder)
    one = headline(study, summarise(study))
    assert one.text.startswith("This MAE encoder converged 1.")
    assert one.text.endswith("as this SimCLR encoder.")
    assert "one pretraining of MAE and of SimCLR" in one.detail
    study = Study.load(own_pretrainings(folder, 6))
    own = headline(study, summarise(study))
    assert own.text.startswith("MAE converged 1.")
    assert "one pretraining" not in own.detail
    study = Study.load(own_pretrainings(write_study(tmp_path / "b", seeds=6), 3))
    assert headline(study, summarise(study)).text.startswith("This MAE encoder")


def test_arms_that_cannot_be_compared_still_count_in_the_family(tmp_path: Path) -> None:
    speeds = {"scratch": 1.0, "simclr": 1.0, "mae": 1.5, "simmim": 1.0}
    folder = write_study(tmp_path, seeds=6, speeds=speeds)
    entries = read_json(folder / "pretraining.json")
    write_json(
        folder / "pretraining.json", [{**p, "trained": p["arm"] != "simmim"} for p in entries]
    )
    study = Study.load(folder)
    (group,) = summarise(study)
    family = read_family(study, group)
    assert [c.first for c in family.members] == [c.first for c in headline_family(group)] == ["mae"]
    assert family.size == 2
    by_itself = family.ratio_of(family.members[0]).p_value
    corrected = family.p_of(family.members[0])
    assert by_itself is not None
    assert corrected == pytest.approx(2 * by_itself)


def test_what_the_interval_excludes_is_said(tmp_path: Path) -> None:
    same = {"scratch": 1.0, "simclr": 1.0, "mae": 1.0}
    study = Study.load(write_study(tmp_path, seeds=6, speeds=same))
    assert "The interval excludes 1.40×." in headline(study, summarise(study)).detail
    both = {"scratch": 1.0, "simclr": 1.0, "mae": 1.0, "simmim": 0.95}
    study = Study.load(write_study(tmp_path / "both", seeds=6, speeds=both))
    found = headline(study, summarise(study)).detail
    assert found.count(" excludes 1.40×.") == found.count(", widened for 2 comparisons (0.") == 2
    study = Study.load(write_study(tmp_path / "fast", seeds=6))
    assert "excludes" not in headline(study, summarise(study)).detail
    alone = {"scratch": 1.0, "mae": 1.0}  # the paper's ratio is over contrastive pretraining
    study = Study.load(write_study(tmp_path / "alone", seeds=6, speeds=alone))
    assert "excludes" not in headline(study, summarise(study)).detail


def test_a_target_set_by_tuning_seeds_stands_beside_the_shares(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=6)
    study = Study.load(folder)
    assert summarise(study)[0].fixed is None
    tuned: list[dict[str, Any]] = []
    for lr, speed in ((1e-3, 0.3), (1e-2, 1.0)):
        rows = rows_of("scratch", 100, speed, top=0.8)
        tuned += [{**row, "tuning": True, "lr": lr} for row in rows]
    study = replace(study, rows=[*study.rows, *tuned])
    (group,) = summarise(study)
    assert group.fixed is not None
    assert group.fixed.score == pytest.approx(0.9 * 0.77, abs=0.02)
    assert group.fixed.score == round(group.fixed.score, 2)
    ratio = headline_family(group)[0].fixed.ratio
    assert ratio == pytest.approx(1.5, abs=0.15)
