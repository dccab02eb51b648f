"""A study's results are gathered from its finished parts, whatever became of the rest."""

import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mim3d.dataio.corpus.manifest import LabelRecord
from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.analysis.ledger import LEDGERS
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.summary import pairs_of, summarise
from mim3d.engine.analysis.verdict import gate_statements, headline
from mim3d.engine.commands import compare as command
from mim3d.engine.commands.cli import main
from mim3d.engine.errors import ConfigError, DivergedError
from mim3d.engine.finetune.config import LabelledData
from mim3d.engine.finetune.splits import Splits
from mim3d.engine.models.config import MAEConfig, ViTConfig
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.report.headline import leaks
from mim3d.engine.report.limits import leak_limits, limits
from mim3d.engine.runs.encoder_file import save_encoder
from mim3d.engine.runs.files import read_json, read_jsonl, write_json, write_jsonl
from mim3d.engine.study import gather as gathering
from mim3d.engine.study import run as study_run
from mim3d.engine.study.config import ArmPlan, FinetunePlan, PretrainPlan, StudyConfig
from mim3d.engine.study.gather import gather, places, write_plan
from mim3d.engine.study.plan import Cell, pretrainings, scored_cells, tuning_cells
from mim3d.engine.study.pretext import external_row, leaked_subjects, run_of

VIT = ViTConfig((16, 16, 16), (8, 8, 8), width=12, depth=2, heads=2)
SPLITS = Splits(("a", "b"), ("c",), ("d",), ("a", "b"), (), ("some note",))


class Record:
    """What gathering needs of a manifest's record."""

    def __init__(self, subject: str, classes: dict[int, int]) -> None:
        self.subject = self.id = subject
        self.source_hash = (f"file of {subject}",)
        self.labels = (LabelRecord("seg", "|u1", classes, "x", "0", "0", 1),)


