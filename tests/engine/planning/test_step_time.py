"""Time of a step by hand: tiles, rooflines, what collectives hide behind, device beside host."""

import dataclasses
from typing import get_args

import pytest
import torch

from mim3d.engine.arithmetic.config import Recompute
from mim3d.engine.distributed.process_group import process_ranks
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.planning.laws import RAMP, Law, Laws, columns_of, tiled
from mim3d.engine.planning.machine import Constant, Machine, known_machine
from mim3d.engine.planning.network import Traffic, exposed_seconds
from mim3d.engine.planning.operations import Operation, step_work
from mim3d.engine.planning.plan import make_plan
from mim3d.engine.planning.step_time import is_one_graph
from mim3d.engine.planning.supply import core_seconds
from mim3d.engine.pretrain.recipes import recipe
from mim3d.engine.training.sharding import shard_objective


def test_a_product_is_whole_tiles_in_whole_waves():
    """132 tiles of 128 x 256 fill an H200 once; one row more needs tiles of its own."""
    full = tiled(1, 128 * 132, 256, 4096, 132)
    assert full == pytest.approx(132 * 2.0 * 128 * 256 * (4096 + RAMP))
    assert tiled(1, 128 * 132 + 1, 256, 4096, 132) > full
    small = tiled(1, 8, 8, 64, 132)
    assert small > 100 * 2 * 8 * 8 * 64


def test_a_roofline_is_the_larger_and_a_sum_is_the_sum():
    seconds = {"calls": 1.0, "flops": 2.0, "operands": 3.0}
    columns = {"calls": 1.0, "flops": 10.0, "operands": 4.0}
    assert Law(seconds, "test").of(columns) == 1 + 20 + 12
    assert Law(seconds, "test", roofline=True).of(columns) == 1 + 20


def test_narrow_heads_are_slower():
    laws = known_machine("H200").laws
    wide, narrow = (
        Operation("scaled_dot_product", "attention", (64, 512, 512, width), (), ())
        for width in (128, 32)
    )
    flops = columns_of(wide)["flops"] / columns_of(narrow)["flops"]
    assert flops * laws.seconds(narrow) > 2 * laws.seconds(wide)


