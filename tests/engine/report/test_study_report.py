"""What the report says of studies whose truth is known: words, bounds, and one file alone."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from synthetic_study import own_pretrainings, rows_of, write_study

from mim3d.engine.analysis.description import secondary_statements
from mim3d.engine.analysis.family import headline_family
from mim3d.engine.analysis.figures import figures_of
from mim3d.engine.analysis.ledger import LEDGERS, UNITS
from mim3d.engine.analysis.results import Group, Study
from mim3d.engine.analysis.summary import pairs_of, summarise
from mim3d.engine.analysis.verdict import gate_statements, headline
from mim3d.engine.analysis.words import arm_name, median_reach
from mim3d.engine.errors import ConfigError
from mim3d.engine.report.finetuning import reaches_table
from mim3d.engine.report.limits import limits
from mim3d.engine.report.palette import STAND_IN
from mim3d.engine.report.panels import line_style
from mim3d.engine.report.rates import rates_table
from mim3d.engine.report.report import build_report, render
from mim3d.engine.report.speedup import overview_table, speedup_table
from mim3d.engine.runs.files import read_json, read_jsonl, write_json, write_jsonl


def summary(folder: Path) -> tuple[Study, list[Any]]:
    study = Study.load(folder)
    return study, summarise(study)


def test_a_true_speedup_is_found_with_its_interval(tmp_path: Path) -> None:
    study, groups = summary(own_pretrainings(write_study(tmp_path, seeds=6), 6))
    found = groups[0].comparison("mae", "simclr")
    assert found is not None
    at = found.at[0.9]
    assert at.ratio == pytest.approx(1.5, abs=0.12)
    assert at.low is not None
    assert at.low > 1.3
    said = headline(study, groups)
    assert said.kind == "finding"
    assert said.text.startswith("MAE converged 1.")
    assert "6 seeds" in said.detail
    assert "A claim would want 10 seeds" in said.detail


def test_no_difference_is_said_in_words(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=6, speeds={"scratch": 1.0, "simclr": 1.0, "mae": 1.0})
    said = headline(*summary(own_pretrainings(folder, 6)))
    assert said.text == "No significant speed-up of MAE over SimCLR."
    assert "95 % interval" in said.detail


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_few_seeds_never_get_an_interval(tmp_path: Path, seeds: int) -> None:
    study, groups = summary(write_study(tmp_path, seeds=seeds))
    said = headline(study, groups)
    assert said.kind == "neutral"
    assert said.text.startswith("Too few seeds to test a speed-up of")
    assert "no interval can be supported" in said.detail
    page = build_report(tmp_path).read_text()
    assert not re.search(r"95 % interval -?[\d+]", page)
    assert "p = 0" not in page


def test_few_seeds_without_a_ratio_are_too_few_too(tmp_path: Path) -> None:
    study, groups = summary(write_study(tmp_path, seeds=2, tops={"mae": 0.5, "simclr": 0.5}))
    said = headline(study, groups)
    assert said.text.startswith("Too few seeds to test a speed-up of this MAE encoder")
    assert "neither arm reached the target" in said.detail


def test_an_untrained_simclr_is_reported_not_compared(tmp_path: Path) -> None:
    study, groups = summary(write_study(tmp_path, simclr_loss=3.40))
    assert groups[0].comparison("mae", "simclr") is None
    assert groups[0].comparison("simclr", "scratch") is None
    said = [s.whole for s in gate_statements(study)]
    assert any(
        "SimCLR did not learn its pretext task" in s and "3.430 for chance" in s for s in said
    )
    assert (
        "over scratch" in headline(study, groups).whole
        or "as scratch" in headline(study, groups).whole
    )


def test_an_untrained_masked_arm_is_the_headline(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    entries = read_json(folder / "pretraining.json")
    write_json(folder / "pretraining.json", [{**p, "trained": p["arm"] != "mae"} for p in entries])
    study, groups = summary(folder)
    assert headline(study, groups).text.startswith("MAE did not learn the pretext task")
    table = reaches_table(groups[0])
    assert "MAE †" in [row[0] for row in table.rows]
    assert "† did not learn" in table.note


def test_a_target_no_arm_reaches_is_said(tmp_path: Path) -> None:
    folder = write_study(tmp_path, targets=None)
    about = read_json(folder / "study.json")
    about["settings"] |= {"targets": [0.8, 1.2], "primary": 1.2}
    write_json(folder / "study.json", about)
    said = headline(*summary(folder))
    assert said.kind == "warning"
    assert "neither arm reached the target in any seed" in said.detail


def test_a_censored_arm_gives_a_bound(tmp_path: Path) -> None:
    folder = write_study(tmp_path, tops={"simclr": 0.4})
    study, groups = summary(folder)
    found = groups[0].comparison("mae", "simclr")
    assert found is not None
    assert found.at[0.9].bound == "at least"
    assert "at least" in headline(study, groups).text
    table = reaches_table(groups[0])
    simclr = next(row for row in table.rows if row[0] == "SimCLR")
    assert simclr[2] == "> 400 (0/5)"
    assert "at least" in speedup_table(groups[0]).rows[0][2]


def test_pretraining_costs_turn_up_in_the_ledgers(tmp_path: Path) -> None:
    _, groups = summary(write_study(tmp_path))
    found = groups[0].comparison("mae", "scratch")
    assert found is not None
    assert set(found.ledgers) == {(led, unit) for led in LEDGERS for unit in UNITS}
    alone, whole = (found.ledgers[led, "flops"].ratio for led in LEDGERS[:2])
    assert alone is not None
    assert whole is not None
    assert alone > 1.3
    assert whole < 0.2


def test_synthetic_data_carry_a_banner(tmp_path: Path) -> None:
    page = build_report(write_study(tmp_path, synthetic=True)).read_text()
    assert "Synthetic data" in page
    assert "Synthetic data" not in build_report(write_study(tmp_path / "real")).read_text()


class References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"src", "href", "xlink:href"} and value:
                self.found.append(value)


def test_the_page_needs_no_other_file_and_follows_the_theme(tmp_path: Path) -> None:
    page = build_report(write_study(tmp_path)).read_text()
    parser = References()
    parser.feed(page)
    assert all(ref.startswith(("data:", "#")) for ref in parser.found)
    assert "http-equiv" not in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert "var(--mae)" in page
    assert not any(colour in page for colour in STAND_IN.values())
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert (tmp_path / "figures" / "curves-0.png").stat().st_size > 10_000


def test_the_report_is_rebuilt_from_results_alone(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    first = build_report(folder).read_text()
    assert build_report(folder).read_text() == first
    figures = figures_of(folder / "report.html")
    ratio = figures["groups"]["UNETR decoder, all labels"]["speedup"]["mae/simclr"]["0.9"]["ratio"]
    assert 1.3 < ratio < 1.7
    with pytest.raises(ConfigError, match="no results of a study"):
        build_report(tmp_path / "nothing")


def test_tuning_rows_are_not_scored(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    rows = read_jsonl(folder / "results.jsonl")
    extra = [{**row, "seed": 99, "tuning": True} for row in rows if row["seed"] == 0]
    write_jsonl(folder / "results.jsonl", [*rows, *extra])
    study = Study.load(folder)
    assert 99 not in study.curves(Group("unetr", 1.0, ""), "mae")


def test_the_grid_of_rates_is_shown_with_what_it_chose(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    assert rates_table(Study.load(folder)) is None
    rows = read_jsonl(folder / "results.jsonl")
    for scale, speed in ((0.1, 2.0), (1.0, 0.5)):
        for seed in (100, 101):
            tuned = rows_of("mae", seed, speed)
            rows += [{**row, "tuning": True, "encoder_lr_scale": scale} for row in tuned]
    write_jsonl(folder / "results.jsonl", rows)
    table = rates_table(Study.load(folder))
    assert table is not None
    assert table.header == ("arm", "0.0003\nencoder × 0.1", "0.0003\nencoder × 1")
    ((name, fast, slow),) = table.rows
    assert name == "MAE, UNETR decoder"
    assert fast.endswith("●")
    assert float(fast.removesuffix(" ●")) > float(slow)
    assert "seeds 100, 101" in table.note
    assert "The same grid of rates" in build_report(folder).read_text()


def test_groups_are_kept_apart(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    rows = read_jsonl(folder / "results.jsonl")
    for seed in range(5):
        rows += rows_of("mae", seed, 3.0, head="tokens", labels=8.0)
        rows += rows_of("scratch", seed, 1.0, head="tokens", labels=8.0)
    write_jsonl(folder / "results.jsonl", rows)
    _, groups = summary(folder)
    assert [g.group.title for g in groups] == [
        "UNETR decoder, all labels",
        "tokens decoder, 8 labelled subjects",
    ]
    found = groups[1].comparison("mae", "scratch")
    assert found is not None
    assert found.at[0.9].ratio == pytest.approx(3.0, rel=0.1)
    table = overview_table(Study.load(folder), groups)
    assert table is not None
    assert [row[0] for row in table.rows] == [g.group.title for g in groups]
    over_scratch = table.header.index("MAE over\nscratch")
    assert table.rows[1][over_scratch].startswith(f"{found.at[0.9].ratio:.2f}×\n")
    assert table.rows[1][table.header.index("MAE over\nSimCLR")] == "–"
    assert "UNETR decoder, all labels." in headline(Study.load(folder), groups).detail


def test_ablation_of_two_settings_is_a_heat_map(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    rows, variants = [], {}
    for ratio in (0.5, 0.75):
        for patch in (4, 8):
            name = f"mask_ratio {ratio:g}, patch {patch}"
            variants[name] = {"mask_ratio": ratio, "patch": patch}
            rows += rows_of("mae", 0, 1.0, top=ratio * patch / 8, variant=name)
    write_jsonl(folder / "results.jsonl", rows)
    about = read_json(folder / "study.json")
    about |= {"ablation": "mask", "ablation_axes": ["mask_ratio", "patch"], "variants": variants}
    write_json(folder / "study.json", about)
    study, groups = summary(folder)
    page = render(study, groups, tmp_path / "figures")
    assert "MAE: final Dice by mask ratio and patch" in page
    assert (tmp_path / "figures" / "ablation-mae.png").exists()
    assert "MAE with mask ratio 0.75, patch 8" in page


def test_one_seed_and_one_arm_still_make_a_page(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=1, speeds={"mae": 1.0})
    study, groups = summary(folder)
    assert headline(study, groups).text.startswith("No masked arm could be compared")
    assert any("No scratch arm" in line for line in limits(study, groups))
    assert build_report(folder).exists()


def test_words() -> None:
    assert arm_name("simclr-flops") == "SimCLR (equal FLOPs)"
    assert arm_name("mine") == "mine"
    assert median_reach({}) == "–"
    assert pairs_of(["scratch", "mae", "simclr", "simmim"])[:2] == [
        ("mae", "simclr"),
        ("simmim", "simclr"),
    ]


def over_contrastive(arms: list[str], flops_of: str) -> list[tuple[str, str]]:
    return [pair for pair in pairs_of(arms, flops_of) if pair[1].startswith("simclr")]


def test_two_budgets_of_one_method_are_drawn_apart(tmp_path: Path) -> None:
    """They share its colour, so the stroke tells; many panels are named above, not in legends."""
    names = ["MAE over SimCLR", "MAE (equal FLOPs) over SimCLR"]
    names += ["MAE over scratch", "MAE (equal FLOPs) over scratch"]
    assert len({line_style(name) for name in names}) == 4
    speeds = {"scratch": 1.0, "simclr": 1.0, "mae": 1.1, "mae-flops": 1.3}
    folder = write_study(tmp_path, speeds=speeds, config={"seeds": 5, "flops_of": "simclr"})
    page = build_report(folder).read_text()
    assert ">(equal FLOPs)<" in page  # a title's second line; legends have the name in one


def test_arms_meet_only_at_equal_crops_or_equal_flops() -> None:
    arms = ["scratch", "simclr", "mae", "simmim", "mine", "simclr-flops", "simmim-flops"]
    assert over_contrastive(arms, "mae") == [
        ("mae", "simclr"),
        ("simmim", "simclr"),
        ("mine", "simclr"),
        ("mae", "simclr-flops"),
        ("mine", "simclr-flops"),
        ("simmim-flops", "simclr-flops"),
    ]
    arms = ["scratch", "simclr", "mae", "simmim", "mae-flops", "simmim-flops"]
    assert over_contrastive(arms, "simclr") == [(arm, "simclr") for arm in arms[2:]]


def test_the_headline_leaves_twins_of_equal_flops_out(tmp_path: Path) -> None:
    """SimCLR's own FLOPs are the measure here, so it is the rival at both budgets."""
    speeds = {"scratch": 1.0, "simclr": 1.0, "mae": 1.1, "mae-flops": 1.3}
    config = {"seeds": 5, "flops_of": "simclr"}
    study, groups = summary(write_study(tmp_path, speeds=speeds, config=config))
    assert [c.first for c in headline_family(groups[0])] == ["mae"]
    found = [s.text for s in secondary_statements(study, groups)]
    assert any(text.startswith("This MAE (equal FLOPs) encoder over this SimCLR") for text in found)
    assert not any("converged" in text for text in found)
    alone = {arm: speed for arm, speed in speeds.items() if arm != "mae"}
    _, groups = summary(write_study(tmp_path, speeds=alone, config=config))
    assert [c.first for c in headline_family(groups[0])] == ["mae-flops"]


