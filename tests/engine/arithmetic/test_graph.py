"""A step repeated without Python: the same numbers, nothing asked of the host, nothing moved."""

import pytest
import torch
from half_steps import batch_of, config_of, course, trained
from recorded_step import Recorder, WaitsForTheDeviceError, recorded

from mim3d.engine.arithmetic.graph import WARMUP
from mim3d.engine.distributed.process_group import process_ranks
from mim3d.engine.models.config import SimCLRConfig, SimMIMConfig
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.training.config import OptimConfig
from mim3d.engine.training.run import repeat_steps
from mim3d.engine.training.run_state import run_state
from mim3d.engine.training.sharding import shard_objective
from mim3d.engine.training.train_step import Stepper

DRAWS = PrimusConfig((16, 16, 16), (8, 8, 8), width=24, depth=2, heads=2, drop_path=0.3)
RATES = [2.0**-9, 2.0**-10, 2.0**-8, 0.0, 2.0**-11, 2.0**-7, 2.0**-9]
"""Powers of two: the same in float32."""


@pytest.fixture(scope="module")
def ranks():
    with process_ranks(60.0) as found:
        yield found


def steps_at(stepper: Stepper, rates: list[float]) -> list[float]:
    found = []
    for rate in rates:
        figures = stepper.step(rate, measure=False)
        found += [*map(float, figures.losses), float(figures.grad_norm)]
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"parallel": {"precision": "fp32"}},
        {"parallel": {"recompute": "selective"}},
        {"optim": OptimConfig(kind="lamb")},
        {"optim": OptimConfig(kind="sgd")},
        {"method": SimMIMConfig(loss="l1")},
        {"method": SimMIMConfig(loss="l1", ignore=("air",))},
        {"method": SimCLRConfig(projection_hidden=16, projection_width=8)},
        {"vit": DRAWS},
    ],
    ids=["mae", "fp32", "selective", "lamb", "sgd", "simmim", "ignoring", "simclr", "draws"],
)
def test_a_repeated_step_gives_what_python_gives(ranks, changes) -> None:
    """Other batches, rates and counts each time: no number of the first is frozen into it."""
    (plain, part), (stepper, mine) = (trained(config_of("whole", **changes), ranks) for _ in "ab")
    notes: list[str] = []
    stepper.repeat(notes.append, capture=recorded)
    torch.manual_seed(0)
    wanted_steps = steps_at(plain, RATES)
    torch.manual_seed(0)
    assert steps_at(stepper, RATES) == wanted_steps
    assert not notes
    assert stepper.graph is not None and stepper.graph.captured is not None
    wanted = run_state(part.module, part.optimiser)
    for name, tensor in run_state(mine.module, mine.optimiser).items():
        assert torch.equal(tensor, wanted[name]), name


def test_steps_do_the_same_operations_whatever_the_batch_the_rate_and_the_count(ranks) -> None:
    stepper, part = trained(config_of("whole"), ranks)
    stepper.repeat(print, capture=recorded)
    course(stepper, 2)
    assert stepper.graph is not None
    found = []
    for seed in range(2):
        part.optimiser.set_rate(0.1 * seed)
        batch = stepper.graph._filled(batch_of(config_of("whole"), seed + 50))
        with Recorder() as recorder:
            stepper.graph.run(batch)
        found.append(recorder.signature())
    assert found[0] == found[1]
    assert len(found[0]) > 100


def test_nothing_that_a_captured_step_reads_or_writes_moves(ranks) -> None:
    stepper, part = trained(config_of("whole"), ranks)
    stepper.repeat(print, capture=recorded)

    def addresses() -> dict[str, int]:
        assert stepper.graph is not None and stepper.graph.batch is not None
        tensors = run_state(part.module, part.optimiser)
        tensors |= {f"working.{name}": p for name, p in part.module.named_parameters()}
        tensors |= {f"batch.{n}": getattr(stepper.graph.batch, n) for n in ("image", "sample")}
        groups = part.optimiser.inner.param_groups
        tensors |= {f"rate.{i}": group["lr"] for i, group in enumerate(groups)}
        return {name: tensor.data_ptr() for name, tensor in tensors.items()}

    course(stepper, 1)
    before = addresses()
    course(stepper, WARMUP + 2)
    assert addresses() == before


