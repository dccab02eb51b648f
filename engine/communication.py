"""What a step's collectives cost when nothing hides them, measured once at the start of a run.

Inside a step they overlap with arithmetic and cannot be told apart without a profiler, which is
not safe beside the collectives of the checkpoint's thread.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from mim3d.engine.config import ParallelConfig
from mim3d.engine.parallel import parameter_count, shard_group, transformer_blocks

REPEATS = 3


def communication_seconds(
    module: nn.Module, mesh: DeviceMesh, config: ParallelConfig, dtype: torch.dtype
) -> float:
    """Seconds of all gathers and reductions of one step, one after the other; 0 on one rank.

    Timed on the largest group of parameters that is gathered at once, and scaled to the model.
    """
    group = shard_group(mesh)
    shards = dist.get_world_size(group)
    total = parameter_count(module)
    counts = map(parameter_count, transformer_blocks(module))
    blocks = [size for size in counts if size >= config.min_block_parameters]
    largest = max(blocks, default=total)
    device = torch.device(mesh.device_type)
    piece = torch.zeros(-(-largest // shards), dtype=dtype, device=device)
    seconds = 0.0
    if shards > 1:
        whole = torch.zeros(len(piece) * shards, dtype=dtype, device=device)
        # Blocks that are freed after forward are gathered again in backward; the root stays.
        again = sum(blocks) / total if config.reshard_after_forward else 0.0
        gathers = (1.0 + again) * config.grad_accum
        gather = collective("all_gather_single", "all_gather_into_tensor")
        seconds += gathers * timed(lambda: gather(whole, piece, group=group), device)
        sums, parts = piece.float(), whole.float()
        scatter = collective("reduce_scatter_single", "reduce_scatter_tensor")
        seconds += timed(lambda: scatter(sums, parts, group=group), device)
    if config.replicate > 1:
        sums, between = piece.float(), mesh.get_group("replicate")
        seconds += timed(lambda: dist.all_reduce(sums, group=between), device)
    return seconds * total / largest


def collective(name: str, older: str) -> Callable[..., Any]:
    """A collective by its present name, or by the one that older torch has."""
    return getattr(dist, name, None) or getattr(dist, older)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Mean seconds of a call, the first one left out."""
    run()
    wait_for(device)
    began = time.perf_counter()
    for _ in range(REPEATS):
        run()
    wait_for(device)
    return (time.perf_counter() - began) / REPEATS


def wait_for(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize()
