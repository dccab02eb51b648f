"""Ranks: a process group from torchrun or SLURM, or of one process without either."""

import atexit
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from mim3d.dataio.errors import Mim3dError
from mim3d.engine.distributed.config import DeviceKind
from mim3d.engine.distributed.heartbeat import beat
from mim3d.engine.distributed.meeting import meet
from mim3d.engine.distributed.within import within
from mim3d.engine.errors import ConfigError, TrainingError

Decided = TypeVar("Decided")
LEAVE_S = 10.0


@dataclass(frozen=True)
class Ranks:
    """Where this process stands, and the CPU groups that run beside the training group.

    `control` carries stop signals and loop decisions, `saving` the asynchronous checkpoint:
    collectives of two threads must never meet in one group.
    """

    rank: int
    world: int
    device: torch.device
    control: dist.ProcessGroup
    saving: dist.ProcessGroup

    @property
    def first(self) -> bool:
        """Whether this rank prints and writes."""
        return self.rank == 0


@contextmanager
def process_ranks(timeout_s: float, device_kind: DeviceKind = "auto") -> Iterator[Ranks]:
    """Join the group that exists or make one, and leave what was made as it was found."""
    made = not dist.is_initialized()
    beat("meeting the other ranks")
    device = local_device(device_kind)
    with met_in_one_line(timeout_s):
        if made:
            start_group(device, timeout_s)
        groups = [cpu_group(timeout_s) for _ in range(2)]
    beat("preparing")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device, groups[0], groups[1])
    except BaseException:
        with suppress(TimeoutError, RuntimeError):  # of ranks that may be gone
            within(LEAVE_S, lambda: leave(groups, made))
        raise
    leave(groups, made)


def leave(groups: Sequence[dist.ProcessGroup], made: bool) -> None:
    """Take down what `process_ranks` made."""
    if made:
        dist.destroy_process_group()
    else:
        for group in groups:
            dist.destroy_process_group(group)


def cpu_group(timeout_s: float) -> dist.ProcessGroup:
    """A gloo group of all ranks."""
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    assert isinstance(group, dist.ProcessGroup)
    return group


def first_decides(ranks: Ranks, act: Callable[[], Decided]) -> Decided:
    """What the first rank's act gave; an error that a user can mend is raised on every rank."""
    decided: list[object] = [None]
    if ranks.first:
        try:
            decided = [act()]
        except Mim3dError as error:
            decided = [error]
    dist.broadcast_object_list(decided, group=ranks.control, group_src=0)
    if isinstance(decided[0], Mim3dError):
        raise decided[0]
    return cast(Decided, decided[0])


def local_device(kind: DeviceKind = "auto") -> torch.device:
    """This process's GPU, by LOCAL_RANK, or the CPU; auto takes a GPU where there is one."""
    if kind == "cpu" or not torch.cuda.is_available():
        if kind == "cuda":
            raise ConfigError("device cuda, but no CUDA device is visible: set --device cpu")
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise ConfigError(
            f"LOCAL_RANK {local} but only {torch.cuda.device_count()} GPUs are visible: start at "
            "most as many processes per machine as it has GPUs"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@contextmanager
def met_in_one_line(timeout_s: float) -> Iterator[None]:
    """A TrainingError with what to look at where ranks do not find one another."""
    try:
        yield
    except (dist.DistError, RuntimeError, TimeoutError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        place = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
        raise TrainingError(
            f"rank {rank} of {world} did not find the others within {timeout_s:.0f} s: are all "
            f"started, and can {os.uname().nodename} reach MASTER_ADDR at {place} (GLOO_SOCKET_"
            f"IFNAME and NCCL_SOCKET_IFNAME name the network interface)? {reason[:200]}"
        ) from error


def start_group(device: torch.device, timeout_s: float) -> None:
    """Initialise the default group: gloo for CPU tensors, NCCL for CUDA ones."""
    # Models and meshes in cycles hold groups that were taken down. gloo's threads live as long as
    # these, and what they hold of Python aborts a process that is ending (pytorch issue 179291).
    atexit.unregister(gc.collect)
    atexit.register(gc.collect)
    timeout = timedelta(seconds=timeout_s)
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    adopt_slurm()
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        dist.init_process_group(
            backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout
        )
        return
    store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
    # A restarted worker may meet the same store: keys of the dead round would be taken for live.
    name = within(timeout_s + 10.0, lambda: meet(store, rank, world, timeout_s))
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(f"round-{name}", store),
        rank=rank,
        world_size=world,
        timeout=timeout,
    )


def adopt_slurm() -> None:
    """Take rank and world from `srun` where torchrun gave none; MASTER_ADDR must be exported."""
    if "RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) < 2:
        return
    if "SLURM_PROCID" not in os.environ:
        return
    if "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            "started by srun with several tasks but MASTER_ADDR is not set: export MASTER_ADDR="
            "$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n1) and MASTER_PORT, or use "
            "torchrun"
        )
    os.environ.setdefault("MASTER_PORT", "29500")
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
    os.environ.setdefault("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