def test_limits_name_what_had_not_converged_and_classes_never_found(tmp_path: Path) -> None:
    folder = write_study(tmp_path, speeds={"scratch": 0.3, "simclr": 3.0, "mae": 3.0})
    study, groups = summary(folder)
    (line,) = [line for line in limits(study, groups) if line.startswith("Not converged")]
    assert "scratch (+0.0" in line
    assert "SimCLR" not in line
    rows = read_jsonl(folder / "results.jsonl")
    for row in rows:
        row["dice_by_class"][1] *= row["arm"] != "mae"
    write_jsonl(folder / "results.jsonl", rows)
    lines = limits(*summary(folder))
    assert any(line.startswith("Class 2 was never found by MAE, UNETR") for line in lines)
    for row in rows:
        row["dice_by_class"] = [0.0, 0.0]
    write_jsonl(folder / "results.jsonl", rows)
    lines = limits(*summary(folder))
    assert any(line.startswith("Classes 1, 2 were never found by any arm") for line in lines)
    for row in rows:  # runs of another number of classes, and a class that no subject has
        row["dice_by_class"] = [0.0] if row["seed"] == 0 else [0.0, None]
    write_jsonl(folder / "results.jsonl", rows)
    lines = limits(*summary(folder))
    assert any(line.startswith("Class 1 was never found by any arm") for line in lines)


