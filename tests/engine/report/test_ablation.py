"""Ablation reports: nothing that failed the gate is named best, noise is not made decisive."""

from pathlib import Path
from typing import Any

import pytest
from synthetic_study import pretraining_of, rows_of, write_study

from mim3d.engine.analysis.ablation import Ablation, read_ablation
from mim3d.engine.analysis.ablation_family import read_ablation_family
from mim3d.engine.analysis.ablation_statement import ablation_statement
from mim3d.engine.analysis.figures import figures_of
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.summary import summarise
from mim3d.engine.report.ablation import ablation_table
from mim3d.engine.report.ablation_charts import NARROWEST, ablation_charts, outcomes, scale_of
from mim3d.engine.report.ablation_curves import curves_charts, pretext_charts
from mim3d.engine.report.cost import network_table, throughput_table
from mim3d.engine.report.plots import Plotter
from mim3d.engine.report.report import build_report
from mim3d.engine.runs.files import read_json, write_json, write_jsonl

MASKS, PATCHES = (0.5, 0.75), (4, 8)
Rows = list[dict[str, Any]]


def write_ablation(
    folder: Path, rows: Rows, pretraining: Rows, axes: list[str], variants: dict[str, Any]
) -> Path:
    write_study(folder)
    write_jsonl(folder / "results.jsonl", rows)
    write_json(folder / "pretraining.json", pretraining)
    about = read_json(folder / "study.json")
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    more = {"ablation": "some", "ablation_axes": axes, "variants": variants, "arms": arms}
    write_json(folder / "study.json", about | more)
    return folder


def mask_study(folder: Path, failed: set[str] = frozenset(), seeds: int = 3) -> Path:  # pyright: ignore
    rows, pretraining, variants = [], [], {}
    for ratio in MASKS:
        for patch in PATCHES:
            name = f"mask_ratio {ratio:g}, patch {patch}"
            variants[name] = {"mask_ratio": ratio, "patch": patch}
            for seed in range(seeds):
                rows += rows_of("mae", seed, 1.0, top=0.6 + 0.1 * ratio + patch / 100, variant=name)
            loss = 0.99 if name in failed else 0.4
            pretraining.append(pretraining_of("mae", loss, 1.0, name))
    return write_ablation(folder, rows, pretraining, ["mask_ratio", "patch"], variants)


def read(folder: Path) -> tuple[Study, Ablation]:
    study = Study.load(folder)
    ablation = read_ablation(study, summarise(study))
    assert ablation is not None
    return study, ablation


def test_the_highest_of_those_that_learned_is_named_with_its_lead(tmp_path: Path) -> None:
    said = ablation_statement(*read(mask_study(tmp_path)))
    assert said.kind == "neutral"
    assert "MAE with mask ratio 0.75, patch 8 (0." in said.detail
    assert "before mask ratio 0.5, patch 8." in said.detail
    assert said.text == "Some varied: 3 seeds, too few to test."


def test_a_setting_that_failed_the_gate_is_never_named_best(tmp_path: Path) -> None:
    study, ablation = read(mask_study(tmp_path, {"mask_ratio 0.75, patch 8"}))
    said = ablation_statement(study, ablation)
    assert "MAE with mask ratio 0.5, patch 8" in said.detail
    assert "1 of 4 did not learn the pretext task" in said.detail
    table = ablation_table(ablation, read_ablation_family(study, ablation), "Dice")
    learned = {row[0]: row[-1] for row in table.rows}
    assert learned["MAE, mask ratio 0.75, patch 8"] == "no †"
    assert sorted(learned.values()) == ["no †", "yes", "yes", "yes"]
    assert "neither ranked nor compared" in table.note
    page = build_report(tmp_path).read_text()
    assert "3 of 4 pretrainings" not in page  # four are few enough to be told one by one
    assert " †" in (page[page.index("MAE: final Dice by mask ratio") :])


def test_where_nothing_learned_nothing_is_named_best(tmp_path: Path) -> None:
    names = {f"mask_ratio {ratio:g}, patch {patch}" for ratio in MASKS for patch in PATCHES}
    study, ablation = read(mask_study(tmp_path, names))
    said = ablation_statement(study, ablation)
    assert said.kind == "warning"
    assert "none is named best" in said.text
    assert "with mask ratio" not in said.detail
    table = ablation_table(ablation, read_ablation_family(study, ablation), "Dice")
    assert all(row[-1] == "no †" for row in table.rows)