class FakeCorpus:
    """A manifest of four subjects; only one that trains has class 2."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "manifest.json").write_text("{}")
        self.records = [Record(s, {0: 9, 1: 5, 2: int(s == "a")}) for s in "abcd"]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setattr(gathering, "corpus_sha256", lambda corpus: "hash")
    return FakeCorpus(tmp_path)  # pyright: ignore[reportReturnType]


@pytest.fixture
def config() -> StudyConfig:
    return StudyConfig(
        name="small",
        vit=VIT,
        arms=("scratch", "mae"),
        seeds=(0, 1),
        pretrain=PretrainPlan(crops=16, mae=ArmPlan(MAEConfig(), lr=2e-3, global_batch=8)),
        finetune=FinetunePlan(steps=40, eval_every=20),
    )


def finish(out: Path, cell: Cell, notes: tuple[str, ...] = ()) -> None:
    rows = [
        {
            "split": "validation",
            "step": s,
            "crops": 4 * s,
            "score": s / 50,
            "flops": s,
            "seconds": s,
        }
        for s in (0, 20, 40)
    ]
    rows.append({**rows[-1], "split": "test", "hd95": None, "hd95_undefined": 1})
    case = {"split": "test", "volume": "d", "dice": [0.8, None], "hd95": [None, None]}
    result = {
        "rows": rows,
        "cases": [case],
        "notes": list(notes),
        "subjects": {"train": ["a", "b"]},
        "step_flops": 1.0,
        "seconds": 40.0,
    }
    write_json(out / "cells" / cell.key / "result.json", result)


def plan(config: StudyConfig, corpus: Corpus, out: Path, **failed: Exception) -> list[Cell]:
    cells = [*tuning_cells(config), *scored_cells(config, {})]
    write_plan(config, corpus, SPLITS, cells, failed, out)
    return cells


def test_a_study_that_was_killed_is_reported_from_what_is_done(
    config: StudyConfig, corpus: Corpus, tmp_path: Path
) -> None:
    cells = plan(config, corpus, tmp_path)
    assert not gather(tmp_path)
    assert not (tmp_path / "results.jsonl").exists()
    finish(tmp_path, cells[0])
    outcome = command.main(["--report", "--out", str(tmp_path)])
    assert outcome.exit_code == 0
    rows = read_jsonl(tmp_path / "results.jsonl")
    assert {row["seed"] for row in rows} == {0}
    assert rows[0]["n_labelled"] == 2
    assert "pictures" not in rows[0]  # none was written
    finish(tmp_path, cells[2])
    command.main(["--report", "--out", str(tmp_path)])
    assert {row["seed"] for row in read_jsonl(tmp_path / "results.jsonl")} == {0, 1}


def test_what_is_still_to_come_is_a_limit(
    config: StudyConfig, corpus: Corpus, tmp_path: Path
) -> None:
    tuned = FinetunePlan(steps=40, eval_every=20, lr=(1e-3, 1e-4), tuning_seeds=(100,))
    config = replace(config, heads=("unetr", "linear"), labels=(1.0, 8.0), finetune=tuned)
    scored = [cell for cell in plan(config, corpus, tmp_path) if not cell.tuning]
    first = [c for c in scored if (c.head, c.labels) == ("unetr", 1.0)]
    assert (len(scored), len(first)) == (16, 4)
    for cell in first[:3]:
        finish(tmp_path, cell)
    plan(config, corpus, tmp_path, **{scored[-1].key: DivergedError("no")})

    def told() -> list[str]:
        assert gather(tmp_path)
        study = Study.load(tmp_path)
        return [line for line in limits(study, summarise(study)) if "no result yet" in line]

    assert told() == [
        "12 runs that were planned have no result yet, and nothing here counts them: UNETR "
        "decoder, all labels (3 of 4 ended); UNETR decoder, 8 labelled subjects; linear decoder, "
        "all labels; linear decoder, 8 labelled subjects (1 of 4 ended)."
    ]
    for cell in scored[:-2]:
        finish(tmp_path, cell)
    (one,) = told()
    assert one.startswith("1 run that was planned has no result yet")
    finish(tmp_path, scored[-2])
    assert told() == []


def test_results_alone_are_left_as_they_are(
    config: StudyConfig, corpus: Corpus, tmp_path: Path
) -> None:
    cells = plan(config, corpus, tmp_path)
    finish(tmp_path, cells[0])
    assert gather(tmp_path)
    before = (tmp_path / "results.jsonl").read_bytes()
    (tmp_path / "cells" / cells[0].key / "result.json").unlink()
    assert not gather(tmp_path)
    (tmp_path / "plan.json").unlink()
    assert not gather(tmp_path)
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_only_tuning_runs_are_no_report_yet(
    config: StudyConfig, corpus: Corpus, tmp_path: Path
) -> None:
    tuned = FinetunePlan(steps=40, eval_every=20, lr=(1e-3, 1e-4), tuning_seeds=(100,))
    cells = plan(replace(config, finetune=tuned), corpus, tmp_path)
    finish(tmp_path, cells[0])
    with pytest.raises(ConfigError, match="no scored run yet, only 4 evaluations"):
        command.main(["--report", "--out", str(tmp_path)])


def test_pictures_are_named_where_they_are(
    config: StudyConfig, corpus: Corpus, tmp_path: Path
) -> None:
    cells = plan(config, corpus, tmp_path)
    finish(tmp_path, cells[0])
    (tmp_path / "cells" / cells[0].key / "pictures.npz").write_bytes(b"")
    assert gather(tmp_path)
    assert read_jsonl(tmp_path / "results.jsonl")[0]["pictures"].endswith("pictures.npz")


def test_notes_name_their_seeds_and_label_counts(
    config: StudyConfig, corpus: Corpus, tmp_path: Path
) -> None:
    config = replace(config, labels=(1.0, 2.0))
    cells = plan(config, corpus, tmp_path)
    for cell in cells:
        lacking = cell.labels == 2 and cell.seed == 1
        finish(tmp_path, cell, ("everywhere", *(["class 2 is lacking"] if lacking else [])))
    assert gather(tmp_path)
    notes = read_json(tmp_path / "study.json")["notes"]
    assert "everywhere" in notes
    assert "2 labelled subjects, seed 1: class 2 is lacking" in notes
    assert notes[0] == "some note"
    assert any(n.startswith("class 2 does not occur in the 1 validation subjects") for n in notes)
    assert any(n.startswith("class 2 does not occur in the 1 test subjects") for n in notes)


def test_places() -> None:
    everyone = [{"labels": n, "seed": s} for n in (1.0, 8.0) for s in (0, 1, 2)]
    assert places(everyone, everyone) == []
    assert places(everyone[:3], everyone) == ["all labels, every seed"]
    assert places(everyone[1:5], everyone) == [
        "all labels, seeds 1, 2",
        "8 labelled subjects, seeds 0, 1",
    ]


def test_failed_cells_are_told(
    config: StudyConfig, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = scored_cells(config, {})
    failed = {
        cells[1].key: DivergedError("the gradient was not finite in 10 steps in a row"),
        "pretraining mae": OSError("no memory"),
    }
    write_plan(config, corpus, SPLITS, cells, failed, tmp_path)
    finish(tmp_path, cells[0])
    assert gather(tmp_path)
    about = read_json(tmp_path / "study.json")
    assert [(row["arm"], row["seed"], row["diverged"]) for row in about["failed"]] == [
        ("mae", 0, True)
    ]
    assert "pretraining mae was not run: no memory" in about["notes"]
    assert main(["compare", "--report", "--out", str(tmp_path)]) == 3
    assert "warning: 1 run ended in an error, the first: the gradient" in capsys.readouterr().out


def given_run(folder: Path, subjects: list[str] | None, trained: bool = True) -> Path:
    folder.mkdir(parents=True)
    provenance = {"method": "mae", "corpus_sha256": "hash"}
    save_encoder(folder, VIT, ViT3D(VIT).state_dict(), provenance)
    method = {"name": "mae"}
    data = {"corpus": "c", "subjects": subjects}
    config = {"method": method, "data": data, "global_batch": 8, "steps": 4}
    write_json(folder / "config.json", config)
    verdict = {"learned": trained, "loss": 0.5, "floor": 1.0}
    write_json(folder / "pretext.json", {"pretext": verdict, "flops": 1e9, "seconds": 3.0})
    write_jsonl(folder / "metrics.jsonl", [{"step": s, "loss": 1 / (s + 1)} for s in range(4)])
    return folder


def test_a_given_run_that_saw_held_out_subjects_is_told_loudly(
    config: StudyConfig, corpus: Corpus, tmp_path: Path
) -> None:
    run = given_run(tmp_path / "run", ["a", "c", "elsewhere"])
    cells = plan(replace(config, arms=("scratch", f"mine={run}")), corpus, tmp_path)
    for cell in cells:
        finish(tmp_path, cell)
    outcome = command.main(["--report", "--out", str(tmp_path)])
    (entry,) = read_json(tmp_path / "pretraining.json")
    assert entry["leaked"] == ["c"]
    assert entry["flops"] == 1e9
    page = (tmp_path / "report.html").read_text()
    assert '<p class="banner">mine was pretrained on subjects that this study holds out (c)' in page
    assert outcome.figures["pretraining"][0]["leaked"] == ["c"]


def test_what_is_doubtful_about_a_given_encoder_is_a_warning(
    config: StudyConfig, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who was seen is known by files: a name that another corpus has too is only a doubt."""
    run = given_run(tmp_path / "run", ["c", "d"])
    write_json(run / "trained_on.json", {"subjects": ["c", "d"], "sources": ["file of d"]})
    card = read_json(run / "encoder.json")
    write_json(run / "encoder.json", card | {"normalise": "percentile"})
    cells = plan(replace(config, arms=("scratch", f"mine={run}")), corpus, tmp_path)
    for cell in cells:
        finish(tmp_path, cell)
    file = tmp_path / "cells" / cells[-1].key / "result.json"
    result = read_json(file) | {"doubts": [f"encoder.blocks.{i} keeps" for i in range(5)]}
    write_json(file, result)
    assert main(["compare", "--report", "--out", str(tmp_path)]) == 3
    said = capsys.readouterr().out
    for words in (
        "warning: mine: the encoder is only in part that of its weights: encoder.blocks.0 keeps, ",
        " and 2 more",
        "was pretrained with normalise percentile and is fine-tuned with zscore",
        "1 OF 1 TEST SUBJECTS WERE PRETRAINED ON",
        "or deal others by --data.split.seed N",
        "1 of 1 validation subjects bear names",
    ):
        assert words in said
    (entry,) = read_json(tmp_path / "pretraining.json")
    assert entry["leaked"] == ["d"]
    page = (tmp_path / "report.html").read_text()
    assert "mine was pretrained on subjects that this study holds out (d)" in page
    assert "only in part that of its weights" in page


