"""Ways out of a divergence: what counts as healthy, going back, and every remedy that is named."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_run import make_corpus, poison_samples, small_config

from mim3d.engine.errors import ConfigError, DivergedError
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.runs.checkpoint import Checkpointer
from mim3d.engine.runs.checkpoint_files import committed, read_facts
from mim3d.engine.runs.encoder_file import read_card
from mim3d.engine.training.config import DivergenceConfig
from mim3d.engine.training.metrics import read_rows
from mim3d.engine.training.rewinds import REWINDS


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def config(corpus: Path) -> PretrainConfig:
    """Twelve steps of four samples, saved after every third; three bad steps are too many."""
    base = small_config(corpus, steps=12)
    return dataclasses.replace(base, log=dataclasses.replace(base.log, max_bad_steps=3))


def rewinding(config: PretrainConfig, **changes: float) -> PretrainConfig:
    divergence = DivergenceConfig("rewind", **changes)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(config, divergence=divergence)


@contextmanager
def poisoned(samples: range, patch: pytest.MonkeyPatch) -> Iterator[None]:
    with patch.context() as inner:
        poison_samples(samples, inner.setattr)
        yield


def saved_steps(out: Path) -> list[int]:
    return [read_facts(folder)[0].step for folder in committed(out / "checkpoints")]


def test_a_run_goes_back_skips_the_samples_and_lowers_the_rate(
    config: PretrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Steps 5 to 7 of samples 16 to 27 are bad; the run goes on from step 3 with sample 28."""
    out, plain = tmp_path / "run", tmp_path / "plain"
    run_pretrain(config, plain)
    with poisoned(range(16, 28), monkeypatch):
        result = run_pretrain(rewinding(config, rewind_rate=0.25), out)
    rows, before = (read_rows(run / "metrics.jsonl") for run in (out, plain))
    assert [row["step"] for row in rows] == list(range(1, 13))
    for row, wanted in zip(rows, before, strict=True):
        scale = 1.0 if row["step"] <= 3 else 0.25
        assert row["lr"] == pytest.approx(scale * wanted["lr"])
        assert ("rewinds" in row) == (row["step"] > 3)
        assert (row["loss"] == wanted["loss"]) == (row["step"] <= 3)
        assert row["flops"] == pytest.approx(
            wanted["flops"] + 4 * before[0]["flops"] * (row["step"] > 3)
        )
    expected = {"rewinds": 1, "lr_scale": 0.25, "redone_steps": 4, "skipped_samples": 16}
    assert {name: rows[-1][name] for name in expected} == expected
    assert {name: result.figures[name] for name in expected} == expected
    assert rows[-1]["bad_steps"] == 3  # what was gone back over is counted
    (record,) = json.loads((out / REWINDS).read_text())
    assert (record["at_step"], record["first_bad"], record["to_step"]) == (7, 5, 3)
    assert record["sample"] == 28
    assert "16 samples skipped" in read_card(out)[1]["rewinds"][0]
    printed = capsys.readouterr().out
    assert re.search(r"step 5 was skipped, its gradient is not finite: volumes \w+", printed)
    assert "REWOUND from step 7 to the checkpoint of step 3" in printed
    assert max(saved_steps(out)) == 12


