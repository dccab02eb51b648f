"""`mim3d bench --quick` makes every stage small, and what a user asks for overrides it."""

import pytest

from mim3d.bench.convert.options import ConvertBench
from mim3d.bench.kernels.options import KernelsBench
from mim3d.bench.loader.options import LoaderBench, SpatialBench, ViewsBench
from mim3d.bench.step.options import OptimBench, StepBench
from mim3d.engine.commands import bench
from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.bench import QUICK, STAGES, main, quick
from mim3d.engine.commands.outcome import Outcome

OPTIONS = {
    "convert": ConvertBench,
    "loader": LoaderBench,
    "kernels": KernelsBench,
    "optim": OptimBench,
    "step": StepBench,
    "views": ViewsBench,
    "spatial": SpatialBench,
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_quick_form_that_it_takes(stage):
    words = quick(stage, ["--peers", "--quick", "--rounds", "7"])
    found = parse(OPTIONS[stage], words, f"mim3d bench {stage}")
    assert found.rounds == 7  # what a user asks for stands last
    assert found.peers
    assert found != parse(OPTIONS[stage], ["--peers", "--rounds", "7"], f"mim3d bench {stage}")


def test_without_the_word_nothing_is_added():
    assert quick("step", ["--peers"]) == ["--peers"]
    assert QUICK.keys() == STAGES.keys()


def test_all_hands_each_stage_its_own_words(monkeypatch):
    asked = {}

    def run(name, options):
        asked[name] = options
        return Outcome()

    monkeypatch.setattr(bench, "run_stage", run)
    main(["all", "--quick"])
    assert asked == {name: words.split() for name, words in QUICK.items()}