def test_who_a_given_run_saw(tmp_path: Path) -> None:
    honest = given_run(tmp_path / "honest", ["a", "b"])
    assert leaked_subjects(honest, {"c", "d"}, "hash") == []
    everyone = given_run(tmp_path / "everyone", None)
    assert leaked_subjects(everyone, {"c", "d"}, "hash") == ["c", "d"]
    assert leaked_subjects(everyone, {"c", "d"}, "another corpus") is None
    assert run_of(everyone / "encoder.safetensors") == everyone
    (everyone / "metrics.jsonl").unlink()
    assert run_of(everyone) is None


def test_an_encoder_without_its_run_learned_nothing_that_is_known(
    config: StudyConfig, corpus: Corpus, tmp_path: Path
) -> None:
    lone = tmp_path / "lone"
    lone.mkdir()
    save_encoder(lone, VIT, ViT3D(VIT).state_dict(), {"method": "mae"})
    row = external_row("mine", lone, {"c"}, "hash", tmp_path)
    assert row["trained"] is None
    assert row["leaked"] is None
    arms = ("scratch", f"mine={lone}", "gone=/nope")
    cells = plan(replace(config, arms=arms), corpus, tmp_path)
    for cell in cells:
        finish(tmp_path, cell)
    assert gather(tmp_path)
    study = Study.load(tmp_path)
    assert [p["arm"] for p in study.pretraining] == ["mine"]
    said = " ".join(s.whole for s in gate_statements(study))
    assert "learned its pretext task" not in said
    assert leaks(study) == []
    assert "mine, given by path, was pretrained on subjects" in leak_limits(study)[0]
    found = summarise(study)[0].comparison("mine", "scratch")
    assert found is not None
    assert all(found.ledgers[led, "flops"].ratio is None for led in LEDGERS[1:])


