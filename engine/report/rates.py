"""What each arm was tuned by: settings of its pretext task, and one grid of rates for every arm."""

from collections.abc import Sequence
from typing import Any

from mim3d.engine.analysis.results import Study, decoder_name
from mim3d.engine.analysis.words import arm_name, on_encoder
from mim3d.engine.report.section import Content, Section, Table
from mim3d.engine.study.config import labels_in_words
from mim3d.engine.study.curves import Curve, area_under
from mim3d.engine.study.encoders import SCRATCH

Rates = tuple[float, float]
"""Rate of the head, and the encoder's over it."""


def rates_sections(content: Content) -> list[Section]:
    """How much each arm was tuned, and the grid where rates were chosen from one."""
    tables = [effort_table(content.study), rates_table(content.study)]
    found = tuple(table for table in tables if table is not None)
    return [Section("Tuning", found)] if found else []


def effort_table(study: Study) -> Table | None:
    """Settings that each arm was tried with; None of an ablation, which is about settings."""
    if study.about.get("ablation"):
        return None
    search, rates = study.about.get("search", {}), tried_rates(study)
    rows = []
    for arm in dict.fromkeys(arm for group in study.groups() for arm in study.arms(group)):
        known = search.get(arm.removesuffix("-flops"), {})
        pretext = (
            (f"{known['settings']}", f"{known['crops']:,}") if known else ("not recorded", "–")
        )
        if arm == SCRATCH:
            pretext = ("–", "–")
        rows.append((arm_name(arm), *pretext, str(max(len(rates.get(arm, ())), 1))))
    header = ("arm", "settings of\nthe pretext task", "crops of each", "rates of\nfine-tuning")
    note = (
        "How many settings each arm was tried with before its scored runs, on seeds that are not "
        "scored. Arms that were tuned unequally differ by that too."
    )
    return Table("How much each arm was tuned", header, tuple(rows), note)


def tried_rates(study: Study) -> dict[str, set[Rates]]:
    """By arm, the pairs of rates of its tuning runs."""
    found: dict[str, set[Rates]] = {}
    for row in study.rows:
        if row.get("tuning"):
            found.setdefault(row["arm"], set()).add((row["lr"], row.get("encoder_lr_scale", 1.0)))
    return found


def unequal_tuning(study: Study) -> list[str]:
    """What is not equal, or not known, of how much the arms were tuned."""
    arms = {p["arm"].removesuffix("-flops") for p in study.pretraining}
    search = study.about.get("search", {})
    missing = sorted(arms - search.keys())
    found = []
    if missing:
        names = ", ".join(map(arm_name, missing))
        found.append(
            f"How many settings of the pretext task were tried is not recorded of {names}: an arm "
            "that was tuned less may be slower for that alone."
        )
    counts = {arm: (search[arm]["settings"], search[arm]["crops"]) for arm in arms - {*missing}}
    if len(set(counts.values())) > 1:
        words = ", ".join(
            f"{arm_name(a)} {n} of {c:,} crops" for a, (n, c) in sorted(counts.items())
        )
        found.append(f"The pretext tasks were not tuned equally: {words}.")
    rates = {arm: len(own) for arm, own in tried_rates(study).items()}
    if len(set(rates.values())) > 1:
        words = ", ".join(f"{arm_name(arm)} {number}" for arm, number in rates.items())
        found.append(f"The arms were not fine-tuned with equally many rates: {words}.")
    return found


def one_choice(study: Study) -> list[str]:
    """Choices that rest on one seed, or that were made for all runs alike without a search."""
    found = []
    searches = study.about.get("search", {}).values()
    seeds = {seed for search in searches for seed in search.get("seeds", ())}
    if len(seeds) == 1:
        found.append(
            "Pretext settings were chosen with one seed: a choice between close settings is one of "
            "chance."
        )
    rates = {(row["lr"], row.get("encoder_lr_scale", 1.0)) for row in study.scored}
    if not tried_rates(study) and len(rates) == 1:
        ((lr, scale),) = rates
        which = "setting" if study.about.get("ablation") else "arm"
        found.append(
            f"All runs fine-tune at one rate ({lr:g}, the encoder at {scale:g} of it), which no "
            f"search chose: it may suit one {which} better than another."
        )
    return found


