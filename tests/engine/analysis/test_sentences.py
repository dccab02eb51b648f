"""What no sentence may leave unsaid: its seeds, its interval, its bound, and what is to come."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from synthetic_study import own_pretrainings, write_study

from mim3d.engine.analysis.description import secondary_statements
from mim3d.engine.analysis.figures import figures_of
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.speedup import PairedRatio, holm
from mim3d.engine.analysis.summary import GroupSummary, summarise
from mim3d.engine.analysis.verdict import headline
from mim3d.engine.analysis.words import (
    beside,
    ends_in_words,
    interval_in_words,
    median_reach,
    p_in_words,
    p_of_ratio,
)
from mim3d.engine.report.cost import ledger_table
from mim3d.engine.report.finetuning import reaches_table
from mim3d.engine.report.headline import facts
from mim3d.engine.report.limits import limits
from mim3d.engine.report.scores import final_table
from mim3d.engine.runs.files import read_jsonl, write_jsonl
from mim3d.engine.study.curves import Reach

FOUR = {"scratch": 1.0, "simclr": 1.0, "mae": 1.5, "simmim": 1.0}
SAME = dict.fromkeys(FOUR, 1.0)


def study_of(
    folder: Path, seeds: int = 7, lacking: Sequence[tuple[str, int]] = (), **how: Any
) -> tuple[Study, list[GroupSummary]]:
    """A study with a pretraining for each seed, of which some runs are still to come."""
    how = {"speeds": FOUR, "config": {"seeds": list(range(seeds))}} | how
    own_pretrainings(write_study(folder, seeds=seeds, **how), seeds)
    rows = read_jsonl(folder / "results.jsonl")
    kept = [row for row in rows if (row["arm"], row["seed"]) not in lacking]
    write_jsonl(folder / "results.jsonl", kept)
    study = Study.load(folder)
    return study, summarise(study)


def ratio(bound: str = "exact", **fields: Any) -> PairedRatio:
    exact = {"pairs": 5, "complete": 5, "first_reached": 5, "second_reached": 5, "why": ""}
    return PairedRatio(
        **(exact | {"bound": bound, "ratio": 1.2, "low": None, "high": None} | fields)
    )


@pytest.mark.parametrize("arm", ["simmim", "scratch"])
def test_a_claim_is_interim_while_any_run_is_to_come_that_it_rests_on(
    tmp_path: Path, arm: str
) -> None:
    """MAE and SimCLR are done, but Holm's p hangs on SimMIM too, and the target on scratch."""
    said = headline(*study_of(tmp_path, lacking=[(arm, 6)]))
    assert said.text.endswith("as fast as SimCLR so far.")
    assert said.kind == "neutral"
    assert "every figure is interim" in said.detail


def test_a_whole_study_is_not_interim(tmp_path: Path) -> None:
    study, groups = study_of(tmp_path)
    said = headline(study, groups)
    assert said.kind == "finding"
    assert "so far" not in said.text
    assert not any("interim" in line for line in [said.detail, *limits(study, groups)])


def test_results_that_were_left_out_are_not_waited_for(tmp_path: Path) -> None:
    """An arm of another study's settings has no rows, and none will come."""
    gone = [("simmim", seed) for seed in range(7)]
    assert "interim" in headline(*study_of(tmp_path, lacking=gone)).detail
    left = headline(*study_of(tmp_path / "left", lacking=gone, left_out=["SimMIM: other settings"]))
    assert "interim" not in left.detail


@pytest.mark.parametrize(
    ("tops", "text"),
    [
        (
            {"simclr": 0.4, "mae": 0.4, "simmim": 0.4},
            "No speed-up of MAE over SimCLR can be stated",
        ),
        ({"mae": 0.4, "simmim": 0.4}, "converged more slowly than SimCLR"),
    ],
)
def test_what_cannot_be_stated_is_interim_too(
    tmp_path: Path, tops: dict[str, float], text: str
) -> None:
    said = headline(*study_of(tmp_path, lacking=[("mae", 6)], tops=tops, speeds=SAME))
    assert said.text.endswith(f"{text} so far.")
    assert "interim" in said.detail