def test_figures_of_a_step_are_not_those_of_the_next(ranks) -> None:
    stepper, _ = trained(config_of("whole"), ranks)
    stepper.repeat(print, capture=recorded)
    kept = [stepper.step(1e-3, measure=False) for _ in range(WARMUP + 3)]
    assert len({float(figures.losses[0]) for figures in kept}) == len(kept)


def test_a_step_that_asks_for_a_number_goes_on_kernel_by_kernel(ranks) -> None:
    """And loses nothing: the step whose capture failed is taken all the same."""
    (plain, _), (stepper, part) = (trained(config_of("whole"), ranks) for _ in "ab")
    notes: list[str] = []
    stepper.repeat(notes.append, capture=recorded)

    def asks(module: torch.nn.Module, given: object, found: torch.Tensor) -> None:
        assert float(found.sum()) != 0.5

    part.module.get_submodule("decoder_norm").register_forward_hook(asks)
    assert steps_at(stepper, RATES) == steps_at(plain, RATES)
    (note,) = notes
    assert "not repeated as one CUDA graph: capturing failed (" in note
    assert "waits for the device" in note


def test_batches_of_another_shape_end_it(ranks) -> None:
    stepper, _ = trained(config_of("whole"), ranks)
    notes: list[str] = []
    stepper.repeat(notes.append, capture=recorded)
    course(stepper, WARMUP + 1)
    stepper.batches = iter(batch_of(config_of("whole"), 9, b) for b in (3, 4))
    assert all(torch.isfinite(torch.tensor(course(stepper, 2))))
    assert notes == [
        "steps are not repeated as one CUDA graph: the batches' shapes change, to "
        "(3, 1, 16, 16, 16)"
    ]


OBSTACLES = [
    ({"cuda_graph": False}, "parallel.cuda_graph is off"),
    ({"one_rank": "sharded"}, "weights are sharded (parallel.one_rank)"),
    ({"compile": True}, "blocks are compiled (parallel.compile)"),
    ({"grad_accum": 2}, "2 micro-batches a step"),
    ({"precision": "fp16"}, "fp16 has a loss scaler"),
]


@pytest.mark.parametrize(("parallel", "why"), OBSTACLES)
def test_what_is_in_the_way_is_told_in_one_line(ranks, parallel, why) -> None:
    config = config_of("whole", parallel=parallel)
    part = shard_objective(config.build(), config.optim, config.parallel, ranks)
    stepper = Stepper(part.module, part.optimiser, iter(()), ranks, 1)
    notes: list[str] = []
    repeat_steps(stepper, part, notes.append)
    assert notes == [f"steps are launched kernel by kernel, not repeated as one CUDA graph: {why}"]
    assert stepper.graph is None


def test_blocks_that_draw_are_not_rebuilt_in_a_graph(ranks) -> None:
    config = config_of("whole", parallel={"recompute": "full"})
    module = config.build()
    part = shard_objective(module, config.optim, config.parallel, ranks)
    assert part.capture_obstacle() == ""
    module.get_submodule("encoder.blocks")[1].drop_path = 0.1  # pyright: ignore
    assert "draw who skips" in part.capture_obstacle()


def test_a_step_that_can_be_repeated_is_told(ranks) -> None:
    stepper, part = trained(config_of("whole"), ranks)
    notes: list[str] = []
    repeat_steps(stepper, part, notes.append, capture=recorded)
    assert "captured after the first 3 (--parallel.no-cuda-graph" in notes[0]
    course(stepper, WARMUP + 1)
    assert stepper.graph is not None and stepper.graph.captured is not None


def test_the_recorder_sees_what_waits() -> None:
    with pytest.raises(WaitsForTheDeviceError), Recorder():
        torch.ones(2).sum().item()
