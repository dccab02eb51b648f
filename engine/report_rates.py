"""The report's table of the rates that were tried: one grid for every arm, and what it chose."""

from collections.abc import Sequence
from typing import Any

from mim3d.engine.curves import Curve, area_under
from mim3d.engine.report_tables import Table
from mim3d.engine.study_results import Study
from mim3d.engine.verdict import arm_name

Rates = tuple[float, float]
"""Rate of the head, and the encoder's over it."""


def rates_table(study: Study) -> Table | None:
    """Mean area under the validation curve of each rate by decoder and arm, the chosen marked."""
    areas = tuned_areas(study)
    if not areas:
        return None
    grid = sorted({rates for by_rates in areas.values() for rates in by_rates})
    rows = []
    for (head, arm), by_rates in areas.items():
        best = max(by_rates, key=lambda rates: by_rates[rates])
        cells = [
            "–" if rates not in by_rates else f"{by_rates[rates]:.3f}" + " ●" * (rates == best)
            for rates in grid
        ]
        rows.append((f"{arm_name(arm)}, {head} decoder", *cells))
    header = ("arm", *(f"{lr:g}\nencoder × {scale:g}" for lr, scale in grid))
    seeds = sorted({row["seed"] for row in study.rows if row.get("tuning")})
    note = (
        "Area under the validation curve by learning rate and the encoder's share of it, mean of "
        f"tuning seeds {', '.join(map(str, seeds))}, which are not scored; ● was taken."
    )
    return Table("The same grid of rates for every arm", header, tuple(rows), note)


def tuned_areas(study: Study) -> dict[tuple[str, str], dict[Rates, float]]:
    """By decoder and arm, the mean area of each pair of rates over the tuning seeds."""
    curves: dict[tuple[str, str], dict[Rates, dict[int, list[dict[str, Any]]]]] = {}
    for row in study.rows:
        if row.get("tuning") and row["split"] == "validation" and row["score"] is not None:
            rates = row["lr"], row.get("encoder_lr_scale", 1.0)
            by_seed = curves.setdefault((row["head"], row["arm"]), {}).setdefault(rates, {})
            by_seed.setdefault(row["seed"], []).append(row)
    return {
        key: {rates: mean_area(list(by_seed.values())) for rates, by_seed in by_rates.items()}
        for key, by_rates in curves.items()
    }


def mean_area(curves: Sequence[Sequence[dict[str, Any]]]) -> float:
    """Mean area under the curves of several seeds."""
    areas = [
        area_under(Curve(tuple(row["step"] for row in rows), tuple(row["score"] for row in rows)))
        for rows in curves
    ]
    return sum(areas) / len(areas)