def traffic(**changes):
    """Two blocks of 40 % each; a gather of all takes 10 s, sums 20 s."""
    plain = Traffic(
        gathers=18.0, scatters=20.0, between=0.0, shard_rate=1.0, replica_rate=1.0, parts=1,
        again=True, shares=(0.4, 0.4),
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def test_collectives_hide_behind_blocks():
    """The root's 2 s and the first block's 4 have nothing before them; the root's sums, 4 s, come
    last. Long blocks hide the rest, short ones all that they last."""
    one = traffic()
    assert one.gather_s == pytest.approx(10.0)
    assert exposed_seconds(one, [100.0, 100.0], [100.0, 100.0]) == pytest.approx(2 + 4 + 4)
    # Forward: 4 - 1 of the second block; backward: 4 + 8 - 2 of each.
    assert exposed_seconds(one, [1.0, 1.0], [2.0, 2.0]) == pytest.approx(10 + 3 + 2 * 10)


def test_blocks_that_stay_whole_are_gathered_once_and_sums_come_with_the_last_part():
    one = traffic(gathers=20.0, again=False, parts=2)
    assert one.gather_s == pytest.approx(10.0)
    # Each part: 2 + 4 and 4 - 1. Sums of the last alone: 8 - 2 of a block, 4 of the root.
    assert exposed_seconds(one, [1.0, 1.0], [2.0, 2.0]) == pytest.approx(2 * 9 + 2 * 6 + 4)


def test_one_rank_sends_nothing():
    plan = make_plan(recipe("demo-mae"), 1, known_machine("H200"))
    assert plan.traffic.nbytes == plan.time.exposed_s == plan.time.network_s == 0


def flat_machine(kind, host_us):
    """A microsecond an operation on the device."""
    law = Law({"calls": 1e-6}, "test")
    families: dict[str, Law] = dict.fromkeys(("product", "attention", "pass", "optimiser"), law)
    constants = known_machine("H200").constants | {
        "host_us_per_op": Constant(host_us, "us", "test"),
        "host_us_per_step": Constant(100, "us", "test"),
    }
    return Machine("flat", kind, Laws(families), constants)


@pytest.mark.parametrize("host_us", [0.01, 10.0])
def test_a_gpu_and_its_host_work_at_once_and_a_cpu_is_both(host_us):
    config = recipe("demo-mae")
    config = dataclasses.replace(
        config,
        vit=ViTConfig((16, 16, 16), (8, 8, 8), width=24, depth=1, heads=2),
        parallel=dataclasses.replace(config.parallel, precision="fp32", cuda_graph=False),
    )
    work = step_work(config, config.global_batch, torch.float32)
    parts = {
        kind: make_plan(config, 1, flat_machine(kind, host_us)).time for kind in ("cuda", "cpu")
    }
    device = 1e-6 * (work.launches + work.tensors)
    host = work.launches * host_us * 1e-6 + 100e-6
    assert parts["cuda"].device_s == pytest.approx(device)
    crops = config.global_batch * 40e-6  # taken by a GPU's host alone
    assert parts["cuda"].step_s == pytest.approx(max(device, host + crops))
    assert parts["cpu"].step_s == pytest.approx(device + host)
    assert parts["cuda"].bound == ("host" if host + crops > device else "passes")


def test_one_graph_takes_the_host_no_time_an_operation():
    config = recipe("demo-mae")
    machine = known_machine("H200")
    graph = make_plan(config, 1, machine).time
    off = dataclasses.replace(config.parallel, cuda_graph=False)
    eager = make_plan(dataclasses.replace(config, parallel=off), 1, machine).time
    assert graph.device == eager.device
    assert graph.host_s == pytest.approx(config.global_batch * 40e-6 + 100e-6)
    assert eager.host_s > 5 * graph.host_s


@pytest.mark.parametrize(("drop_path", "precision"), [(0.0, "bf16"), (0.1, "bf16"), (0.0, "fp16")])
def test_one_graph_is_planned_where_a_run_captures_one(drop_path, precision):
    """On one CPU rank too a run says what stands in the way, but for the device."""
    config = recipe("demo-primus-mae")
    shape = PrimusConfig((16, 16, 16), (8, 8, 8), width=96, depth=1, heads=4, drop_path=drop_path)
    for recompute in get_args(Recompute):
        parallel = dataclasses.replace(config.parallel, recompute=recompute, precision=precision)
        one = dataclasses.replace(config, vit=shape, parallel=parallel)
        work = step_work(one, 2, torch.float32)
        with process_ranks(60.0) as ranks:
            obstacle = shard_objective(one.build(), one.optim, parallel, ranks).capture_obstacle()
        assert is_one_graph(one, 1, known_machine("H200"), work) == (not obstacle), obstacle


def test_float8_products_are_faster_and_nothing_else_is():
    config = recipe("mae-vit-b-96")
    config = dataclasses.replace(
        config, vit=dataclasses.replace(config.vit, depth=1), global_batch=8
    )
    half, eighth = (
        make_plan(
            dataclasses.replace(
                config, parallel=dataclasses.replace(config.parallel, precision=precision)
            ),
            1,
            known_machine("H200"),
        ).time.device
        for precision in ("bf16", "fp8")
    )
    assert eighth["products"] == pytest.approx(half["products"] / 1.5)
    assert {k: v for k, v in eighth.items() if k != "products"} == {
        k: v for k, v in half.items() if k != "products"
    }


def test_crops_turned_in_their_volumes_take_cores():
    config = recipe("openmind-primus-m-mae")
    loader = dataclasses.replace(config.data.loader, augment="spatial")
    turned = dataclasses.replace(config, data=dataclasses.replace(config.data, loader=loader))
    on_device = dataclasses.replace(loader, cache="device")
    resident = dataclasses.replace(config, data=dataclasses.replace(config.data, loader=on_device))
    machine = known_machine("H200")
    plain, moved, device = (core_seconds(each, machine) for each in (config, turned, resident))
    assert moved - plain == pytest.approx(0.36 * 160**3 / 0.08e9)
    assert device == pytest.approx(101e-6)


def test_recomputed_blocks_take_their_forward_pass_again():
    config = recipe("mae-vit-b-96")
    config = dataclasses.replace(
        config, vit=dataclasses.replace(config.vit, depth=2), global_batch=8
    )
    again = dataclasses.replace(config.parallel, recompute="full")
    machine = known_machine("H200")
    plain = make_plan(config, 1, machine)
    less = make_plan(dataclasses.replace(config, parallel=again), 1, machine)
    some = dataclasses.replace(config.parallel, recompute="selective")
    between = make_plan(dataclasses.replace(config, parallel=some), 1, machine)
    assert plain.time.device_s < between.time.device_s < less.time.device_s
    assert plain.memory.activations > between.memory.activations > less.memory.activations
    extra = less.time.device_s - plain.time.device_s
    assert 0.15 * plain.time.device_s < extra < 0.5 * plain.time.device_s
    assert less.memory.activations < plain.memory.activations
