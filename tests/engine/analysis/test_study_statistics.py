"""What a study's statistics answer where the truth is known: null studies, gates, lost runs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_study import BUDGET, own_pretrainings, rows_of, write_study

from mim3d.engine.analysis.description import secondary_statements
from mim3d.engine.analysis.results import Group, Study
from mim3d.engine.analysis.summary import GroupSummary, make_targets, summarise
from mim3d.engine.analysis.verdict import fixed_beforehand, gate_statements, headline
from mim3d.engine.analysis.words import median_reach
from mim3d.engine.errors import DivergedError
from mim3d.engine.finetune.run_folder import RESULT
from mim3d.engine.report.cost import ledger_table
from mim3d.engine.report.finetuning import reaches_chart, reaches_table
from mim3d.engine.report.limits import limits
from mim3d.engine.report.plots import Plotter
from mim3d.engine.report.rates import rates_table
from mim3d.engine.report.report import build_report
from mim3d.engine.report.speedup import overview_table, ratios_chart, speedup_table
from mim3d.engine.runs.files import read_json, read_jsonl, write_json, write_jsonl
from mim3d.engine.study.config import PLAN, StudyConfig, Variant
from mim3d.engine.study.curves import Curve, Reach
from mim3d.engine.study.gather import asked_first, failed_rows, headline_settings
from mim3d.engine.study.plan import Cell

WHOLE = Group("unetr", 1.0, "")


def edited(folder: Path, **about: Any) -> tuple[Study, list[GroupSummary]]:
    """The study in `folder` with fields of study.json replaced."""
    write_json(folder / "study.json", read_json(folder / "study.json") | about)
    study = Study.load(folder)
    return study, summarise(study)


def drop(folder: Path, arm: str, *seeds: int) -> None:
    """Remove the rows of some seeds of an arm."""
    rows = read_jsonl(folder / "results.jsonl")
    kept = [row for row in rows if row["arm"] != arm or row["seed"] not in seeds]
    write_jsonl(folder / "results.jsonl", kept)


def lost(arm: str, seed: int, diverged: bool) -> dict[str, Any]:
    """A row of `failed` in study.json."""
    return {
        "arm": arm,
        "variant": "",
        "head": "unetr",
        "labels": 1.0,
        "seed": seed,
        "tuning": False,
        "error": "the loss is nan at step 7: lower schedule.lr",
        "diverged": diverged,
    }


def reference(start: float, *heights: float) -> dict[int, Curve]:
    values = (start, *heights)
    return {0: Curve(tuple(20.0 * i for i in range(len(values))), values)}


def test_targets_within_the_untrained_score_are_refused() -> None:
    flat = make_targets(reference(0.047, 0.0, 0.002), (0.8, 0.9), base=0.047)
    assert all("0.047 of an untrained model" in target.refused for target in flat)
    guesser = make_targets(reference(0.5, 0.45, 0.52), (0.8, 0.9, 0.95), base=0.5)
    assert all(target.refused for target in guesser)
    learned = make_targets(reference(0.5, 0.6, 0.7), (0.7, 0.8, 0.9), base=0.5)
    assert [bool(target.refused) for target in learned] == [True, False, False]
    assert learned[2].score == pytest.approx(0.63)
    assert "no scores" in make_targets({}, (0.9,), 0.0)[0].refused


def test_a_study_that_learned_nothing_states_no_speedup(tmp_path: Path) -> None:
    folder = write_study(tmp_path, tops=dict.fromkeys(("scratch", "simclr", "mae"), 0.01))
    study, groups = edited(own_pretrainings(folder, 5))
    said = headline(study, groups)
    assert said.kind == "warning"
    assert said.text == "No speed-up of MAE over SimCLR can be stated."
    assert "of an untrained model" in said.detail
    assert {cell for row in reaches_table(groups[0]).rows for cell in row[1:4]} == {"–"}
    assert reaches_chart(study, groups[0], 0, Plotter(tmp_path / "figures")) is None
    assert "is no target" in build_report(folder).read_text()


def test_chance_is_known_of_a_classification(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=1)
    group = Group("classify", 1.0, "")
    assert Study.load(folder).chance(WHOLE) == 0.0
    assert Study.load(folder).chance(group) == 0.5
    case = {"head": "classify", "labels": 1.0, "variant": "", "probabilities": [0.2, 0.3, 0.5]}
    write_jsonl(folder / "cases.jsonl", [case])
    assert Study.load(folder).chance(group) == pytest.approx(1 / 3)


def test_a_diverged_run_never_reaches_and_is_not_dropped(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=6)
    drop(folder, "mae", 0)
    study, groups = edited(folder, failed=[lost("mae", 0, diverged=True)])
    found = groups[0].comparison("mae", "simclr")
    assert found is not None
    at = found.at[0.9]
    assert (at.pairs, at.bound, at.first_reached) == (6, "at most", 5)
    assert headline(study, groups).kind == "neutral"
    mae = next(row for row in reaches_table(groups[0]).rows if row[0] == "MAE")
    assert mae[2].endswith("(5/6)")
    assert "5/6 seeds" in speedup_table(groups[0]).rows[0][2]
    said = [s.whole for s in secondary_statements(study, groups)]
    assert any("MAE" in s and "Seed 0 diverged" in s for s in said)
    assert any("Final Dice" in s and "5 of 6 seeds" in s for s in said)
    assert build_report(folder).exists()


def test_a_rival_that_diverged_counts_against_the_rival(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=6)
    drop(folder, "simclr", 0)
    study, groups = edited(folder, failed=[lost("simclr", 0, diverged=True)])
    said = headline(study, groups)
    assert said.kind == "finding"
    assert "at least" in said.text
    assert "p ≤" in said.detail or "p < 0.001" in said.detail


def test_an_arm_whose_runs_all_diverged_is_shown(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    drop(folder, "mae", *range(5))
    study, groups = edited(folder, failed=[lost("mae", seed, diverged=True) for seed in range(5)])
    mae = next(row for row in reaches_table(groups[0]).rows if row[0] == "MAE")
    assert mae[2] == f"> {BUDGET} (0/5)"
    assert headline(study, groups).kind in ("warning", "neutral")
    assert build_report(folder).exists()


def test_a_study_that_is_not_finished_is_interim(tmp_path: Path) -> None:
    """Stopped after six of eight seeds; a seed that failed is not waited for."""
    folder = write_study(tmp_path, seeds=6, config={"seeds": list(range(8))})
    study = Study.load(folder)
    found = headline(study, summarise(study))
    assert " converged 1.49× as fast as " in found.text
    assert found.kind == "neutral"
    assert found.text.endswith(" so far.")
    assert "every figure is interim: no interval or p is corrected" in found.detail
    lost = [
        {**row, "seed": seed, "error": "out of memory", "diverged": False}
        for row in study.rows
        if row["seed"] == 0 and row["step"] == 0
        for seed in (6, 7)
    ]
    ended = replace(study, about=study.about | {"failed": lost})
    found = headline(ended, summarise(ended))
    assert found.kind == "finding"
    assert "interim" not in found.detail


def test_runs_that_are_missing_are_told(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=6)
    drop(folder, "mae", 0)
    study, groups = edited(folder, failed=[lost("mae", 0, diverged=False)])
    assert "5 of 6 seeds" in headline(study, groups).detail
    assert any("Seed 0 failed" in s.detail for s in secondary_statements(study, groups))
    asked, whole = edited(folder, config={"seeds": list(range(8))}, failed=[])
    assert "5 of 8 seeds" in headline(asked, whole).detail
    assert "5/5 seeds of 8 planned" in speedup_table(whole[0]).rows[0][2]
    said = [s.detail for s in secondary_statements(asked, whole)]
    assert "Seeds 0, 6, 7 not run so far, which no figure counts." in said


def per_seed(folder: Path, untrained: Mapping[str, int]) -> None:
    """Pretrain every arm once per seed, a tuning seed first; `untrained` names what failed."""
    entries = []
    for entry in read_json(folder / "pretraining.json"):
        for seed in (100, 0, 1, 2, 3, 4):
            failed = untrained.get(entry["arm"]) == seed
            steps = 100 * (seed + 1)
            entries.append({**entry, "seed": seed, "trained": not failed, "steps": steps})
    write_json(folder / "pretraining.json", entries)


def test_the_gate_looks_at_the_pretraining_of_every_scored_seed(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    per_seed(folder, {"simclr": 3, "mae": 100})
    study, groups = edited(folder)
    assert groups[0].untrained == ("simclr",)
    assert groups[0].comparison("mae", "simclr") is None
    assert groups[0].comparison("mae", "scratch") is not None
    said = [s.text for s in gate_statements(study)]
    assert "SimCLR, seed 3, did not learn its pretext task, so SimCLR is not compared." in said


def test_an_arm_counts_with_the_few_seeds_that_learned_nothing(tmp_path: Path) -> None:
    """One of ten: no seed is dropped for what became of it. Of two the arm is not compared."""
    folder = write_study(tmp_path, seeds=10)
    learned = read_json(folder / "pretraining.json")
    entries = [{**entry, "seed": seed} for entry in learned for seed in range(10)]

    def failing(*seeds: int) -> tuple[Study, list[GroupSummary], list[str]]:
        failed = [e | {"trained": e["arm"] != "mae" or e["seed"] not in seeds} for e in entries]
        write_json(folder / "pretraining.json", failed)
        study, groups = edited(folder)
        return study, groups, [s.whole for s in gate_statements(study) if s.kind == "warning"]

    study, groups, (said,) = failing(3)
    found = groups[0].comparison("mae", "simclr")
    assert found is not None
    assert found.at[0.9].pairs == 10
    assert "MAE, seed 3, did not learn its pretext task." in said
    assert "MAE is compared with all its seeds: of those that are scored no more than 10 %" in said
    counted = "Of MAE's pretrainings seed 3 did not learn the pretext task, and counts all the same"
    assert counted in headline(study, groups).detail

    study, groups, said = failing(3, 4)
    assert groups[0].comparison("mae", "simclr") is None
    assert [line.count("so MAE is not compared") for line in said] == [1, 1]

    edited(folder, config={"seeds": list(range(20))})  # of twenty two may
    study, groups, _ = failing(3, 4)
    counted = "MAE's pretrainings seeds 3, 4 did not learn the pretext task, and count all the same"
    assert counted in headline(study, groups).detail


def test_the_gate_names_the_channels_that_were_not_learned(tmp_path: Path) -> None:
    """Their loss as a whole is far below the patch mean's, which would else look like a mistake."""
    folder = write_study(tmp_path)
    entries = read_json(folder / "pretraining.json")
    for entry in entries:
        if entry["arm"] == "mae":
            entry |= {"trained": False, "loss": 0.5, "floor": 1.0, "behind": [1, 2]}
    write_json(folder / "pretraining.json", entries)
    study, _ = edited(folder)
    said = [s.whole for s in gate_statements(study) if s.text.startswith("MAE")]
    assert any(
        "Channels 1, 2 (from 0) predicted no better than by each patch's own mean." in line
        for line in said
    )


