"""The three ledgers by hand."""

import pytest

from mim3d.engine.analysis.ledger import Cost, Spending, totals
from mim3d.engine.analysis.speedup import paired_by_seed
from mim3d.engine.study.curves import Reach

STEP = Cost(1, 5.0, 0.1)
ONCE = Cost(100, 1000.0, 20.0)
MAE = Spending({0: ONCE, 1: ONCE}, {0: STEP, 1: STEP})
SCRATCH = Spending({0: Cost(), 1: Cost()}, {0: STEP, 1: STEP})
FAST = {0: Reach(10, True), 1: Reach(20, True)}
SLOW = {0: Reach(40, True), 1: Reach(80, True)}


def test_fine_tuning_alone_is_the_ratio_of_steps() -> None:
    for unit in ("steps", "flops", "seconds"):
        first = totals(MAE, FAST, "fine-tuning", unit, 10)
        second = totals(SCRATCH, SLOW, "fine-tuning", unit, 10)
        assert paired_by_seed(first, second).ratio == pytest.approx(4.0)


def test_pretraining_turns_a_speedup_into_a_slowdown() -> None:
    first = totals(MAE, FAST, "with pretraining", "steps", 10)
    second = totals(SCRATCH, SLOW, "with pretraining", "steps", 10)
    assert {seed: reach.cost for seed, reach in first.items()} == {0: 110, 1: 120}
    ratio = paired_by_seed(first, second).ratio
    assert ratio == pytest.approx(((40 / 110) * (80 / 120)) ** 0.5)


def test_amortised_shares_the_pretraining() -> None:
    first = totals(MAE, FAST, "amortised", "flops", 4)
    assert first[0].cost == pytest.approx(1000 / 4 + 10 * 5)


def test_censoring_survives_the_ledger() -> None:
    first = totals(MAE, {0: Reach(10, False)}, "amortised", "seconds", 4)
    assert not first[0].reached
    early = totals(MAE, {0: Reach(10, True, early=True)}, "fine-tuning", "steps", 4)
    assert early[0].early


def test_each_seed_pays_for_its_own_pretraining() -> None:
    dear = Spending({0: ONCE, 1: Cost(300, 3000.0, 60.0)}, {0: STEP, 1: STEP})
    found = totals(dear, FAST, "with pretraining", "steps", 4)
    assert {seed: reach.cost for seed, reach in found.items()} == {0: 110, 1: 320}


def test_an_unknown_pretraining_is_not_free() -> None:
    unknown = Spending({}, {0: STEP, 1: STEP})
    assert totals(unknown, FAST, "with pretraining", "flops", 4) == {}
    assert totals(unknown, FAST, "amortised", "flops", 4) == {}
    assert totals(unknown, FAST, "fine-tuning", "steps", 4)[1].cost == 20


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="ledger"):
        totals(MAE, FAST, "free", "steps", 1)
    with pytest.raises(ValueError, match="unit"):
        STEP.of("euros")
    with pytest.raises(ValueError, match="negative"):
        Cost(-1)
    with pytest.raises(ValueError, match="no step"):
        Cost().per_step()
    assert Cost(10, 50, 1).per_step() == Cost(1, 5, 0.1)
