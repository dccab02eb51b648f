"""Whether a run learned its pretext task: its loss against predictors that know nothing."""

import math
from collections.abc import Sequence
from typing import Any

LAST_SHARE = 0.2
"""Rows of the last fifth of a run decide."""
CLEARLY = 0.95
"""A loss clearly beats another below this share of it."""
PREFIX = "held_out_"
"""Begins the names of what was scored on held-out subjects."""
FLOORS = ("patch_mean", "nearest_patch", "chance")


def judge_pretext(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean loss over the last rows, that of each trivial predictor, and the verdict.

    `learned` is true where the loss is below CLEARLY times the patch mean's (MAE, SimMIM) or
    chance (NT-Xent at ln(2b - 1)); `nearest_patch` is reported, not asked for, because on
    smooth images it can be worse than the mean.
    """
    last = [row for row in rows[-max(1, round(LAST_SHARE * len(rows))) :] if has_loss(row)]
    if not last:
        return {"loss": None, "learned": False}
    verdict: dict[str, Any] = {"loss": mean_of(last, "loss"), "rows": len(last)}
    for name in FLOORS:
        if any(row.get(name) is not None for row in last):
            verdict[name] = mean_of(last, name)
    gate = verdict.get("patch_mean", verdict.get("chance"))
    verdict["floor"] = gate
    verdict["loss_over_floor"] = None if not gate else verdict["loss"] / gate
    verdict["learned"] = bool(gate) and verdict["loss"] < CLEARLY * gate
    if PREFIX + "loss" in rows[-1]:
        verdict["held_out"] = judge_held_out(rows[-1])
    return verdict


def judge_held_out(row: dict[str, Any]) -> dict[str, Any]:
    """The same verdict for subjects that did not train, from one row."""
    verdict = {name: row[PREFIX + name] for name in ("loss", *FLOORS) if PREFIX + name in row}
    gate = verdict.get("patch_mean", verdict.get("chance"))
    verdict["loss_over_floor"] = None if not gate else verdict["loss"] / gate
    verdict["learned"] = bool(gate) and verdict["loss"] < CLEARLY * gate
    return verdict


def has_loss(row: dict[str, Any]) -> bool:
    """Whether a row's loss is a number: one bad step, which changes no weights, makes it none."""
    loss = row.get("loss")
    return loss is not None and math.isfinite(loss)


def mean_of(rows: Sequence[dict[str, Any]], name: str) -> float:
    """Mean of a value over rows that have it; null stands for what was not finite."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values)
