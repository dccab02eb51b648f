"""Every recipe fits one GPU of 80 GB, as planned by the command; one that cannot is known."""

from dataclasses import replace

import pytest

from mim3d.dataio.loader.config import LoaderConfig
from mim3d.engine.commands.plan import main as plan
from mim3d.engine.errors import ConfigError
from mim3d.engine.planning.corpus import CorpusFacts
from mim3d.engine.planning.memory import device_cache_gb
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.recipes import MADE_FOR, RECIPES, recipe

GPU = ["--memory-gb", "80"]
MANY_PAIRS = {"btcv-swin-simclr": 8}
"""The paper's batch of pairs, which cannot be parted, and the GPUs that hold it."""
SLOW = {"btcv-swin-simmim", "btcv-swin-simclr"}  # MONAI builds the encoder in memory


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in RECIPES]
)
def test_a_recipe_fits_one_gpu_of_80_gb(name, capsys):
    if name in MANY_PAIRS:
        with pytest.raises(ConfigError, match="raise --gpus"):
            plan([name, "--gpus", "1", *GPU])
    plan([name, "--gpus", str(MANY_PAIRS.get(name, 1)), *GPU])
    assert "a micro-batch" in capsys.readouterr().out


@pytest.mark.parametrize("name", [n for n in RECIPES if MADE_FOR[n]])
def test_on_the_gpus_it_was_made_for_a_step_is_the_same_batch(name):
    config = recipe(name)
    for gpus in {1, 2, MADE_FOR[name]}:
        part = config.for_ranks(gpus)
        assert part.micro_batch(gpus) == config.micro_batch(gpus)
        assert part.micro_batch(gpus) * gpus * part.parallel.grad_accum == config.global_batch
        assert part.for_ranks(gpus) == part
        assert replace(part, parallel=config.parallel) == config
        if config.max_micro_batch:
            assert part.micro_batch(gpus) <= config.max_micro_batch


@pytest.mark.parametrize(
    ("batch", "accum", "most", "world", "parts"),
    [
        (256, 1, 0, 1, 1),
        (256, 1, 64, 1, 4),
        (256, 1, 64, 4, 1),
        (256, 2, 64, 1, 4),
        (256, 8, 64, 1, 8),
        (96, 1, 64, 1, 2),
        (70, 1, 64, 1, 2),
        (7, 1, 4, 1, 7),
        (10, 1, 4, 3, 1),  # does not part at all: refused as ever
        (1, 1, 1, 1, 1),
    ],
)
def test_a_share_is_parted_into_as_few_as_fit(batch, accum, most, world, parts):
    parallel = replace(recipe("demo-mae").parallel, grad_accum=accum)
    config = PretrainConfig(global_batch=batch, max_micro_batch=most, parallel=parallel)
    found = config.for_ranks(world)
    assert found.parallel.grad_accum == parts
    if batch % (world * accum):
        with pytest.raises(ConfigError, match="must be a multiple"):
            found.micro_batch(world)


def test_pairs_that_are_contrasted_are_not_parted_behind_ones_back():
    config = recipe("demo-simclr")
    with pytest.raises(ConfigError, match=r"set it to 0, or parallel.grad_accum"):
        replace(config, max_micro_batch=4)
    replace(config, max_micro_batch=0)
    replace(config, parallel=replace(config.parallel, grad_accum=2))


@pytest.mark.parametrize(
    ("keeps", "budget", "wanted"),
    [
        ("auto", 9.0, 8.0),  # all voxels
        ("voxels", 9.0, 8.0),
        ("voxels", 7.0, 8.0),  # kept or refused, and a need says so
        ("chunks", 9.0, 3.0),
        ("auto", 7.0, 3.0),  # all chunks
        ("auto", 2.0, 2.0),
    ],
)
def test_a_known_corpus_takes_what_the_loader_would_keep_of_it(keeps, budget, wanted):
    facts = CorpusFacts(10, 3.0, 1.0, 0.75, 2.0, 8.0, ("int16",), ())
    loader = LoaderConfig(cache="device", cache_bytes=int(budget * 1e9), device_keeps=keeps)
    assert device_cache_gb(loader, facts) == pytest.approx(wanted)
    assert device_cache_gb(loader, None) == budget
