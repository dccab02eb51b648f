"""A study goes on from its results alone: nothing is repeated that is there, nothing is lost."""

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small_finetune import VIT, make_labelled_corpus
from small_study import small_simclr, small_study

from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.report.report import build_report
from mim3d.engine.runs.encoder_file import save_encoder
from mim3d.engine.runs.files import read_json, read_jsonl, write_json, write_jsonl
from mim3d.engine.study.config import Row, StudyConfig
from mim3d.engine.study.gather import gather
from mim3d.engine.study.kept import lay_out
from mim3d.engine.study.run import run_study, splits_of

FILES = ("results.jsonl", "cases.jsonl", "pretraining.json", "plan.json", "study.json")
BESIDE = {"pictures", "picture"}
"""Pictures lie in the folders of the runs."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    plain = small_study(make_labelled_corpus(tmp_path_factory.mktemp("phantom")))
    return replace(
        plain,
        arms=("scratch", "simclr"),
        seeds=(0, 1),
        pretrain=replace(plain.pretrain, crops=16, simclr=small_simclr(0.5)),
        finetune=replace(plain.finetune, steps=1, lr=(1e-3, 2e-3), tuning_seeds=(100,)),
    )


@pytest.fixture(scope="module")
def whole(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, run to its end."""
    out = tmp_path_factory.mktemp("whole") / "study"
    run_study(config, out)
    return out


@pytest.fixture
def alone(whole: Path, tmp_path: Path) -> Path:
    """Its results, without the folders of its runs."""
    out = tmp_path / "alone"
    out.mkdir()
    for name in FILES:
        shutil.copy(whole / name, out)
    return out


def rows(folder: Path, name: str = "results.jsonl") -> list[Row]:
    found = read_jsonl(folder / name) if name.endswith("l") else read_json(folder / name)
    return [{k: v for k, v in row.items() if k not in BESIDE} for row in found]


def cells(folder: Path) -> list[Path]:
    return sorted(file.parent for file in (folder / "cells").glob("*/result.json"))


def as_of_some(folder: Path, wanted: Callable[[Row], bool]) -> None:
    """Leave some of the rows, as a study that was stopped has them."""
    for name in ("results.jsonl", "cases.jsonl"):
        write_jsonl(folder / name, list(filter(wanted, read_jsonl(folder / name))))


