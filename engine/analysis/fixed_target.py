"""A target score that no scored run had a part in: from the seeds that tuned the rates."""

from collections.abc import Mapping
from statistics import fmean

from mim3d.engine.analysis.results import Group, Study, group_of
from mim3d.engine.study.curves import Curve, area_under, best_trained, smooth

Rates = tuple[float, float]
"""Rate of the head, and the encoder's over it."""


def fixed_target(study: Study, group: Group, arm: str, share: float, window: int) -> float | None:
    """`share` of the best score of `arm` over the tuning seeds at the rates they chose.

    Smoothed as scored runs are, mean over the tuning seeds, rounded to 0.01. None where no tuning
    run has the group's decoder, labels and variant.
    """
    tuned = tuning_curves(study, group, arm)
    if not tuned:
        return None
    chosen = max(tuned.values(), key=lambda curves: fmean(map(area_under, curves.values())))
    top = fmean(best_trained(smooth(curve, window)) for curve in chosen.values())
    return round(share * top, 2)


def tuning_curves(study: Study, group: Group, arm: str) -> Mapping[Rates, Mapping[int, Curve]]:
    """Validation curves of an arm's tuning runs in a group, by rates and seed."""
    points: dict[Rates, dict[int, dict[float, float]]] = {}
    for row in study.rows:
        if not row.get("tuning") or row["split"] != "validation" or row["score"] is None:
            continue
        if row["arm"] == arm and group_of(row) == group:
            by_seed = points.setdefault((row["lr"], row.get("encoder_lr_scale", 1.0)), {})
            by_seed.setdefault(row["seed"], {})[float(row["step"])] = row["score"]
    return {
        rates: {
            seed: Curve(tuple(sorted(table)), tuple(table[step] for step in sorted(table)))
            for seed, table in by_seed.items()
        }
        for rates, by_seed in points.items()
    }
