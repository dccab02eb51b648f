"""Whether a pretext was learned: its loss against what predictors without knowledge come to."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mim3d.engine.models.objective import channel_name

LAST_SHARE = 0.2
"""Rows of the last fifth of a run decide."""
CLEARLY = 0.95
"""A loss clearly beats another below this share of it."""
ROUNDING = 1e-4
"""A mean of equal numbers is off by less, of a loss that is no rounding."""
PREFIX = "held_out_"
"""Begins the names of what was scored on held-out subjects."""
BASELINES = ("patch_mean", "nearest_patch", "chance")


def judge_pretext(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean loss over the last rows, that of each trivial predictor, and the verdict.

    `learned` is true where the loss is below CLEARLY times the patch mean's (MAE, SimMIM) or
    chance (NT-Xent at ln(2b - 1)), and no channel of several is `behind`: predicted no better than
    by its own patch mean. `nearest_patch` is reported, not asked for, because on smooth images it
    can be worse than the mean.

    Where the last rows are of steps in which nothing counted, the last row before them that tells
    of a trivial predictor stands for them. Where the crops of all of them are constant
    there is no verdict: `constant` is true, and `floor` None. Where those of some are,
    `constant_rows` counts them; they stay in the means, for a row's loss is that of all steps since
    the row before, its predictors' losses are those of one step, and only both with their share
    of constant crops can be compared.
    """
    fifth = rows[-max(1, round(LAST_SHARE * len(rows))) :]
    last = [row for row in fifth if has_loss(row)]
    if fifth and all(row.get("counted") == 0 for row in fifth):
        last = [row for row in rows if has_loss(row) and has_baseline(row)][-1:] or last
    if not last:
        return {"loss": None, "learned": False}
    figures: dict[str, float | None] = {"loss": mean_of(last, "loss"), "rows": len(last)}
    for name in (*BASELINES, *channel_names(last[-1])):
        if any(row.get(name) is not None for row in last):
            figures[name] = mean_of(last, name)
        elif name not in BASELINES:
            figures[name] = None
    verdict = judge(figures)
    gate = verdict.get("patch_mean", verdict.get("chance"))
    verdict["floor"] = None if verdict.get("constant") else gate
    if constant := sum(map(is_constant, last)):
        verdict["constant_rows"] = constant
    if PREFIX + "loss" in rows[-1]:
        verdict["held_out"] = judge_held_out(rows[-1])
    return verdict


def judge_held_out(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same verdict for subjects that did not train, from one row."""
    scores = {name.removeprefix(PREFIX): v for name, v in row.items() if name.startswith(PREFIX)}
    names = ("loss", *BASELINES, *channel_names(scores))
    return judge({name: scores[name] for name in names if name in scores})


def judge(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures, those of channels by channel, with the verdict on them."""
    verdict = {name: value for name, value in figures.items() if "_channel_" not in name}
    gate = verdict.get("patch_mean", verdict.get("chance"))
    if is_constant(verdict):
        verdict["constant"], gate = True, None
    verdict["loss_over_floor"] = None if not gate else verdict["loss"] / gate
    learned = bool(gate) and verdict["loss"] < CLEARLY * gate
    channels = [
        {name: figures.get(channel_name(name, i)) for name in ("loss", "patch_mean")}
        for i in range(sum(name.startswith("loss_channel_") for name in figures))
    ]
    if channels:
        verdict["channels"] = channels
        verdict["behind"] = [i for i, each in enumerate(channels) if is_behind(**each)]
    verdict["learned"] = learned and not verdict.get("behind")
    return verdict


def channel_names(row: Mapping[str, Any]) -> list[str]:
    """Names in a row of the figures of single channels that a verdict is about."""
    wanted = ("loss_channel_", "patch_mean_channel_")
    return [name for name in row if name.startswith(wanted)]


def is_behind(loss: float | None, patch_mean: float | None) -> bool:
    """Whether a channel is predicted no better than by its own patch mean.

    Where that is right everywhere the channel is one that all crops lack: nothing is asked of it.
    """
    if loss is None or patch_mean is None:
        return True
    return patch_mean > 0 and loss >= patch_mean


def is_constant(figures: Mapping[str, Any]) -> bool:
    """Whether each patch's mean is right everywhere: the crops are one value, nothing is asked.

    The nearest patch is then right to the bit, and a mean but for its rounding.
    """
    mean, loss = figures.get("patch_mean"), figures.get("loss")
    if mean is None or loss is None:
        return False
    return mean == 0 or (figures.get("nearest_patch") == 0 and mean < ROUNDING * loss)


def has_baseline(row: Mapping[str, Any]) -> bool:
    """Whether a row tells of a trivial predictor."""
    return any(row.get(name) is not None for name in BASELINES)


def has_loss(row: Mapping[str, Any]) -> bool:
    """Whether a row's loss is a number: one bad step, which changes no weights, makes it none."""
    loss = row.get("loss")
    return loss is not None and math.isfinite(loss)


def mean_of(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """Mean of a value over rows that have it; null stands for what was not finite."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values)
