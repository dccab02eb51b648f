"""Fine-tuning on two processes: one process's losses and scores, and resuming across counts."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import small_finetune
import torch
from rank_nursery import Nursery
from small_finetune import make_labelled_corpus

from mim3d.engine.commands import finetune as command
from mim3d.engine.runs.files import read_json
from mim3d.engine.training.metrics import METRICS, read_rows

pytestmark = pytest.mark.slow
SCRIPT = Path(str(small_finetune.__file__))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled_corpus(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[..., str]]:
    """Run the script as so many ranks: (ranks, corpus, out, head, accum, stop at)."""
    nursery = Nursery("small_finetune")

    def printed(ranks: int, *words: object) -> str:
        done = nursery.launch(ranks, SCRIPT, *words)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    yield printed
    nursery.close()


def assert_same_run(out: Path, other: Path) -> None:
    mine, theirs = read_rows(out / METRICS), read_rows(other / METRICS)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs] == [1, 2, 3, 4, 5, 6]
    for row, wanted in zip(mine, theirs, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=2e-6)
        assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)
    results = [read_json(run / "result.json") for run in (out, other)]
    for row, wanted in zip(results[0]["rows"], results[1]["rows"], strict=True):
        assert (row["split"], row["step"]) == (wanted["split"], wanted["step"])
        assert row["score"] == pytest.approx(wanted["score"], abs=2e-3)
    cases = [[(c["split"], c["volume"]) for c in result["cases"]] for result in results]
    assert cases[0] == cases[1]


@pytest.mark.parametrize(("head", "accum"), [("unetr", "1"), ("classify", "1"), ("linear", "2")])
def test_two_ranks_agree_with_one(
    launch: Callable[..., str], corpus: Path, tmp_path: Path, head: str, accum: str
) -> None:
    printed = launch(2, corpus, tmp_path / "two", head, accum)
    assert "rank 0 rows 5 False" in printed and "rank 1 rows 5 False" in printed
    launch(1, corpus, tmp_path / "one", head)
    assert_same_run(tmp_path / "two", tmp_path / "one")
    nets = [torch.load(tmp_path / run / "model.pt", weights_only=True) for run in ("one", "two")]
    for key, value in nets[0].items():
        torch.testing.assert_close(nets[1][key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2)])
def test_told_to_stop_a_run_goes_on_at_any_number_of_ranks(
    launch: Callable[..., str], corpus: Path, tmp_path: Path, before: int, after: int
) -> None:
    """A signal on one rank stops all; sharded checkpoints fit one rank as well as two."""
    out = tmp_path / "run"
    printed = launch(before, corpus, out, "unetr", "1", "4")
    assert printed.count("True") == before
    assert "told to stop: step" in printed
    assert list((out / "checkpoints").glob("step-*"))
    assert "going on from the checkpoint of step" in launch(after, corpus, out, "unetr")
    launch(1, corpus, tmp_path / "whole", "unetr")
    assert_same_run(out, tmp_path / "whole")


def test_the_command_starts_ranks_itself(corpus: Path, tmp_path: Path) -> None:
    words = ["demo", "--data.corpus", str(corpus), "--out", str(tmp_path / "run")]
    words += ["--head", "linear", "--vit.crop-size", "16", "16", "16", "--vit.width", "12"]
    words += ["--vit.depth", "1", "--vit.heads", "2", "--steps", "2", "--eval-every", "1"]
    words += ["--global-batch", "2", "--device", "cpu", "--nproc", "2"]
    figures = command.main(words).figures
    assert (figures["step"], figures["nproc"]) == (2, 2)
    assert read_rows(tmp_path / "run" / METRICS)[-1]["world"] == 2
    again = command.main(words).figures
    assert json.dumps(again, default=str) == json.dumps(figures, default=str)