def test_the_rival_has_its_interval_its_seeds_and_its_bound(tmp_path: Path) -> None:
    found = study_of(tmp_path, lacking=[("simmim", 6)], tops={"simmim": 0.4})
    rival = headline(*found).detail.split("SimMIM: ")[1]
    assert rival.startswith("at most 0.")
    assert "(95 % interval up to 0." in rival
    assert "; 6 of 7 seeds), p" in rival
    assert "p =" not in rival
    assert "SimMIM did not reach it in 6 of 6 seeds. Only the upper end" in rival


def test_json_tells_the_corrected_p_from_the_others(tmp_path: Path) -> None:
    study_of(tmp_path, lacking=[("simmim", 6)])
    found = figures_of(tmp_path / "report.html")
    tested = found["tested"]
    assert (tested["of"], tested["interim"]) == (2, True)
    (group,) = found["groups"].values()
    by_itself = {pair: group["speedup"][pair]["0.9"]["p"] for pair in tested["p_holm"]}
    assert list(by_itself) == ["mae/simclr", "simmim/simclr"]
    assert list(tested["p_holm"].values()) == holm(list(by_itself.values()))


def test_the_widened_interval_is_shown(tmp_path: Path) -> None:
    said = headline(*study_of(tmp_path, speeds=SAME)).detail
    assert said.count("widened for 2 comparisons (0.9") == 2
    assert said.count("), excludes 1.40×.") == 2


def test_seeds_of_scratch_alone_do_not_make_a_claim(tmp_path: Path) -> None:
    """Scratch waits for no pretraining, so it is done first: pairs are what counts."""
    ahead = [(arm, seed) for arm in FOUR if arm != "scratch" for seed in range(5, 10)]
    study, groups = study_of(tmp_path, seeds=10, lacking=ahead)
    found = limits(study, groups)
    assert any(line.startswith("5 seeds: a claim would want 10") for line in found)
    assert found[0].startswith("Runs are still to come")


def test_means_over_different_seeds_are_not_held_against_each_other(tmp_path: Path) -> None:
    study, (group,) = study_of(tmp_path, lacking=[("mae", 5), ("mae", 6)])
    scores = final_table(study, group)
    assert scores is not None
    for note in (reaches_table(group).note, scores.note):
        assert "scratch, SimCLR, SimMIM seeds 0, 1, 2, 3, 4, 5, 6; MAE seeds 0, 1, 2, 3, 4" in note
        assert "only paired differences can" in note
    study, (group,) = study_of(tmp_path / "whole")
    assert "different seeds" not in reaches_table(group).note


def test_a_run_that_stood_still_is_named_beside_the_seconds(tmp_path: Path) -> None:
    study, (group,) = study_of(tmp_path)
    assert "SimCLR, seed" not in ledger_table(study, group).note
    for row in study.rows:
        if (row["arm"], row["seed"]) == ("simclr", 4):
            row["seconds"] *= 12.6
    assert "SimCLR, seed 4 (12.6)" in ledger_table(study, summarise(study)[0]).note


def test_crops_are_of_a_pretraining_and_not_of_an_arm(tmp_path: Path) -> None:
    assert dict(facts(*study_of(tmp_path)))["pretraining"] == "21 × 9,600 crops"


def test_choices_and_subjects_that_no_interval_counts_are_limits(tmp_path: Path) -> None:
    search = {arm: {"settings": 8, "crops": 24_000, "seeds": [100]} for arm in FOUR}
    splits = {"train": list("abc"), "validation": list("de"), "test": ["f"]}
    networks = [{"encoder": "", "kind": "vit", "encoder_parameters": 720_480}]
    study, groups = study_of(tmp_path, search=search, splits=splits, networks=networks)
    found = " ".join(limits(study, groups))
    for words in (
        "one division of the subjects (3 train, 2 validation, 1 test)",
        "chosen with one seed",
        "validation subjects served the search for pretext settings too",
        "one rate (0.0003, the encoder at 1 of it), which no search chose",
        "one encoder of 0.72 M parameters",
    ):
        assert words in found
    patches = {"networks": networks, "ablation": "mask", "ablation_axes": ["patch"]}
    varied = limits(*study_of(tmp_path / "varied", **patches))
    assert any("one encoder size" in line for line in varied)  # the networks of the first patch
    plain = " ".join(limits(*study_of(tmp_path / "plain")))
    assert "search for pretext settings" not in plain


