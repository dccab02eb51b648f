"""Arms on several encoders: compared within each, tested as one family, named with it."""

from pathlib import Path
from typing import Any

import pytest
from synthetic_study import own_pretrainings, rows_of, write_study

from mim3d.engine.analysis.family import first_groups, read_family
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.speedup import holm
from mim3d.engine.analysis.statements import further_statements
from mim3d.engine.analysis.summary import summarise
from mim3d.engine.analysis.verdict import fixed_beforehand, headline
from mim3d.engine.report.report import build_report
from mim3d.engine.runs.files import read_json, write_json, write_jsonl
from mim3d.engine.study.gather import headline_settings

SPEEDS = {
    "vit": ({"scratch": 1.0, "simclr": 1.0, "mae": 1.1}, 0.8),
    "resenc": ({"scratch": 2.0, "simclr": 2.0, "mae": 3.4}, 0.9),
}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Six seeds; MAE is 1.1 times as fast on the ViT, 1.7 times on the U-Net, which ends higher."""
    arms = {encoder: list(speeds) for encoder, (speeds, _) in SPEEDS.items()}
    networks = [network(encoder) for encoder in SPEEDS]
    write_study(tmp_path, seeds=6, encoder_arms=arms, networks=networks)
    own_pretrainings(tmp_path, 6)
    rows: list[dict[str, Any]] = []
    for encoder, (speeds, top) in SPEEDS.items():
        for arm, speed in speeds.items():
            for seed in range(6):
                of_arm = rows_of(arm, seed, speed, top, head="own")
                rows += [{**row, "encoder": encoder, "cpu_seconds": 31.0} for row in of_arm]
    write_jsonl(tmp_path / "results.jsonl", rows)
    entries = read_json(tmp_path / "pretraining.json")
    entries = [
        {**p, "encoder": encoder, "cpu_seconds": 77.0} for encoder in SPEEDS for p in entries
    ]
    write_json(tmp_path / "pretraining.json", entries)
    return Study.load(tmp_path)


def network(encoder: str) -> dict[str, Any]:
    return {
        "encoder": encoder,
        "kind": encoder,
        "head": "own",
        "crop_size": [64, 64, 64] if encoder == "resenc" else [32, 32, 32],
        "encoder_parameters": 1_230_000,
        "decoder_parameters": 45_000,
    }


def test_each_encoder_is_held_against_its_own_scratch(study: Study) -> None:
    groups = summarise(study)
    assert [g.group.encoder for g in groups] == ["vit", "resenc"]
    tops = [g.targets[0].score / g.targets[0].share for g in groups]
    assert tops == pytest.approx([0.78, 0.9], abs=0.02)
    ratios = [g.comparison("mae", "simclr") for g in groups]
    found = [c.at[0.9].ratio for c in ratios if c is not None]
    assert found == pytest.approx([1.1, 1.7], rel=0.05)


def test_the_family_spans_the_encoders_and_is_corrected_for_all(study: Study) -> None:
    groups = summarise(study)
    family = read_family(study, *first_groups(groups))
    assert [(c.encoder, c.first, c.second) for c in family.members] == [
        ("vit", "mae", "simclr"),
        ("resenc", "mae", "simclr"),
    ]
    each = [family.ratio_of(c).p_value for c in family.members]
    assert list(family.p_values) == holm(each)
    assert family.size == 2


def test_an_encoder_without_results_still_counts_in_the_family(study: Study) -> None:
    rows = [row for row in study.rows if row["encoder"] == "vit"]
    alone = Study(study.about, rows, [], study.pretraining, study.folder)
    family = read_family(alone, *first_groups(summarise(alone)))
    assert (len(family.members), family.size) == (1, 2)


def test_the_headline_names_the_encoder(study: Study) -> None:
    groups = summarise(study)
    said = headline(study, groups)
    assert said.text.startswith("MAE converged 1.")
    assert said.text.endswith("as fast as SimCLR on ResEnc U-Net.")
    assert "MAE on ViT: 1." in said.detail
    further = " ".join(s.whole for s in further_statements(study, groups, None))
    assert "SimCLR over scratch on ViT: " in further
    assert "SimCLR over scratch on ResEnc U-Net: " in further


def test_encoders_that_join_later_make_the_headline_exploratory(study: Study) -> None:
    config = {"seeds": [0], "arms": ["scratch"], "encoders": ["vit"]}
    study.about["asked_first"] = headline_settings(study.about["settings"], config)
    study.about["config"] = config
    assert "on file before the first run" in fixed_beforehand(study)
    assert "(MAE over SimCLR on ViT, MAE over SimCLR on ResEnc U-Net)" in fixed_beforehand(study)
    study.about["config"] = config | {"encoders": ["vit", "resenc"]}
    assert "encoders from ['vit'] to ['vit', 'resenc']" in fixed_beforehand(study)
    del study.about["asked_first"]["encoders"]  # a study from before
    study.about["config"] = config
    assert "encoders from [] to ['vit']" in fixed_beforehand(study)


def test_the_report_has_the_cost_of_each_encoder(study: Study) -> None:
    page = build_report(study.folder).read_text("utf-8")
    cost = page[page.index("What each encoder costs") :]
    for words in ("ViT, own decoder", "64×64×64", "1.23", "0.04", ">31<", ">77<"):
        assert words in cost
    assert "Encoders are not compared with one another" in page
    assert "MAE on ViT" in cost[cost.index("What each pretraining costs") :]
