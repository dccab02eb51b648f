"""A step followed over tensors without memory: what is written down is what runs."""

import dataclasses
from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mim3d.bench.step.op_times import time_operations
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.flops import run_flops
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.planning.fusion import fused
from mim3d.engine.planning.laws import columns_of, names_of
from mim3d.engine.planning.operations import Operation, Part, fake_batch, step_work
from mim3d.engine.planning.sharding import meta_model
from mim3d.engine.pretrain.recipes import recipe

MODELS = {
    "demo-mae": ViTConfig((16, 16, 16), (8, 8, 8), width=24, depth=2, heads=2),
    "demo-simclr": ViTConfig((16, 16, 16), (8, 8, 8), width=24, depth=2, heads=2),
    "demo-primus-mae": PrimusConfig((16, 16, 16), (8, 8, 8), width=96, depth=2, heads=4),
    "demo-resenc-mae": ViTConfig((16, 16, 16), (8, 8, 8)),
    "demo-resenc-sparse-mae": ViTConfig((16, 16, 16), (8, 8, 8)),
}


def small(name):
    return dataclasses.replace(recipe(name), vit=MODELS[name])


def real_batch(config, b):
    empty = fake_batch(config, b)
    second = None if empty.second_view is None else torch.randn_like(empty.second_view)
    return dataclasses.replace(empty, image=torch.randn_like(empty.image), second_view=second)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_followed_is_what_runs(name):
    """Every operation of a real step, and no other, with its sizes and bytes."""
    config = small(name)
    work = step_work(config, 3, torch.float32)
    ran = time_operations(config.build(), real_batch(config, 3), lambda: 0.0)
    expected = Counter(
        (names_of(one), tuple(columns_of(one).items()))
        for one in work.operations
        if one.kind != "view"
    )
    found = Counter({(key.names, key.columns): tally.calls for key, tally in ran.tallies.items()})
    assert found == expected
    assert work.launches == ran.launches


@pytest.mark.parametrize(
    ("name", "published"), [("openmind-primus-m-mae", 4.62e12), ("openmind-resenc-mae", 8.40e12)]
)
def test_openminds_arithmetic_is_that_of_torchs_counter(name, published):
    """TFLOP a crop of 160^3, forward and backward, counted by torch; the plan within a tenth."""
    config = recipe(name)
    model = meta_model(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device="cpu")
        batch = fake_batch(config, 1)
        # Attention as products, which the counter knows.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(batch)[0].backward()
    counted = counter.get_total_flops()
    assert run_flops(config.method, config.vit, config.backbone) == pytest.approx(counted, rel=0.1)
    assert step_work(config, 1, torch.bfloat16).flops == pytest.approx(counted, rel=0.1)
    assert counted == pytest.approx(published, rel=0.01)


def test_blocks_are_marked_and_hold_their_own_operations():
    config = small("demo-mae")
    work = step_work(config, 2, torch.float32)
    assert len(work.blocks) == config.vit.depth + 2
    assert all(0 <= block.first < block.end for block in work.blocks)
    places = [place for block in work.blocks for place in (block.first, block.end)]
    assert places == sorted(places)
    products = [
        sum(one.kind == "product" for one in work.operations[block.first : block.end])
        for block in work.blocks
    ]
    assert products == [4] * len(work.blocks)
    assert not any(one.backward for one in work.operations[: work.blocks[-1].end])


def test_halves_have_half_the_bytes():
    config = small("demo-mae")
    whole, half = (step_work(config, 2, dtype) for dtype in (torch.float32, torch.bfloat16))
    size = {work: sum(one.nbytes for one in work.operations) for work in (whole, half)}
    assert whole.flops == half.flops
    assert 0.5 <= size[half] / size[whole] < 0.7


def passing(name, read, written, backward=False):
    """A pass over memories by number, ten bytes each."""
    parts = [tuple(Part(memory, 10.0) for memory in side) for side in (read, written)]
    return Operation(name, "pass", (), parts[0], parts[1], backward)


def test_passes_between_products_become_one():
    """Of 1 -> 2 -> 3 (with 2 used later) -> 4 by a product: 1 is read, 2 and 3 written."""
    product = Operation("mm", "product", (1, 2, 2, 2), (Part(3, 10.0),), (Part(4, 10.0),))
    view = Operation("view", "view", (), (), ())
    work = [
        passing("gelu", [1], [2]),
        view,
        passing("add", [2, 1], [3]),
        product,
        passing("sum", [4, 2], [5], backward=True),
        passing("mul", [5], [5], backward=True),
    ]
    one, same, last = fused(work)
    assert {part.memory for part in one.read} == {1}
    assert {part.memory for part in one.written} == {2, 3}
    assert same is product
    assert {part.memory for part in last.read} == {4, 2}
    assert last.backward
    assert sum(each.nbytes for each in fused(work)) < sum(each.nbytes for each in work)


def test_a_gradient_that_nobody_reads_is_written():
    (one,) = fused([passing("sum", [1], [2])])
    assert [part.memory for part in one.written] == [2]


def test_compiled_blocks_move_fewer_bytes_for_the_same_products():
    work = step_work(small("demo-mae"), 2, torch.float32)
    less = fused(work.operations)
    passes = [sum(o.nbytes for o in each if o.kind == "pass") for each in (less, work.operations)]
    assert passes[0] < 0.9 * passes[1]
    assert [o for o in less if o.kind == "product"] == [
        o for o in work.operations if o.kind == "product"
    ]