def test_nothing_is_repeated_where_all_is_done(
    config: StudyConfig, whole: Path, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_study(config, alone)
    printed = capsys.readouterr().out
    assert "8 runs are taken from" in printed
    assert not list((alone / "cells").glob("*/model.pt"))
    assert not list((alone / "pretrain").glob("*/config.json"))
    for name in ("results.jsonl", "cases.jsonl", "pretraining.json"):
        assert rows(alone, name) == rows(whole, name)
    then, now = (read_json(folder / "study.json") for folder in (whole, alone))
    assert now["splits"] == then["splits"]
    (note,) = set(now["notes"]) - set(then["notes"])
    assert note.startswith("8 runs are taken from the results of ")
    assert note in build_report(alone).read_text()

    run_study(config, alone)  # again: the folders are there now
    assert "taken from" not in capsys.readouterr().out
    assert rows(alone) == rows(whole)
    assert note in read_json(alone / "study.json")["notes"]


def test_what_is_missing_is_run_and_its_pretraining_comes_out_as_it_was(
    config: StudyConfig, whole: Path, alone: Path
) -> None:
    as_of_some(alone, lambda row: row["tuning"] or row["seed"] != 1)
    run_study(config, alone)
    made = {file.parent.name for file in (alone / "pretrain").glob("*/config.json")}
    assert made == {"simclr_seed-1"}
    exact = {"seconds", "cpu_seconds", "crops_per_s", "data_stall_share"}
    for name in ("results.jsonl", "pretraining.json"):
        found, expected = (
            [{k: v for k, v in row.items() if k not in exact} for row in rows(folder, name)]
            for folder in (alone, whole)
        )
        assert found == expected


def test_results_that_were_put_away_packed(
    config: StudyConfig, whole: Path, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("results.jsonl", "cases.jsonl"):
        (alone / f"{name}.gz").write_bytes(gzip.compress((alone / name).read_bytes()))
        (alone / name).unlink()
    run_study(config, alone)
    assert rows(alone) == rows(whole)
    assert f"8 runs are taken from {alone / 'results.jsonl.gz'}, for" in capsys.readouterr().out


def test_scores_of_single_cases_that_are_lost_are_told(
    config: StudyConfig, whole: Path, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (alone / "cases.jsonl").unlink()
    run_study(config, alone)
    assert "the scores of single cases are lost" in capsys.readouterr().out
    assert rows(alone) == rows(whole)
    assert any("single cases (cases.jsonl)" in n for n in read_json(alone / "study.json")["notes"])


def test_results_that_cannot_be_read_are_refused(config: StudyConfig, alone: Path) -> None:
    whole = gzip.compress((alone / "results.jsonl").read_bytes())
    (alone / "results.jsonl").unlink()
    for spoiled in (whole[:-30], b"none of gzip", gzip.compress(b"{")):
        (alone / "results.jsonl.gz").write_bytes(spoiled)
        with pytest.raises(CheckpointError, match=r"results.jsonl.gz cannot be read .*restore it"):
            run_study(config, alone)


def test_deleting_results_and_cells_runs_all_anew(
    config: StudyConfig, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "cells")
    (out / "results.jsonl").unlink()
    run_study(config, out)
    assert "taken from" not in capsys.readouterr().out
    assert len(list((out / "cells").glob("*/pictures.npz"))) == 8
    assert len(cells(out)) == 8


def test_half_laid_out_is_laid_out_to_the_end(
    config: StudyConfig, whole: Path, alone: Path
) -> None:
    run_study(config, alone)
    write_json(alone / "kept.json", {"complete": False})
    for folder in cells(alone)[3:]:
        shutil.rmtree(folder)
    run_study(config, alone)
    assert rows(alone) == rows(whole)
    assert not list((alone / "pretrain").glob("*/config.json"))


def test_an_encoder_that_came_out_otherwise_leaves_its_runs_out(
    config: StudyConfig, alone: Path
) -> None:
    as_of_some(alone, lambda row: row["tuning"] or row["arm"] == "scratch" or row["seed"] == 0)
    pretrained = read_json(alone / "pretraining.json")
    other = {"simclr_seed-0": "f" * 64}
    for row in pretrained:
        row["sha256"] = other.get(f"simclr_seed-{row['seed']}", row["sha256"])
    write_json(alone / "pretraining.json", pretrained)
    found = read_jsonl(alone / "results.jsonl")
    for row in found:
        if row["arm"] == "simclr" and row["seed"] == 0:
            row["pretraining_sha256"] = "f" * 16
    write_jsonl(alone / "results.jsonl", found)
    run_study(config, alone)
    assert not (alone / "pretrain" / "simclr_seed-0" / "config.json").exists()  # none needs it
    two_heads = replace(config, heads=(*config.heads, "linear"))
    run_study(two_heads, alone)
    left_out = read_json(alone / "study.json")["left_out"]
    assert any("1 result of simclr left out: started from another encoder" in s for s in left_out)
    kept = [row for row in read_jsonl(alone / "results.jsonl") if row["head"] == config.heads[0]]
    assert {(row["arm"], row["seed"]) for row in kept if not row["tuning"]} == {
        ("scratch", 0),
        ("scratch", 1),
        ("simclr", 1),
    }


def test_runs_of_which_no_encoder_is_known_are_made_anew(
    config: StudyConfig, whole: Path, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (alone / "pretraining.json").unlink()
    run_study(config, alone)
    printed = capsys.readouterr().out
    assert "4 runs are taken from" in printed
    assert "4 runs are made anew, for nothing tells with which encoder they began" in printed
    assert {row["pretraining_sha256"] for row in rows(alone) if row["arm"] == "simclr"} == {
        row["pretraining_sha256"] for row in rows(whole) if row["arm"] == "simclr"
    }


@pytest.mark.parametrize("lost", ["the test", "the last evaluation", "the first"])
def test_runs_whose_rows_were_cut_short_are_made_anew(
    config: StudyConfig, whole: Path, alone: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    def is_lost(row: Row) -> bool:
        if row["arm"] != "scratch" or row["seed"] != 1:
            return False
        places = {"the test": ("test", 1), "the first": ("validation", 0)}
        return (row["split"], row["step"]) == places.get(lost, ("validation", 1))

    as_of_some(alone, lambda row: not is_lost(row) if "step" in row else True)
    run_study(config, alone)
    assert "1 run is made anew, for not all their rows are in results.jsonl: scratch" in (
        capsys.readouterr().out
    )
    clocks = {"seconds", "cpu_seconds"}
    found, expected = (
        [{k: v for k, v in row.items() if k not in clocks} for row in rows(folder)]
        for folder in (alone, whole)
    )
    assert found == expected


def test_what_classes_were_learned_is_not_known_of_results_alone(
    config: StudyConfig, alone: Path
) -> None:
    data = replace(config.data, targets="who.csv")
    asked = replace(config, heads=("classify",), data=data)
    corpus = Corpus.open(config.data.corpus)
    with pytest.raises(ConfigError, match="of what table of targets they are: restore these"):
        lay_out(asked, corpus, splits_of(config, corpus), alone)


def test_an_encoder_given_by_path(config: StudyConfig, tmp_path: Path) -> None:
    given, out = tmp_path / "given", tmp_path / "study"
    save(given, 0.5)
    config = replace(config, arms=("scratch", f"mine={given}"), seeds=(0,))
    run_study(config, out)
    before = rows(out)
    shutil.rmtree(out / "cells")
    run_study(config, out)
    assert rows(out) == before

    save(given, 2.0)
    shutil.rmtree(out / "cells")
    run_study(config, out)  # other weights: those runs are made anew
    hashes = {row["pretraining_sha256"] for row in rows(out) if row["arm"] == "mine"}
    assert len(hashes) == 1
    assert hashes.isdisjoint(row.get("pretraining_sha256") for row in before)


def save(folder: Path, scale: float) -> None:
    folder.mkdir(exist_ok=True)
    weights = {name: scale * tensor for name, tensor in ViT3D(VIT).state_dict().items()}
    save_encoder(folder, VIT, weights, {"method": "mae"})


def as_it_is(config: StudyConfig) -> StudyConfig:
    return config


def longer(config: StudyConfig) -> StudyConfig:
    return replace(config, finetune=replace(config.finetune, steps=2))


def other_deal(config: StudyConfig) -> StudyConfig:
    split = replace(config.data.split, seed=1)
    return replace(config, data=replace(config.data, split=split))


def fewer_seeds(config: StudyConfig) -> StudyConfig:
    return replace(config, seeds=(0,))


def no_plan(folder: Path) -> None:
    (folder / "plan.json").unlink()


def earlier_plan(folder: Path) -> None:
    plan = read_json(folder / "plan.json")
    write_json(folder / "plan.json", {k: v for k, v in plan.items() if k != "origins"})


def other_corpus(folder: Path) -> None:
    plan = read_json(folder / "plan.json")
    write_json(folder / "plan.json", plan | {"corpus_sha256": "0" * 64})


def other_people(folder: Path) -> None:
    plan = read_json(folder / "plan.json")
    plan["about"]["splits"]["train"] = plan["about"]["splits"]["train"][1:]
    write_json(folder / "plan.json", plan)


def other_number(folder: Path) -> None:
    found = [row | {"n_labelled": 99} for row in read_jsonl(folder / "results.jsonl")]
    write_jsonl(folder / "results.jsonl", found)


def nothing(folder: Path) -> None:
    assert folder.exists()


@pytest.mark.parametrize(
    ("spoil", "ask", "words"),
    [
        (nothing, longer, "with finetune.steps 1, not 2: ask for the same, or choose another"),
        (nothing, other_deal, "with data.split.seed 0, not 1"),
        (nothing, fewer_seeds, "results of 2 runs that are not asked for"),
        (earlier_plan, as_it_is, "nor a plan.json that tells of what settings they are"),
        (no_plan, as_it_is, "nor a plan.json that tells of what settings they are"),
        (other_corpus, as_it_is, "with a corpus of sha256 0000000000000000, not "),
        (other_people, as_it_is, "with train subjects "),
        (other_number, as_it_is, "tells of 99 labelled subjects in "),
    ],
)
def test_other_results_are_refused_and_stay_as_they_are(
    config: StudyConfig,
    alone: Path,
    spoil: Callable[[Path], None],
    ask: Callable[[StudyConfig], StudyConfig],
    words: str,
) -> None:
    spoil(alone)
    before = {file.name: file.read_bytes() for file in alone.iterdir() if file.is_file()}
    with pytest.raises(ConfigError) as refused:
        run_study(ask(config), alone)
    assert words in str(refused.value)
    for name in FILES:
        assert name not in before or (alone / name).read_bytes() == before[name]
    with pytest.raises(ConfigError):  # as firmly the second time
        run_study(ask(config), alone)


def test_runs_whose_folders_are_gone_are_told_and_made_anew(
    config: StudyConfig, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    shutil.copytree(whole, out)
    gone = cells(out)[-1]
    shutil.rmtree(gone)
    assert gather(out)
    (line,) = read_json(out / "study.json")["left_out"]
    assert line.startswith(f"1 result left out: {gone.name} had one")
    run_study(config, out)
    assert read_json(out / "study.json")["left_out"] == []
    assert len(cells(out)) == len(cells(whole))


def test_a_pretraining_that_is_gone_is_not_repeated_for_nothing(
    config: StudyConfig, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "pretrain")
    run_study(config, out)
    assert not list((out / "pretrain").glob("*/config.json"))
    assert rows(out, "pretraining.json") == rows(whole, "pretraining.json")
    assert json.loads((out / "study.json").read_text())["left_out"] == []
