"""The optimiser's bench runs, and says what it could not time."""

import pytest

from mim3d.bench.step.optim import main, make_updates
from mim3d.engine.distributed.process_group import process_ranks
from mim3d.engine.pretrain.recipes import recipe
from mim3d.engine.training.optim import apex_problem


def test_the_bench_names_what_is_missing(capsys):
    if apex_problem() is None:
        pytest.skip("apex is built here")
    figures = main(["--steps", "1", "--rounds", "1"]).figures
    assert set(figures["seconds"]) == {
        "mim3d, clipped",
        "torch AdamW fused",
        "torch AdamW fused, clipped",
        "torch AdamW foreach",
        "torch AdamW foreach, clipped",
    }
    assert all(seconds > 0 for seconds in figures["seconds"].values())
    assert figures["rounds"] == figures["cpu_rounds"]
    assert figures["wall_rounds"].keys() == figures["rounds"].keys()
    assert not any(ratio["resolved"] for ratio in figures["ratios"].values())  # of one round
    assert "github.com/NVIDIA/apex" in figures["not_available"]["apex FusedAdam"]
    assert "apex FusedAdam: NVIDIA apex is not installed" in capsys.readouterr().out


def test_every_contestant_updates_more_than_once():
    with process_ranks(60.0) as ranks:
        contestants, _ = make_updates(recipe("demo-mae"), ranks)
        for update in contestants.values():
            update()
            update()