def rates_table(study: Study) -> Table | None:
    """Mean area under the validation curve of each rate by decoder and arm, the chosen marked."""
    areas = tuned_areas(study)
    if not areas:
        return None
    grid = sorted({rates for by_rates in areas.values() for rates in by_rates})
    chosen = {
        key: max(by_rates, key=lambda rates: by_rates[rates]) for key, by_rates in areas.items()
    }
    rows = []
    for key, by_rates in areas.items():
        cells = [
            "–"
            if rates not in by_rates
            else f"{by_rates[rates]:.3f}" + " ●" * (rates == chosen[key])
            for rates in grid
        ]
        encoder, head, arm = key
        rows.append((f"{arm_name(arm)}{on_encoder(encoder)}, {decoder_name(head)}", *cells))
    header = ("arm", *(f"{lr:g}\nencoder × {scale:g}" for lr, scale in grid))
    seeds = sorted({row["seed"] for row in study.rows if row.get("tuning")})
    note = (
        "Area under the validation curve by learning rate and the encoder's share of it, mean of "
        f"tuning seeds {', '.join(map(str, seeds))}, which are not scored; ● was taken."
    )
    doubts = [*edge_notes(grid, list(chosen.values())), *tuning_notes(study, seeds)]
    return Table(
        "The same grid of rates for every arm", header, tuple(rows), " ".join([note, *doubts])
    )


def edge_notes(grid: Sequence[Rates], chosen: Sequence[Rates]) -> list[str]:
    """Where the choice lies at an end of the grid, beyond which a better rate may lie."""
    found = []
    for axis, what in enumerate(("learning rate", "share of the encoder")):
        values = [rates[axis] for rates in grid]
        if min(values) == max(values):
            continue
        for end, word in ((max(values), "largest"), (min(values), "smallest")):
            hits = sum(rates[axis] == end for rates in chosen)
            if hits:
                found.append(f"the {word} {what} ({end:g}) in {hits} of {len(chosen)} rows")
    if not found:
        return []
    return [f"Taken at the edge of the grid: {'; '.join(found)}. Rates beyond it might do better."]


def tuning_notes(study: Study, seeds: Sequence[int]) -> list[str]:
    """What one tuning seed, and rates tuned with one number of labels, cannot show."""
    found = []
    if len(seeds) == 1:
        found.append("One tuning seed: a choice between close rates is one of chance.")
    tuned = {row["labels"] for row in study.rows if row.get("tuning")}
    scored = dict.fromkeys(row["labels"] for row in study.scored)
    reused = [in_words(labels) for labels in scored if labels not in tuned]
    if reused:
        found.append(
            f"Tuned with {', '.join(map(in_words, sorted(tuned)))}; the same rates serve "
            f"{', '.join(reused)}, which may want others."
        )
    return found


def in_words(labels: float) -> str:
    """`all labels`, `8 labelled subjects`."""
    return "all labels" if labels == 1 else labels_in_words(labels)


def tuned_areas(study: Study) -> dict[tuple[str, str, str], dict[Rates, float]]:
    """By encoder, decoder and arm, the mean area of each pair of rates over the tuning seeds."""
    curves: dict[tuple[str, str, str], dict[Rates, dict[int, list[dict[str, Any]]]]] = {}
    for row in study.rows:
        if row.get("tuning") and row["split"] == "validation" and row["score"] is not None:
            rates = row["lr"], row.get("encoder_lr_scale", 1.0)
            key = row.get("encoder", ""), row["head"], row["arm"]
            by_seed = curves.setdefault(key, {}).setdefault(rates, {})
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