def test_a_given_arm_is_compared_with_simclr(tmp_path: Path) -> None:
    assert ("mine", "simclr") in pairs_of(["scratch", "simclr", "mine"])
    assert pairs_of(["simclr", "simclr-flops"]) == []


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (("scratch", "mae", "mae=/run"), "both called mae"),
        (("scratch", "scratch=/run"), "takes a name that is kept"),
        (("mae", "simclr-flops=/run"), "takes a name that is kept"),
        (("a=/one", "a=/two"), "both called a"),
        (("my_run=/one", "my-run=/two"), "both called my-run"),
        (("scratch", "=/run"), "must be NAME=PATH"),
        (("scratch", "mine="), "must be NAME=PATH"),
    ],
)
def test_names_of_given_arms(config: StudyConfig, arms: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(config, arms=arms)


def test_an_arm_of_a_known_method_can_be_given_in_its_place(config: StudyConfig) -> None:
    given = replace(config, arms=("scratch", "mae=/run"))
    assert pretrainings(given) == []


def test_classes_and_labels_are_not_one_study(config: StudyConfig) -> None:
    with pytest.raises(ConfigError, match=r"heads .* mix classify with unetr"):
        replace(config, heads=("unetr", "classify"))


def classified(**more: Any) -> dict[str, Any]:
    row = {"arm": "scratch", "head": "classify", "labels": 1.0, "variant": "", "lr": 1e-3}
    return row | {"tuning": False, "crops": 0, "flops": 0.0, "seconds": 0.0} | more


def test_classification_is_reported_by_its_own_metrics(tmp_path: Path) -> None:
    rows = [
        classified(
            seed=seed, step=step, split=split, score=0.5 + step / 100, accuracy=0.61, auroc=0.72
        )
        for seed in (0, 1)
        for step, split in ((0, "validation"), (20, "validation"), (20, "test"))
    ]
    about = {"batch": 4, "metric": "balanced accuracy", "arms": ["scratch"], "name": "x"}
    write_jsonl(tmp_path / "results.jsonl", rows)
    write_json(tmp_path / "study.json", about)
    page = (
        command.main(["--report", "--out", str(tmp_path)])
        and (tmp_path / "report.html").read_text()
    )
    assert "AUROC" in page
    assert "0.610 ± 0.000" in page
    assert "HD95" not in page
    assert "Segmentations beside" not in page
    assert "classification, all labels" in page
    study = Study.load(tmp_path)
    assert json.dumps(headline(study, summarise(study)).whole)


def test_a_study_of_an_earlier_version_is_drawn_and_not_mixed_with_another(
    config: StudyConfig, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 0.1.0 kept a variant's settings in plan.json, under names of its own."""
    cells = plan(replace(config, arms=("mae",)), corpus, tmp_path)
    text = json.loads((tmp_path / "plan.json").read_text())
    text["pretrainings"] = [{"arm": "mae", "variant": {"pretrain_lr": 0.0005}, "seed": None}]
    text["cells"][cells[0].key]["variant"] = "pretrain_lr 0.0005"
    text["about"] |= {"ablation": "rates", "ablation_axes": ["pretrain_lr"]}
    text["about"]["variants"] = {"pretrain_lr 0.0005": {"pretrain_lr": 0.0005}}
    write_json(tmp_path / "plan.json", text)
    finish(tmp_path, cells[0])
    folder = tmp_path / "pretrain" / "mae_pretrain-lr-0.0005"
    made = {"method": {"name": "mae"}, "global_batch": 8, "steps": 4}
    write_json(folder / "config.json", made)
    write_json(folder / "pretext.json", {"learned": True, "loss": 0.5, "floor": 1.0})
    (folder / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
    monkeypatch.setattr(study_run, "opened_corpus", lambda place: nullcontext((corpus, None)))
    here = replace(config, data=LabelledData("c.zarr"))
    with pytest.raises(ConfigError, match=r"varied pretrain_lr, .* into another --out") as refused:
        study_run.run_study(here, tmp_path)
    words = re.search(r"`mim3d compare (.*?)`", str(refused.value))
    assert words is not None
    assert command.main(words[1].split()).exit_code == 0
    (row,) = read_json(tmp_path / "pretraining.json")
    assert (row["variant"], row["crops"]) == ("pretrain_lr 0.0005", 32)
