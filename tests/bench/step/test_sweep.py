"""The sweep chooses by what the noise resolves, names what bounds, and its settings train."""

import dataclasses
import shlex

import pytest
import torch

from mim3d.bench.corpora import bench_corpus, many_volumes
from mim3d.bench.step import sweep
from mim3d.bench.step.options import StepBench
from mim3d.bench.step.settings import Setting, ahead_choices, cheapest_best, reading_choices
from mim3d.bench.step.stage import main
from mim3d.bench.step.sweep import bound_by, run_sweep, sweep_compute
from mim3d.engine.commands.cli import main as command
from mim3d.engine.distributed.process_group import process_ranks
from mim3d.engine.errors import ConfigError
from mim3d.engine.pretrain.recipes import recipe

STEADY = [100.0, 101.0, 99.0]


def times(factor: float) -> list[float]:
    return [factor * rate for rate in STEADY]


def test_the_cheapest_stays_unless_a_costlier_one_is_faster_beyond_noise():
    noisy = [90.0, 180.0, 100.0]
    assert cheapest_best({"one": STEADY, "two": noisy}) == "one"
    assert cheapest_best({"one": STEADY, "two": times(1.5), "four": times(1.5)}) == "two"
    assert cheapest_best({"one": STEADY, "two": times(0.5), "four": times(2)}) == "four"
    assert cheapest_best({"one": [1.0], "two": [9.0]}) == "one"  # of one round nothing is known


@pytest.mark.parametrize(
    ("compute", "loader", "together", "words"),
    [
        (STEADY, times(3), times(0.99), "compute: the loader alone gives 3.00"),
        (STEADY, times(0.5), times(0.49), "the loader: alone it gives 0.50"),
        (STEADY, times(1.5), times(0.6), "both together: they contend"),
        (STEADY, [80.0, 150.0, 90.0], STEADY, "neither alone: loader over compute is"),
    ],
)
def test_what_bounds_a_run_is_named(compute, loader, together, words):
    assert bound_by(compute, loader, together).startswith(words)


def test_settings_are_tried_cheapest_first():
    on_cpu, on_gpu = (list(reading_choices(torch.device(d))) for d in ("cpu", "cuda"))
    assert on_cpu[0] == "threads 1, cache none"
    assert on_gpu[:2] == ["threads 1, cache host", "threads 1, cache device"]
    assert list(ahead_choices()) == ["prefetch 2", "prefetch 4", "prefetch 8"]


OPTIONS = StepBench(steps=1, rounds=2, warmup=1)


def test_what_does_not_fit_is_left_out_and_said(monkeypatch):
    config = dataclasses.replace(recipe("demo-mae"), global_batch=2)
    make = sweep.make_stepper

    def full(config, *rest):
        if config.parallel.grad_accum == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to\nallocate")
        return make(config, *rest)

    monkeypatch.setattr(sweep, "make_stepper", full)
    left_out: dict[str, str] = {}
    with process_ranks(60.0) as ranks:
        setting = Setting(1, 1, "none", 2)
        rates = sweep_compute(OPTIONS, config, ranks, setting, left_out)
        assert list(rates) == ["2"]  # 4 do not divide a batch of 2
        assert left_out == {"1 micro-batches a step": "CUDA out of memory. Tried to"}


def test_more_ranks_are_refused(tmp_path):
    with process_ranks(60.0) as ranks:
        many = dataclasses.replace(ranks, world=2)
        with pytest.raises(ConfigError, match="here are 2: start it without torchrun"):
            run_sweep(OPTIONS, recipe("demo-mae"), many, tmp_path)


@pytest.mark.slow
def test_the_settings_it_recommends_train(tmp_path, capsys):
    volumes = many_volumes((64, 96, 96), 3)
    root = bench_corpus(tmp_path / "c.zarr", volumes, 1)
    short = ["--steps", "1", "--rounds", "2", "--warmup", "1", "--global-batch", "4"]
    figures = main([*short, "--sweep", "--corpus", str(root)]).figures
    text = capsys.readouterr().out
    last = text.splitlines()[-1].split()
    assert last[:3] == ["mim3d", "pretrain", "demo-mae"]
    assert last[3:] == figures["options"]
    assert set(figures["crops_per_s"]["chosen"]) == {"compute", "loader", "together"}
    assert f"bound by {figures['bound_by']}" in text
    words = ["--data.corpus", str(root), "--steps", "1", "--global-batch", "4"]
    assert command([*shlex.split(" ".join(last[1:])), *words, "--out", str(tmp_path / "run")]) == 0