def test_a_decoder_added_after_looking_is_told(tmp_path: Path) -> None:
    config = {"seeds": [0], "heads": ["unetr", "linear"], "labels": [1.0, 8.0]}
    began = {"heads": ["unetr"], "labels": [1.0, 8.0]}
    folder = write_study(tmp_path, seeds=1, config=config, began_with=began)
    lines = limits(*summary(folder))
    (line,) = [line for line in lines if "could be seen" in line]
    assert "decoder linear" in line
    assert "labels" not in line
    write_json(folder / "study.json", read_json(folder / "study.json") | {"began_with": {}})
    assert not any("could be seen" in line for line in limits(*summary(folder)))


def test_the_headline_figure_is_the_whole_curve_beside_fixed_target_and_area(
    tmp_path: Path,
) -> None:
    folder = write_study(tmp_path, seeds=6)
    rows = read_jsonl(folder / "results.jsonl")
    rows += [{**row, "tuning": True} for row in rows_of("scratch", 100, 1.0)]
    write_jsonl(folder / "results.jsonl", rows)
    page = build_report(folder).read_text()
    assert page.index("<h2>How much faster, by target") < page.index("<h2>Fine-tuning: ")
    assert (folder / "figures" / "speedup-by-target.png").exists()
    table = page[page.index("What the target makes of it") :]
    for words in ("fixed beforehand", "at 90 %\n(tested)", "lowest to highest", "area, Dice"):
        assert words in table


