"""What a checkpoint of a run holds: weights, optimiser, each rank's own; all of it tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mim3d.engine.arithmetic.masters import master_of, whole_state
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.runs.checkpoint_reader import HOOK_PREFIX, RNG_PREFIX, State
from mim3d.engine.training.optim import ShardedOptimiser
from mim3d.engine.training.trainer import Hook


def run_state(module: nn.Module, optimiser: ShardedOptimiser) -> State:
    """Sharded weights and optimiser state by name; loading writes into these very tensors."""
    state: State = {f"model.{n}": master_of(p).detach() for n, p in module.named_parameters()}
    for name, buffer in module.named_buffers():
        if is_kept(module, name):
            state[f"model.{name}"] = buffer
    return {**state, **optimiser.state_tensors()}


def is_kept(module: nn.Module, name: str) -> bool:
    """Whether a buffer belongs to the state (position tables are computed, not stored)."""
    owner, _, leaf = name.rpartition(".")
    return leaf not in module.get_submodule(owner)._non_persistent_buffers_set


def rng_state(ranks: Ranks) -> State:
    """This rank's random generators as byte tensors, under keys of its own."""
    state: State = {f"{RNG_PREFIX}cpu.{ranks.rank}": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        state[f"{RNG_PREFIX}cuda.{ranks.rank}"] = torch.cuda.get_rng_state(ranks.device)
    return state


def restore_rng(state: State, ranks: Ranks) -> None:
    """Set this rank's generators from what was loaded into `rng_state`'s tensors."""
    torch.set_rng_state(state[f"{RNG_PREFIX}cpu.{ranks.rank}"])
    if ranks.device.type == "cuda":
        torch.cuda.set_rng_state(state[f"{RNG_PREFIX}cuda.{ranks.rank}"], ranks.device)


def hook_tensors(hooks: Sequence[Hook], ranks: Ranks) -> State:
    """What hooks keep of this rank, under keys of its own."""
    return {
        f"{HOOK_PREFIX}{hook.name}.{key}.{ranks.rank}": tensor
        for hook in hooks
        for key, tensor in hook.rank_state().items()
    }


def restore_hooks(state: State, hooks: Sequence[Hook], ranks: Ranks) -> None:
    """Hand this rank's hooks what was loaded into `hook_tensors`'s tensors."""
    for hook in hooks:
        kept = {
            key: state[f"{HOOK_PREFIX}{hook.name}.{key}.{ranks.rank}"] for key in hook.rank_state()
        }
        if kept:
            hook.load_rank_state(kept)


def full_weights(module: nn.Module) -> dict[str, Tensor]:
    """Whole float32 weights on the CPU by name; every rank takes part, each gets them all."""
    return {name: tensor.cpu() for name, tensor in whole_state(module).items()}