def test_skipped_steps_are_told_with_the_volumes_of_the_micro_batch(
    config: PretrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rows are made every sixth step; of four micro-batches one is bad."""
    log = dataclasses.replace(config.log, every=6)
    parallel = dataclasses.replace(config.parallel, grad_accum=4)
    config = dataclasses.replace(config, log=log, parallel=parallel, steps=6)
    volumes: list[str] = []
    with poisoned(range(9, 10), monkeypatch):
        run_pretrain(config, tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    (skipped,) = rows[-1]["skipped_steps"]
    volumes = skipped["volumes"]
    assert skipped["step"] == 3
    assert len(volumes) == 1
    assert f"step 3 was skipped, its gradient is not finite: volumes {volumes[0]}\n" in (
        capsys.readouterr().out
    )
    assert "skipped_steps" not in rows[0]


def test_a_crash_while_going_back_goes_back_too(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is there, what was gone back over still is, and nothing was loaded yet."""
    config = rewinding(config)
    with poisoned(range(16, 28), monkeypatch):
        run_pretrain(config, tmp_path / "whole")

        def crash(self: Checkpointer, step: int) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Checkpointer, "discard_after", crash)
            with pytest.raises(KeyboardInterrupt):
                run_pretrain(config, tmp_path / "broken")
        assert max(saved_steps(tmp_path / "broken")) == 6
        run_pretrain(config, tmp_path / "broken")
    one, two = (load_file(tmp_path / run / "encoder.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    rows = [read_rows(tmp_path / run / "metrics.jsonl") for run in ("whole", "broken")]
    for mine, theirs in zip(*rows, strict=True):
        for name in ("step", "lr", "loss", "skipped_samples"):
            assert mine.get(name) == theirs.get(name)


def test_a_checkpoint_that_leads_nowhere_gives_way_to_an_older_one_and_at_last_all_stops(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = dataclasses.replace(config.checkpoint, every=2, keep=4, keep_best=False)
    config = rewinding(dataclasses.replace(config, checkpoint=checkpoint), max_rewinds=2)
    with poisoned(range(16, 1000), monkeypatch):
        with pytest.raises(DivergedError, match=r"after going back 2 times, steps 3 to 5") as ended:
            run_pretrain(config, tmp_path)
        records = json.loads((tmp_path / REWINDS).read_text())
        assert [record["to_step"] for record in records] == [4, 2]
        assert [record["lr_scale"] for record in records] == [0.5, 0.25]
    assert "\n" not in str(ended.value)
    assert "--max-rewinds above 2" in str(ended.value)
    assert saved_steps(tmp_path)[0] == 2
    # The remedy, where the reason is gone.
    more = dataclasses.replace(config.divergence, max_rewinds=3)
    result = run_pretrain(dataclasses.replace(config, divergence=more), tmp_path)
    assert (result.step, result.figures["rewinds"]) == (12, 2)


REMEDIES: dict[str, Callable[[PretrainConfig], PretrainConfig]] = {
    "--on-divergence rewind": rewinding,
    "a lower --schedule.lr": lambda c: dataclasses.replace(
        c, schedule=dataclasses.replace(c.schedule, lr=c.schedule.lr / 10)
    ),
    "a smaller --optim.clip-norm": lambda c: dataclasses.replace(
        c, optim=dataclasses.replace(c.optim, clip_norm=0.1)
    ),
    "--parallel.precision bf16 or fp32": lambda c: dataclasses.replace(
        c, parallel=dataclasses.replace(c.parallel, precision="bf16")
    ),
}


@pytest.mark.parametrize("remedy", REMEDIES)
def test_what_a_diverged_run_is_told_to_do_works(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remedy: str
) -> None:
    """Samples of steps 5 to 8 are bad, the checkpoint of step 6 is not healthy and goes."""
    with poisoned(range(16, 32), monkeypatch):
        with pytest.raises(DivergedError, match=r"in 3 steps in a row, steps 5 to 7") as ended:
            run_pretrain(config, tmp_path)
        assert remedy in str(ended.value)
        assert "the checkpoint of step 3, from before them, is healthy" in str(ended.value)
        assert saved_steps(tmp_path) == [3]
        if remedy == "--on-divergence rewind":
            assert run_pretrain(REMEDIES[remedy](config), tmp_path).step == 12
            return
    assert run_pretrain(REMEDIES[remedy](config), tmp_path).step == 12
    (record,) = json.loads((tmp_path / "config.json").read_text())["history"]
    assert record["at_step"] == 3
    assert record["changed"] in {"schedule.lr", "optim.clip_norm", "parallel.precision"}


def test_without_a_healthy_checkpoint_another_run_is_advised_and_works(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with poisoned(range(4, 16), monkeypatch):
        with pytest.raises(
            DivergedError, match=r"no checkpoint is from before them.*another --out"
        ):
            run_pretrain(config, tmp_path / "run")
        assert saved_steps(tmp_path / "run") == [3]  # one stays, healthy or not
        result = run_pretrain(rewinding(config), tmp_path / "another")
    assert (result.step, result.figures["rewinds"]) == (12, 1)


@pytest.mark.parametrize("wrong", [{"max_rewinds": 0}, {"rewind_rate": 0.0}])
def test_numbers_of_a_divergence_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DivergenceConfig(**wrong)