def test_how_much_each_arm_was_tuned_is_told(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    assert any("not recorded of MAE, SimCLR" in line for line in limits(*summary(folder)))
    about = read_json(folder / "study.json")
    equal = {arm: {"settings": 8, "crops": 96000, "seeds": [100]} for arm in ("mae", "simclr")}
    write_json(folder / "study.json", about | {"search": equal})
    assert not any("tuned" in line or "tried" in line for line in limits(*summary(folder)))
    page = build_report(folder).read_text()
    assert "How much each arm was tuned" in page
    assert "96,000" in page
    equal["simclr"] = equal["simclr"] | {"settings": 4}
    write_json(folder / "study.json", about | {"search": equal})
    (line,) = [line for line in limits(*summary(folder)) if "not tuned equally" in line]
    assert "MAE 8 of 96,000 crops, SimCLR 4 of 96,000 crops" in line
    rows = read_jsonl(folder / "results.jsonl")
    for arm, rates in (("mae", (1e-3, 1e-2)), ("simclr", (1e-3,))):
        rows += [{**r, "tuning": True, "lr": lr} for lr in rates for r in rows_of(arm, 100, 1.0)]
    write_jsonl(folder / "results.jsonl", rows)
    (line,) = [line for line in limits(*summary(folder)) if "equally many rates" in line]
    assert "MAE 2, SimCLR 1" in line


def test_phones_get_one_panel_across(tmp_path: Path) -> None:
    page = build_report(write_study(tmp_path)).read_text()
    assert "max-width: 599.98px" in page
    figures = re.findall(r"<figure>.*?</figure>", page, flags=re.DOTALL)
    curves = next(f for f in figures if "against fine-tuning steps" in f)
    assert 'class="wide"' in curves
    wide, narrow = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', curves)
    assert float(wide[0]) > float(wide[1])
    assert float(narrow[0]) < float(narrow[1])  # three arms, one below the other
    assert float(narrow[0]) < 300
    assert all('class="narrow"' in f or 'class="scroll"' in f for f in figures)