def test_the_colour_scale_does_not_stretch_noise(tmp_path: Path) -> None:
    rows, variants = [], {}
    for top, ratio in ((0.700, 0.5), (0.704, 0.75)):
        variants[f"mask_ratio {ratio}"] = {"mask_ratio": ratio}
        for seed in range(3):
            name = f"mask_ratio {ratio}"
            rows += rows_of("mae", seed, 1.0, top=top, variant=name)
    pretraining = [pretraining_of("mae", 0.4, 1.0, name) for name in variants]
    write_ablation(tmp_path, rows, pretraining, ["mask_ratio"], variants)
    _, ablation = read(tmp_path)
    scale = scale_of(ablation, outcomes("Dice")[1])
    scores = sorted(s.score for s in ablation.settings if s.score is not None)
    assert scale.high - scale.low == pytest.approx(NARROWEST)
    assert scale.share(scores[1]) - scale.share(scores[0]) < 0.1
    assert scale.low <= scores[0]
    assert scores[1] <= scale.high
    assert scale.noise is not None
    assert ablation.noise == pytest.approx(scale.noise)


def test_one_seed_tells_no_noise(tmp_path: Path) -> None:
    study, ablation = read(mask_study(tmp_path, seeds=1))
    assert ablation.noise is None
    (_, score, *_) = ablation_charts(study, ablation, Plotter(tmp_path / "figures"))
    assert "one seed: noise not known" in score.svg


def test_steps_are_counted_to_one_target_for_all_settings(tmp_path: Path) -> None:
    _, ablation = read(mask_study(tmp_path))
    assert "median setting" in ablation.target
    spent = {s.name: [r.cost for r in s.reaches.values()] for s in ablation.settings}
    assert max(spent["mask ratio 0.75, patch 8"]) < min(spent["mask ratio 0.5, patch 4"]) * 2
    best, worst = (ablation.of("mae")[i].reaches[0].cost for i in (3, 0))
    assert best < worst


def test_a_target_at_the_untrained_score_is_refused(tmp_path: Path) -> None:
    folder = mask_study(tmp_path)
    rows = [r for name in ("a", "b") for r in rows_of("mae", 0, 1.0, top=0.03, variant=name)]
    variants = {"a": {"mask_ratio": 0.5}, "b": {"mask_ratio": 0.9}}
    write_ablation(folder, rows, [], ["mask_ratio"], variants)
    study, ablation = read(folder)
    assert ablation.target.startswith("none, for 90 %")
    assert all(s.reaches == {} for s in ablation.settings)
    charts = ablation_charts(study, ablation, Plotter(tmp_path / "figures"))
    assert [chart.name for chart in charts] == ["ablation-area-mask_ratio", "ablation-mask_ratio"]


def test_settings_of_a_plugins_method_are_told_where_its_plugin_is_not(tmp_path: Path) -> None:
    rows, pretraining, variants = [], [], {}
    for lr in (0.001, 0.01):
        name = f"lr {lr:g}"
        variants[name] = {"lr": lr}
        for arm in ("turns", "turns-flops"):
            rows += rows_of(arm, 0, 1.0, variant=name) + rows_of(arm, 1, 1.0, variant=name)
            pretraining.append(pretraining_of(arm, 0.4, 1.0, name) | {"method": "turns"})
    write_ablation(tmp_path, rows, pretraining, ["lr"], variants)
    _, ablation = read(tmp_path)
    assert [s.values for s in ablation.of("turns")] == [{"lr": 0.001}, {"lr": 0.01}]
    assert [s.values for s in ablation.of("turns-flops")] == [{"lr": 0.001}, {"lr": 0.01}]


def test_costs_are_of_the_encoder_whose_size_is_told(tmp_path: Path) -> None:
    """A crop of twice the edge costs eight times as much: their mean is of no network."""
    rows, variants = [], {}
    for crop, factor in ((16, 1), (32, 8)):
        name = f"crop {crop}"
        variants[name] = {"crop": crop}
        own = rows_of("mae", 0, 1.0, variant=name) + rows_of("mae", 1, 1.0, variant=name)
        rows += [{**row, "flops": factor * row["flops"]} for row in own]
    write_ablation(tmp_path, rows, [], ["crop"], variants)
    about = read_json(tmp_path / "study.json")
    sizes = {"encoder_parameters": 2_000_000, "decoder_parameters": 1_000_000}
    network = {"encoder": "", "kind": "vit", "head": "unetr", "crop_size": [16] * 3, **sizes}
    study = Study(about | {"networks": [network]}, rows, [], [], tmp_path)
    groups = summarise(study)
    costs, (small, large) = network_table(study, groups), throughput_table(study, groups).rows
    assert costs.rows == (("ViT, UNETR decoder", "16×16×16", "2.00", "1.00", "2.0", "0.050", "–"),)
    assert "first setting alone" in costs.note
    assert float(large[2]) == pytest.approx(8 * float(small[2]), abs=0.05)


def decoder_study(folder: Path) -> Path:
    rows, pretraining, variants = [], [], {}
    for depth in (1, 4):
        for width in (32, 64):
            name = f"decoder_depth {depth}, decoder_width {width}"
            variants[name] = {"decoder_depth": depth, "decoder_width": width}
            rows += rows_of("mae", 0, 1.0, variant=name) + rows_of("mae", 1, 1.0, variant=name)
            pretraining.append(pretraining_of("mae", 0.4, 1.0, name))
    variants[""] = {"decoder_depth": 2, "decoder_width": 64}  # the study's own, not SimMIM's
    rows += rows_of("simmim", 0, 1.0) + rows_of("simmim", 1, 1.0)
    pretraining.append(pretraining_of("simmim", 0.4, 1.0))
    axes = ["decoder_depth", "decoder_width"]
    return write_ablation(folder, rows, pretraining, axes, variants)