def test_each_seed_pays_for_its_own_pretraining(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    per_seed(folder, {})
    spending = Study.load(folder).spending(WHOLE, "mae")
    assert {seed: cost.steps for seed, cost in spending.pretraining.items()} == {
        seed: 100 * (seed + 1) for seed in range(5)
    }


def test_an_unknown_cost_gives_a_dash(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    entries = read_json(folder / "pretraining.json")
    write_json(
        folder / "pretraining.json",
        [{**p, "crops": 0, "steps": 0} if p["arm"] == "mae" else p for p in entries],
    )
    study, groups = edited(folder)
    rows = ledger_table(study, groups[0]).rows
    assert rows[0][2] != "–"
    assert rows[1][2:] == rows[2][2:] == ("–", "–", "–")


def test_the_headline_takes_equal_crops_and_corrects_for_its_choice(tmp_path: Path) -> None:
    speeds = {"scratch": 1.0, "simclr": 1.3, "simclr-flops": 0.8, "mae": 1.5, "simmim": 1.4}
    folder = write_study(tmp_path, seeds=6, speeds=speeds)
    study, groups = edited(own_pretrainings(folder, 6))
    said = headline(study, groups)
    assert "as fast as SimCLR." in said.text
    assert "by Holm as one of 2 masked arms" in said.detail
    assert "SimMIM: 1." in said.detail
    found = [s.text for s in secondary_statements(study, groups)]
    assert any("MAE" in text and "SimCLR (equal FLOPs)" in text for text in found)
    # SimMIM saw more crops than SimCLR could for MAE's FLOPs: that pair matches in nothing.
    assert not any("SimMIM" in text and "SimCLR (equal FLOPs)" in text for text in found)
    only = {name: speed for name, speed in speeds.items() if name != "simclr"}
    flops = headline(*edited(write_study(tmp_path / "flops", seeds=6, speeds=only)))
    assert "SimCLR (equal FLOPs)" in flops.text


def test_a_choice_among_arms_can_undo_significance(tmp_path: Path) -> None:
    folder = write_study(tmp_path, speeds={"scratch": 1.0, "simclr": 1.0, "mae": 1.0})
    factors = (1.03, 1.06, 1.09, 1.16, 1.21)
    costs = {
        "scratch": (100.0,) * 5,
        "simclr": (100.0,) * 5,
        "mae": tuple(100.0 / f for f in factors),
        "simmim": (99.0, 101.0, 100.0, 102.0, 98.0),
    }
    rows = [
        row
        for arm, of_seed in costs.items()
        for s, c in enumerate(of_seed)
        for row in ramp(arm, s, c)
    ]
    write_jsonl(folder / "results.jsonl", rows)
    study, groups = edited(folder)
    found = groups[0].comparison("mae", "simclr")
    assert found is not None
    assert found.at[0.9].above_one
    said = headline(study, groups)
    assert said.kind == "neutral"
    assert "too little for the better of 2 masked arms" in said.detail


def ramp(arm: str, seed: int, cost: float) -> list[dict[str, Any]]:
    """Rows of a curve that rises in a line to 0.8 at 1.2 `cost` and stays."""
    rows = rows_of(arm, seed, 1.0)
    return [
        {**row, "score": min(0.8, 0.8 * row["step"] / (1.2 * cost))}
        if row["split"] == "validation"
        else row
        for row in rows
    ]


def test_a_rival_without_a_ratio_is_not_called_worse(tmp_path: Path) -> None:
    speeds = {"scratch": 1.0, "simclr": 1.0, "mae": 1.1, "simmim": 1.5}
    folder = write_study(tmp_path, speeds=speeds)
    rows = read_jsonl(folder / "results.jsonl")
    for row in rows:
        if row["arm"] == "simmim" and row["seed"] == 0:
            row["score"] *= 0.5
    for row in rows:
        if row["arm"] == "simclr" and row["seed"] == 1:
            row["score"] *= 0.5
    write_jsonl(folder / "results.jsonl", rows)
    said = headline(*edited(folder))
    assert "This SimMIM encoder: no ratio (no single ratio" in said.detail
    assert "better of" not in said.detail


def test_what_was_fixed_beforehand_is_claimed_only_where_it_is_on_file(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    study, groups = edited(folder)
    assert "Nothing in these results shows" in fixed_beforehand(study)
    first = headline_settings(study.about["settings"], study.about["config"])
    kept, _ = edited(folder, asked_first=first)
    assert "on file before the first run" in fixed_beforehand(kept)
    changed, groups = edited(folder, settings={**study.about["settings"], "primary": 0.8})
    assert "primary from 0.9 to 0.8" in fixed_beforehand(changed)
    assert fixed_beforehand(changed) in limits(changed, groups)


def test_no_correction_is_claimed_where_no_comparison_is_named(tmp_path: Path) -> None:
    config = {"seeds": 5, "heads": ["unetr"], "labels": [1.0]}
    known = {"targets": [0.8, 0.9, 0.95], "primary": 0.9, "smoothing": 3}
    first = headline_settings(known, config)
    write_study(tmp_path, speeds={"scratch": 1.0}, config=config, asked_first=first)
    said = fixed_beforehand(Study.load(tmp_path))
    assert "on file before the first run; its arms name no comparison" in said
    assert "its p" not in said


def test_a_given_encoder_is_the_same_in_every_variant(tmp_path: Path) -> None:
    """One that learned nothing is compared nowhere, and its cost is nowhere taken for scratch's."""
    write_study(tmp_path, speeds={"scratch": 1.0, "mae": 1.5})
    sizes = ("crop 16", "crop 24")
    rows = [
        row
        for size in sizes
        for seed in range(5)
        for arm in ("scratch", "mine")
        for row in rows_of(arm, seed, 1.0, variant=size)
    ]
    write_jsonl(tmp_path / "results.jsonl", rows)
    (entry,) = read_json(tmp_path / "pretraining.json")
    given = entry | {"arm": "mine", "given": "runs/mine", "trained": False}
    write_json(tmp_path / "pretraining.json", [given])
    study, groups = edited(tmp_path, arms=["scratch", "mine"])
    assert [group.untrained for group in groups] == [("mine",), ("mine",)]
    assert not any(group.comparisons for group in groups)
    for size in sizes:
        cost = study.pretraining_cost(Group("unetr", 1.0, size), "mine", 0)
        assert cost is not None
        assert cost.flops == entry["flops"]


def test_an_arm_without_any_score_still_makes_a_page(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=2)
    rows = read_jsonl(folder / "results.jsonl")
    for arms in ({"mae"}, {"mae", "scratch"}, {"mae", "scratch", "simclr"}):
        blank = [{**row, "score": None} if row["arm"] in arms else row for row in rows]
        write_jsonl(folder / "results.jsonl", blank)
        assert build_report(folder).exists()
        study, groups = edited(folder)
        assert headline(study, groups).kind in ("warning", "neutral")


def test_bounds_are_drawn_and_told(tmp_path: Path) -> None:
    folder = write_study(tmp_path, tops={"simclr": 0.4})
    study, groups = edited(folder)
    chart = ratios_chart(study, groups[0], 0, Plotter(tmp_path / "figures"))
    assert chart is not None
    assert "at least" in chart.alt
    exact = {f.bound for c in groups[0].comparisons for _, f in c.along}
    assert "at least" in exact


def test_the_tables_give_the_interval_its_p_and_the_bootstrap(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=6)
    rows = read_jsonl(folder / "results.jsonl")
    rows += [{**row, "labels": 8.0} for row in rows]
    write_jsonl(folder / "results.jsonl", rows)
    study, groups = edited(folder)
    table = overview_table(study, groups)
    assert table is not None
    assert all("p\u00a0" in cell for cell in table.rows[0][1:])
    cell = speedup_table(groups[0]).rows[0][2]
    for part in ("p\u00a0", "6/6 seeds", "bootstrap 1."):
        assert part in cell
    assert "decides nothing" in speedup_table(groups[0]).note


def test_an_early_median_is_marked() -> None:
    early = Reach(20.0, reached=True, early=True)
    assert median_reach({0: early, 1: early, 2: Reach(50.0, True)}) == "≤ 20 (3/3)"
    assert median_reach({0: early, 1: Reach(40.0, True), 2: Reach(50.0, True)}) == "40 (3/3)"


def test_edges_of_the_grid_and_a_single_tuning_seed_are_told(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    rows = read_jsonl(folder / "results.jsonl")
    rows += [{**row, "labels": 8.0} for row in rows]
    for lr, speed in ((1e-3, 0.5), (1e-2, 2.0)):
        rows += [{**row, "tuning": True, "lr": lr} for row in rows_of("mae", 100, speed)]
    write_jsonl(folder / "results.jsonl", rows)
    table = rates_table(Study.load(folder))
    assert table is not None
    assert "the largest learning rate (0.01) in 1 of 1 rows" in table.note
    assert "smallest" not in table.note
    assert "One tuning seed" in table.note
    assert "Tuned with all labels; the same rates serve 8 labelled subjects" in table.note


def test_what_was_asked_first_is_kept_from_the_first_plan_on(tmp_path: Path) -> None:
    about = {
        "settings": {"targets": [0.9], "primary": 0.9, "smoothing": 3, "tasks": 10},
        "config": {"heads": ["unetr", "linear"], "labels": [1.0], "seeds": [0, 1]},
    }
    first = asked_first(about, tmp_path)
    assert first == {
        "targets": [0.9],
        "primary": 0.9,
        "smoothing": 3,
        "heads": "unetr",
        "labels": 1.0,
        "seeds": [0, 1],
    }
    write_json(tmp_path / PLAN, {"about": {"asked_first": first}})
    changed = {**about, "settings": {**about["settings"], "primary": 0.8}}
    assert asked_first(changed, tmp_path) == first
    (tmp_path / "old" / "cells" / "one").mkdir(parents=True)
    write_json(tmp_path / "old" / "cells" / "one" / RESULT, {})
    assert asked_first(about, tmp_path / "old") is None


def test_a_diverged_cell_is_told_from_one_that_failed() -> None:
    cells = [Cell("mae", Variant(), "unetr", 1.0, seed, 1e-3) for seed in range(3)]
    failed = {
        cells[0].key: DivergedError("the gradient was not finite in 10 steps in a row"),
        cells[1].key: OSError("the disk is full"),
    }
    rows = failed_rows(StudyConfig(), cells, failed)
    assert [(row["seed"], row["diverged"]) for row in rows] == [(0, True), (1, False)]
