"""Products in float8, emulated: near bf16's losses, FSDP2's to the last digit, no names changed."""

import builtins
import dataclasses
from importlib.metadata import requires
from typing import Any

import pytest
import torch
from half_steps import batch_of, config_of, course, trained
from recorded_step import recorded

from mim3d.dataio.extras import MissingExtraError
from mim3d.dataio.loader.batch import Batch
from mim3d.engine.arithmetic.float8 import use_float8
from mim3d.engine.arithmetic.masters import whole_state
from mim3d.engine.distributed.process_group import process_ranks
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import MAEConfig, ViTConfig
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.training.run_state import run_state
from mim3d.engine.training.sharding import shard_objective
from mim3d.engine.training.train_step import Stepper

pytest.importorskip("torchao")
NEAR = 0.03
"""Share of bf16's mean loss over ten steps that float8's lies within, five times in a row."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ranks():
    with process_ranks(60.0) as found:
        yield found


def wide(precision: str, how: Any = "whole", **parallel: Any) -> PretrainConfig:
    """32 features, 2 visible of 8 patches, 8 crops: all multiples of 16."""
    config = config_of(how, parallel={"precision": precision, **parallel})
    return dataclasses.replace(
        config,
        vit=ViTConfig((16, 16, 16), (8, 8, 8), width=32, depth=2, heads=2),
        method=MAEConfig(
            loss="l2", normalise_target=False, decoder_width=32, decoder_depth=1, decoder_heads=2
        ),
        global_batch=8,
    )


def stepped(config: PretrainConfig, ranks: Any) -> tuple[Stepper, Any]:
    stepper, part = trained(config, ranks)
    stepper.batches = iter(batch_of(config, seed % 4, 8) for seed in range(1000))
    return stepper, part


def waves(config: PretrainConfig, seed: int) -> Batch:
    """Crops that can be learned: a ramp of another direction and height in each."""
    batch = batch_of(config, seed, 8)
    z, y, x = torch.meshgrid(*[torch.linspace(-1.0, 1.0, 16)] * 3, indexing="ij")
    slopes = batch.image[:, 0, 0, 0, :3]
    ramps = torch.einsum("bk,kzyx->bzyx", slopes, torch.stack([z, y, x]))
    return dataclasses.replace(batch, image=ramps[:, None].contiguous())


def test_losses_stay_near_bf16s_over_fifty_steps(ranks) -> None:
    found = {}
    for precision in ("bf16", "fp8"):
        config = wide(precision)
        stepper, part = trained(config, ranks)
        stepper.batches = (waves(config, seed) for seed in range(1000))
        assert part.float8_layers == (12 if precision == "fp8" else 0)
        assert part.dtype == torch.bfloat16
        losses = [float(stepper.step(2e-3, measure=False).losses[0]) for _ in range(50)]
        found[precision] = torch.tensor(losses)
    assert found["bf16"][-4:].mean() < 0.7 * found["bf16"][:4].mean(), "something is learned"
    means = {name: losses.reshape(5, 10).mean(1) for name, losses in found.items()}
    distance = (means["fp8"] / means["bf16"] - 1.0).abs()
    assert 0.0 < float(distance.max()) < NEAR


@pytest.mark.parametrize("change", [{}, {"recompute": "selective"}, {"recompute": "full"}])
def test_under_fsdp2_the_numbers_are_the_same(ranks, change) -> None:
    found = []
    for how in ("sharded", "whole"):
        stepper, part = stepped(wide("fp8", how, **change), ranks)
        found.append((course(stepper, 3), whole_state(part.module)))
    (losses, weights), (theirs, their_weights) = found
    assert losses == theirs
    assert all(torch.equal(weight, their_weights[name]) for name, weight in weights.items())


def test_a_step_is_repeated_without_python(ranks) -> None:
    found = []
    for repeats in (False, True):
        stepper, _ = stepped(wide("fp8"), ranks)
        if repeats:
            stepper.repeat(pytest.fail, capture=recorded)
        rates = (2.0**-9, 2.0**-10, 2.0**-8, 2.0**-11, 2.0**-7)
        found.append([float(stepper.step(rate, measure=False).grad_norm) for rate in rates])
    assert found[0] == found[1]


def test_checkpoints_have_the_names_of_every_precision(ranks) -> None:
    shapes = []
    for precision in ("bf16", "fp8"):
        _, part = stepped(wide(precision), ranks)
        state = run_state(part.module, part.optimiser)
        shapes.append({name: (tuple(t.shape), t.dtype) for name, t in state.items()})
    assert shapes[0] == shapes[1]


def test_layers_that_do_not_fit_stay_and_none_is_refused(ranks) -> None:
    config = config_of("whole", parallel={"precision": "fp8"})  # 24 features
    with pytest.raises(ConfigError, match=r"multiples of 16: set --parallel\.precision bf16"):
        shard_objective(config.build(), config.optim, config.parallel, ranks)


def test_a_batch_that_does_not_fit_is_refused_with_what_to_set(ranks) -> None:
    config = wide("fp8")
    stepper, _ = trained(config, ranks)
    stepper.batches = iter([batch_of(config, 0, 3)])
    with pytest.raises(ConfigError, match=r"\(3, 2\) = 6 tokens.*set --global-batch so that"):
        stepper.step(1e-3, measure=False)
    stepper.batches = iter([batch_of(config, 0, 16)])
    stepper.step(1e-3, measure=False)


def test_without_torchao_its_extra_is_named(monkeypatch) -> None:
    plain = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("torchao"):
            raise ModuleNotFoundError(name=name)
        return plain(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'mim3d\[fp8\]'"):
        use_float8(wide("fp8").build(), CPU)


def test_a_gpu_without_float8_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(ConfigError, match=r"a NVIDIA A100 has no float8 products: set --parallel"):
        use_float8(wide("fp8").build(), torch.device("cuda", 0))


def test_torch_is_what_it_was() -> None:
    """torchao asks for nothing, so that installing it replaces nothing."""
    assert all("extra ==" in line for line in requires("torchao") or ())