def test_rounding_hides_no_side_of_a_limit() -> None:
    assert [p_in_words(p) for p in (0.0496, 0.0504, 0.05)] == [
        "p = 0.0496",
        "p = 0.0504",
        "p = 0.050",
    ]
    assert interval_in_words(ratio(low=1.0023, high=1.4)) == "95 % interval 1.002 to 1.40"
    assert interval_in_words(ratio(low=0.5, high=0.9991)) == "95 % interval 0.50 to 0.999"
    assert ends_in_words(-0.0212, -0.0004) == "-0.021 to -0.0004"
    assert beside(1.3996, 1.40, 2) == "1.3996"
    assert beside(0.0, 0.0, 3, "+") == "+0.000"


def test_an_upper_bound_of_p_is_not_rounded_down() -> None:
    shown = [p_of_ratio(ratio("at least", p_value=p)) for p in (0.0012, 0.0496, 0.0504, 0.9999)]
    assert shown == ["p ≤ 0.002", "p ≤ 0.0496", "p ≤ 0.051", "p ≤ 1"]
    assert p_of_ratio(ratio("at least", p_value=0.0002)) == "p < 0.001"
    assert p_of_ratio(ratio("at most", p_value=0.02), 0.04) == "p ≤ 0.040"
    assert p_of_ratio(ratio(p_value=0.0012)) == "p = 0.001"


def test_half_a_median_is_a_bound() -> None:
    half = {0: Reach(100.0, True), 1: Reach(400.0, False)}
    assert median_reach(half) == "> 250 (1/2)"
    assert median_reach({0: Reach(20.0, True, early=True), 1: half[1]}) == "> 200 (1/2)"
    assert median_reach({0: half[1], 1: half[1]}) == "> 400 (0/2)"


def test_description_has_its_seeds_and_its_target(tmp_path: Path) -> None:
    said = [s.whole for s in secondary_statements(*study_of(tmp_path, lacking=[("mae", 6)]))]
    (cost,) = [line for line in said if line.startswith("With the FLOPs")]
    assert "to 90 % over scratch: SimCLR 0.0" in cost
    assert "; 7 seeds), MAE 0.0" in cost
    assert "; 6 of 7 seeds), SimMIM" in cost
    (final,) = [line for line in said if line.startswith("Final Dice of MAE less that of SimCLR")]
    assert final.endswith("; 6 of 7 seeds.")


def test_a_study_without_any_pair_says_so(tmp_path: Path) -> None:
    """Seeds 0 to 4 of one arm and 5 to 9 of the other."""
    lacking = [("mae", seed) for seed in range(5, 10)] + [("simclr", seed) for seed in range(5)]
    two = {"scratch": 1.0, "simclr": 1.0, "mae": 1.5}
    study, groups = study_of(tmp_path, seeds=10, lacking=lacking, speeds=two)
    said = headline(study, groups)
    assert said.text == "No speed-up of MAE over SimCLR can be stated so far."
    assert "no seed was run for both arms" in said.detail
    assert any(line.startswith("0 seeds, too few to test") for line in limits(study, groups))


def test_arms_that_are_the_same_cannot_be_tested(tmp_path: Path) -> None:
    study, _ = study_of(tmp_path, speeds={"scratch": 1.0, "simclr": 1.0})
    twins = [row | {"arm": "mae"} for row in study.rows if row["arm"] == "simclr"]
    study.rows.extend(twins)
    said = headline(study, summarise(study))
    assert said.text == "A speed-up of this MAE encoder over SimCLR cannot be tested."
    assert "every seed gives the same ratio" in said.detail
    assert "p =" not in said.detail