def test_simmims_linear_head_stands_beside_the_grid(tmp_path: Path) -> None:
    study, ablation = read(decoder_study(tmp_path))
    (simmim,) = ablation.of("simmim")
    assert simmim.values == {}
    assert simmim.name == "linear head"
    area, score, steps = ablation_charts(study, ablation, Plotter(tmp_path / "figures"))
    names = ["ablation-area-mae", "ablation-mae", "ablation-steps-mae"]
    assert [area.name, score.name, steps.name] == names
    assert "linear head" in area.svg
    assert "linear head" in score.svg
    assert "linear head" in steps.svg
    assert "SimMIM with linear head (0." in ablation_statement(study, ablation).detail


def test_every_setting_has_its_curves(tmp_path: Path) -> None:
    study, ablation = read(decoder_study(tmp_path))
    (curves,) = curves_charts(study, ablation, Plotter(tmp_path / "figures"))
    for depth in (1, 4):
        assert curves.svg.count(f"decoder depth {depth}<") == 2
    assert "SimMIM" in curves.svg
    (pretext,) = pretext_charts(study, ablation, Plotter(tmp_path / "figures"))
    assert pretext.svg.count("decoder width 32<") == 2
    assert (tmp_path / "figures" / "ablation-curves-mae.png").exists()


def labels_study(folder: Path) -> Path:
    rows: Rows = []
    counts = {4.0: 4, 16.0: 16, 0.25: 64, 0.5: 128, 1.0: 256}
    for labels, count in counts.items():
        for arm, speed in (("scratch", 1.0), ("mae", 1.4)):
            for seed in range(2):
                made = rows_of(arm, seed, speed, top=0.3 + count / 600, labels=labels)
                rows += [{**row, "n_labelled": count} for row in made]
    pretraining = [pretraining_of("mae", 0.4, 1.0)]
    return write_ablation(folder, rows, pretraining, ["labels"], {"": {}})


def test_label_counts_are_in_order_and_named(tmp_path: Path) -> None:
    study, ablation = read(labels_study(tmp_path))
    assert [s.values["labels"] for s in ablation.of("mae")] == [4, 16, 64, 128, 256]
    said = ablation_statement(study, ablation)
    assert "(4 labelled subjects) to 0." in said.detail
    assert "(256 labelled subjects)" in said.detail
    score = ablation_charts(study, ablation, Plotter(tmp_path / "figures"))[1]
    ticks = [score.svg.index(f">{count}</text>") for count in (4, 16, 64, 128, 256)]
    assert ticks == sorted(ticks)
    scores = [s.score or 0.0 for s in ablation.of("scratch")]
    assert scores == sorted(scores)


def test_shares_become_numbers_of_the_training_subjects(tmp_path: Path) -> None:
    folder = labels_study(tmp_path)
    rows = [
        {key: value for key, value in row.items() if key != "n_labelled"}
        for labels in (8.0, 0.5)
        for row in rows_of("mae", 0, 1.0, labels=labels)
    ]
    write_jsonl(folder / "results.jsonl", rows)
    about = read_json(folder / "study.json")
    about["splits"] = {"train": [f"s{i}" for i in range(40)]}
    write_json(folder / "study.json", about)
    _, ablation = read(folder)
    assert [s.values["labels"] for s in ablation.of("mae")] == [8, 20]


def test_the_page_and_the_figures_of_an_ablation(tmp_path: Path) -> None:
    report = build_report(decoder_study(tmp_path))
    page = report.read_text()
    assert "share one colour scale (area under the Dice curve 0." in page
    assert "What each setting gave" in page
    assert "every setting" in page
    assert "No picture: no run kept slices" in page
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    settings = figures_of(report)["ablation"]
    assert len(settings) == 5
    assert {"arm", "settings", "learned", "final", "reached", "steps"} <= settings[0].keys()


def test_groups_that_compare_arms_keep_their_sections(tmp_path: Path) -> None:
    page = build_report(labels_study(tmp_path)).read_text()
    assert page.count("<h2>Fine-tuning: ") == 5
    assert page.index("Ablation: some") < page.index("<h2>Fine-tuning: ")


def test_an_ablation_of_which_one_setting_is_done_is_a_plain_report(tmp_path: Path) -> None:
    folder = mask_study(tmp_path)
    rows = rows_of("mae", 0, 1.0, variant="mask_ratio 0.5, patch 4")
    write_jsonl(folder / "results.jsonl", rows)
    assert read_ablation(Study.load(folder), summarise(Study.load(folder))) is None
    assert build_report(folder).exists()
