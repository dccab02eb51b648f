"""The three ledgers by hand."""

import pytest

from mim3d.engine.curves import Reach
from mim3d.engine.ledger import Cost, Spending, ledger_ratio, totals

STEP = Cost(1, 5.0, 0.1)
MAE = Spending(Cost(100, 1000.0, 20.0), {0: STEP, 1: STEP})
SCRATCH = Spending(Cost(), {0: STEP, 1: STEP})
FAST = {0: Reach(10, True), 1: Reach(20, True)}
SLOW = {0: Reach(40, True), 1: Reach(80, True)}


def test_fine_tuning_alone_is_the_ratio_of_steps() -> None:
    for unit in ("steps", "flops", "seconds"):
        first = totals(MAE, FAST, "fine-tuning", unit, 10)
        second = totals(SCRATCH, SLOW, "fine-tuning", unit, 10)
        assert ledger_ratio(first, second).ratio == pytest.approx(4.0)


def test_pretraining_turns_a_speedup_into_a_slowdown() -> None:
    first = totals(MAE, FAST, "with pretraining", "steps", 10)
    second = totals(SCRATCH, SLOW, "with pretraining", "steps", 10)
    assert {seed: reach.cost for seed, reach in first.items()} == {0: 110, 1: 120}
    ratio = ledger_ratio(first, second).ratio
    assert ratio == pytest.approx(((40 / 110) * (80 / 120)) ** 0.5)


def test_amortised_shares_the_pretraining() -> None:
    first = totals(MAE, FAST, "amortised", "flops", 4)
    assert first[0].cost == pytest.approx(1000 / 4 + 10 * 5)


def test_censoring_survives_the_ledger() -> None:
    first = totals(MAE, {0: Reach(10, False)}, "amortised", "seconds", 4)
    assert not first[0].reached


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
