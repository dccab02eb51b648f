"""One rank in a half type without FSDP2: the same numbers and checkpoints, fewer operations."""

import os
import subprocess
import sys
from collections import Counter

import half_steps
import pytest
import torch
from half_steps import batch_of, config_of, course, trained
from ports import free_port
from torch.utils._python_dispatch import TorchDispatchMode

from mim3d.engine.arithmetic.masters import whole_state
from mim3d.engine.distributed.process_group import Ranks, process_ranks
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.runs.checkpoint import Checkpointer
from mim3d.engine.runs.checkpoint_files import CheckpointFacts
from mim3d.engine.runs.config import CheckpointConfig
from mim3d.engine.runs.shelf import FolderShelf
from mim3d.engine.training.config import OptimConfig
from mim3d.engine.training.run_state import run_state
from mim3d.engine.training.sharding import shard_objective
from mim3d.engine.training.train_step import Stepper

VIEWS = (
    *("view", "t.default", "transpose", "permute", "slice", "select", "detach", "alias", "expand"),
    *("unsqueeze", "squeeze", "as_strided", "split", "chunk", "unbind", "empty", "narrow", "lift"),
    *("resize_", "set_", "sym_", "size", "stride", "is_", "unflatten"),
)
"""Parts of the names of operations that launch nothing."""
MOST = 700
"""Operations of a step of 20 blocks that may launch a kernel."""


@pytest.fixture(scope="module")
def ranks():
    with process_ranks(60.0) as found:
        yield found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"parallel": {"grad_accum": 2}},
        {"parallel": {"precision": "fp16"}},
        {"parallel": {"min_block_parameters": 10**9}},
        {"parallel": {"recompute": "selective"}},
        {"optim": OptimConfig(clip_norm=0.02)},
        {"optim": OptimConfig(kind="lamb")},
        {"optim": OptimConfig(kind="sgd", decays="all")},
    ],
    ids=["plain", "accum", "fp16", "root", "selective", "clipped", "lamb", "sgd"],
)
def test_losses_norms_and_weights_are_fsdps_to_the_last_digit(ranks, changes) -> None:
    found = []
    for how in ("sharded", "whole"):
        stepper, part = trained(config_of(how, **changes), ranks)
        assert (part.optimiser.masters is not None) == (how == "whole")
        found.append((course(stepper, 4), whole_state(part.module), part.optimiser.state_tensors()))
    (losses, weights, state), (theirs, their_weights, their_state) = found
    assert losses == theirs
    for name, weight in weights.items():
        assert torch.equal(weight, their_weights[name]), name
    for name, tensor in state.items():
        plain = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore
        assert torch.equal(plain, their_state[name]), name


class Launches(TorchDispatchMode):
    """Operations that would launch a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not any(view in str(func) for view in VIEWS):
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def launches(config: PretrainConfig, ranks: Ranks) -> int:
    stepper, _ = trained(config, ranks)
    course(stepper, 2)
    with Launches() as counted:
        stepper.step(1e-3, measure=False)
    return counted.found.total()


def test_a_step_of_twenty_blocks_launches_at_most_seven_hundred(ranks) -> None:
    assert launches(config_of("whole", (12, 8)), ranks) <= MOST
    assert launches(config_of("sharded", (12, 8)), ranks) > 2 * MOST


def test_a_gradient_that_is_not_finite_changes_nothing(ranks) -> None:
    stepper, part = trained(config_of("whole"), ranks)
    course(stepper, 2)
    before = {name: tensor.clone() for name, tensor in whole_state(part.module).items()}
    working = [p.detach().clone() for p in part.module.parameters()]
    batch = batch_of(config_of("whole"), 7)
    batch.image.fill_(float("nan"))
    stepper.batches = iter([batch])
    stepper.step(1e-2, measure=False)
    assert float(part.optimiser.bad_in_row) == 1.0
    for name, weight in whole_state(part.module).items():
        assert torch.equal(weight, before[name]), name
    assert all(map(torch.equal, part.module.parameters(), working))


def test_each_group_is_one_piece_and_state_stands_by_name(ranks) -> None:
    _, part = trained(config_of("whole"), ranks)
    groups = part.optimiser.inner.param_groups
    assert [len(group["params"]) for group in groups] == [1, 1]
    assert {group["weight_decay"] for group in groups} == {0.05, 0.0}
    _, sharded = trained(config_of("sharded"), ranks)
    mine, theirs = (run_state(p.module, p.optimiser) for p in (part, sharded))
    assert {name: tuple(t.shape) for name, t in mine.items()} == {
        name: tuple(t.shape) for name, t in theirs.items()
    }
    assert {t.dtype for name, t in mine.items() if not name.endswith("growth")} == {torch.float32}


def test_a_parameter_without_a_gradient_is_named(ranks) -> None:
    _, part = trained(config_of("whole"), ranks)
    with pytest.raises(AssertionError, match=r"\w+ has no gradient"):
        part.optimiser.step(1e-3)


@pytest.mark.parametrize("first", ["sharded", "whole"])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_checkpoint_of_either_path_goes_on_in_the_other(
    ranks, tmp_path, first, asynchronous
) -> None:
    second = "whole" if first == "sharded" else "sharded"
    stepper, part = trained(config_of(first), ranks)
    course(stepper, 3)
    config = CheckpointConfig(asynchronous=asynchronous)
    saver = Checkpointer(FolderShelf(tmp_path), config, ranks, print)
    state = run_state(part.module, part.optimiser)
    saver.save(state, CheckpointFacts(3, "c", "d", {}, 1))
    wanted = course(stepper, 3)  # while it is written
    saver.finish()
    other, into = trained(config_of(second), ranks)
    for _ in range(3):
        next(other.batches)
    facts = saver.choose(("c",), lambda _: True)
    assert facts is not None
    saver.load(run_state(into.module, into.optimiser), facts)
    into.optimiser.after_load()
    assert course(other, 3) == wanted
    for name, weight in whole_state(into.module).items():
        assert torch.equal(weight, whole_state(part.module)[name]), name
    saver.close()


def test_frozen_weights_are_kept_whole_and_loaded(ranks) -> None:
    found = []
    for how in ("sharded", "whole"):
        config = config_of(how)
        module = config.build()
        module.get_submodule("encoder").requires_grad_(False)
        part = shard_objective(module, config.optim, config.parallel, ranks)
        with torch.no_grad():
            for name, tensor in run_state(part.module, part.optimiser).items():
                if name.startswith("model."):
                    tensor.mul_(1.001)  # as a checkpoint would
        part.optimiser.after_load()
        stepper = Stepper(part.module, part.optimiser, iter([batch_of(config, 1)] * 2), ranks, 1)
        found.append((course(stepper, 2), whole_state(part.module)))
    (losses, weights), (theirs, their_weights) = found
    assert losses == theirs
    assert all(torch.equal(weight, their_weights[name]) for name, weight in weights.items())
    assert not {w.dtype for w in their_weights.values()} - {torch.float32}


@pytest.mark.slow
def test_ranks_that_hold_all_weights_sum_what_fsdp_sums() -> None:
    environment = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", half_steps.__file__],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(processes):
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, err[-2000:]
        assert f"rank {rank} of 2: equal" in out
