"""A device without a GPU: lanes, marks and memory on a CPU, with every race a fault.

    device = RaceDevice()
    with device:                      # torch's operators are now the device's
        made = staged work ...        # device.side(), device.record(), device.wait(mark) ...

Operators run at once, so results are right whatever the order; whether a GPU would have kept that
order is decided by vector clocks. Each lane and the host have one; a lane's work comes after what
the host knew when it queued it, and after the marks that the lane waited for. An access to memory
that does not come after an earlier conflicting one is a race, and so is memory let go of while
another lane may use it, for torch's allocator gives it to its own lane at once. A host that waits
for the device within `hot()` is a fault as well.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from mim3d.dataio.device.inflate import Inflate, inflate_on_host
from mim3d.dataio.loader import loader, source_choice

HOST, COMPUTE, SIDE = "host", "compute", "side"
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}
Clock = dict[str, int]


class RaceError(AssertionError):
    """What a GPU may do wrong."""


class WaitError(AssertionError):
    """The host waits for the device where it must not."""


@dataclass
class Access:
    """Bytes that a lane (or the host) reads or writes at a tick of its clock."""

    lane: str
    tick: int
    low: int
    high: int
    writes: bool
    what: str


@dataclass
class Block:
    """Memory of one allocation: whose it is, who uses it, who said that it does."""

    ref: StorageWeakRef
    low: int
    high: int
    owner: str
    accesses: list[Access] = field(default_factory=list)
    held: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Mark:
    """What has been done where it is passed."""

    clock: Clock
    lane: str


class RaceDevice(TorchDispatchMode):
    """See the module. `free` is what `free_bytes` says; `log` holds (lane, what) in order."""

    overlaps = True

    def __init__(self, free: int | None = None) -> None:
        super().__init__()
        self.device, self.free = torch.device("cpu"), free
        self.log: list[tuple[str, str]] = []
        self._lane, self._hot = COMPUTE, False
        self._clocks: dict[str, Clock] = {lane: {lane: 0} for lane in (HOST, COMPUTE, SIDE)}
        self._blocks: list[Block] = []
        self._lock = threading.RLock()

    @contextmanager
    def lane(self, name: str) -> Iterator[None]:
        """Make a lane the current one."""
        before, self._lane = self._lane, name
        self._clocks.setdefault(name, {name: 0})
        try:
            yield
        finally:
            self._lane = before

    def side(self) -> Any:
        return self.lane(SIDE)

    @contextmanager
    def hot(self) -> Iterator[None]:
        """Nothing in here may have the host wait."""
        before, self._hot = self._hot, True
        try:
            yield
        finally:
            self._hot = before

    def record(self) -> Mark:
        self._swept()
        self.log.append((self._lane, "record"))
        return Mark(dict(self._clocks[self._lane]), self._lane)

    def wait(self, mark: Mark) -> None:
        self._swept()
        self.log.append((self._lane, f"wait for {mark.lane}"))
        self._learn(self._lane, mark.clock)

    def passed(self, mark: Mark) -> bool:
        host = self._clocks[HOST]
        return all(host.get(lane, 0) >= tick for lane, tick in mark.clock.items())

    def finish(self, mark: Mark) -> None:
        if not self.passed(mark):
            self._waits("the host waits for a mark")
        self._learn(HOST, mark.clock)

    def throttle(self, mark: Mark) -> None:
        """Waits as `finish` does; without work behind the mark the device would stand still."""
        if self._clocks[mark.lane][mark.lane] <= mark.clock[mark.lane]:
            self._waits("nothing is queued behind the mark")
        self.log.append((HOST, "throttle"))
        self._learn(HOST, mark.clock)

    def synchronize(self) -> None:
        """The host waits for everything."""
        self._waits("synchronize")
        for clock in list(self._clocks.values()):
            self._learn(HOST, clock)
        self._swept()

    def seen(self, lane: str) -> tuple[int, int]:
        """How much work a lane was given, and how much of it the host knows to be done."""
        return self._clocks[lane][lane], self._clocks[HOST].get(lane, 0)

    def hold(self, tensor: Tensor) -> None:
        block = self._block(tensor.data_ptr())
        assert block is not None, "only the device's memory can be held"
        block.held.add(self._lane)

    def pinned(self, n: int) -> Tensor:
        with _disable_current_modes():
            return self._own(torch.empty(n, dtype=torch.uint8), HOST)

    def upload(self, host: Tensor) -> Tensor:
        block = self._block(host.data_ptr())
        if block is None or block.owner != HOST:
            self._waits("a copy from ordinary memory")
        with _disable_current_modes():
            copy = self._own(host.clone(), self._lane)
        self._run("upload", [host], [copy])
        return copy

    def download(self, target: Tensor, source: Tensor) -> None:
        with _disable_current_modes():
            target.copy_(source)
        self._run("download", [source], [target])

    def handle(self) -> int:
        return 0

    def free_bytes(self) -> int | None:
        return self.free

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if func.is_view or name in ("detach", "alias", "_unsafe_view"):
            return out
        written = [
            value
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        made = [
            each
            for each in tree_leaves(out)
            if isinstance(each, Tensor) and self._block(each.data_ptr()) is None
        ]
        on_host = bool(given) and all(self._is_host(each) for each in given)
        lane = HOST if on_host else self._lane
        for each in made:
            self._own(each, lane)
        if name in WAITING and not on_host:
            self._waits(name)
            self._learn(HOST, self._clocks[lane])
        fresh = [] if name.startswith("empty") or name.startswith("new_empty") else made
        self._run(name, given, [*written, *fresh], lane)
        return out

    def touch(self, what: str, address: np.ndarray, nbytes: np.ndarray, *, writes: bool) -> None:
        """Note accesses of a library that takes addresses; the clock is that of the last call."""
        for low, n in zip(address.tolist(), nbytes.tolist(), strict=True):
            block = self._block(low)
            if block is None or low + n > block.high:
                raise RaceError(f"{what}: {n} bytes at an address that is nobody's")
            tick = self._clocks[self._lane][self._lane]
            self._access(block, Access(self._lane, tick, low, low + n, writes, what))

    def begins(self, what: str) -> None:
        """A call of such a library is queued."""
        self._run(what, [], [])

    def _run(self, what: str, reads: list[Any], writes: list[Any], lane: str | None = None) -> None:
        lane = lane or self._lane
        with self._lock:
            self._swept()
            self._learn(lane, self._clocks[HOST])
            self._clocks[lane][lane] += 1
            self.log.append((lane, what))
            for tensor, is_write in [*((t, False) for t in reads), *((t, True) for t in writes)]:
                low, high = span(tensor)
                block = self._block(low)
                if block is not None and high > low:
                    tick = self._clocks[lane][lane]
                    self._access(block, Access(lane, tick, low, high, is_write, what))

    def _access(self, block: Block, now: Access) -> None:
        clock = self._clocks[now.lane]
        for other in block.accesses:
            meets = other.low < now.high and now.low < other.high
            if not meets or not (other.writes or now.writes):
                continue
            if clock.get(other.lane, 0) < other.tick:
                verb = {True: "writes", False: "reads"}
                raise RaceError(
                    f"{now.lane} {verb[now.writes]} ({now.what}) what {other.lane} "
                    f"{verb[other.writes]} ({other.what}), without waiting for it"
                )
        block.accesses.append(now)

    def _swept(self) -> None:
        """Memory let go of since last time: its owner may use it for something else from now on."""
        with self._lock:
            gone = [block for block in self._blocks if block.ref.expired()]
            self._blocks = [block for block in self._blocks if not block.ref.expired()]
            for block in gone:
                for access in block.accesses:
                    self._check_free(block, access)

    def _check_free(self, block: Block, access: Access) -> None:
        if access.lane in {block.owner, *block.held}:
            return
        copied = access.what in ("upload", "download")  # of which the allocator notes an event
        if block.owner == HOST and copied:
            return
        if self._clocks[block.owner].get(access.lane, 0) < access.tick:
            raise RaceError(
                f"memory of {block.owner} is let go of while {access.lane} may still use it "
                f"({access.what}): nobody holds it"
            )

    def _waits(self, what: str) -> None:
        if self._hot:
            raise WaitError(f"{what}: the host waits for the device")

    def _learn(self, lane: str, clock: Clock) -> None:
        mine = self._clocks[lane]
        for other, tick in clock.items():
            mine[other] = max(mine.get(other, 0), tick)

    def _own(self, tensor: Tensor, owner: str) -> Tensor:
        storage = tensor.untyped_storage()
        low = storage.data_ptr()
        with self._lock:
            self._swept()
            block = Block(StorageWeakRef(storage), low, low + storage.nbytes(), owner)
            self._blocks.append(block)
        return tensor

    def _block(self, address: int) -> Block | None:
        with self._lock:
            for block in self._blocks:
                within = block.low <= address < max(block.high, block.low + 1)
                if within and not block.ref.expired():
                    return block
        return None

    def _is_host(self, tensor: Tensor) -> bool:
        block = self._block(tensor.data_ptr())
        return block is None or block.owner == HOST


class RaceInflate:
    """The host's inflate as a call of the device's lane."""

    def __init__(self, device: RaceDevice) -> None:
        self.device = device

    def __call__(self, codec: str, streams: np.ndarray) -> None:
        source, nbytes, size, target = streams
        self.device.begins("inflate")
        self.device.touch("inflate", source, nbytes, writes=False)
        self.device.touch("inflate", target, size, writes=True)
        inflate_on_host(codec, streams)

    def check(self) -> None:
        pass

    def settle(self) -> None:
        pass


@contextmanager
def a_device(
    free: int | None = None, inflate: Callable[[RaceDevice], Inflate] = RaceInflate
) -> Iterator[RaceDevice]:
    """What loaders made in here are for; torch's work in here is that of its compute lane."""
    with pytest.MonkeyPatch.context() as patch, RaceDevice(free) as device:
        patch.setattr(loader, "lanes_of", lambda _device: device)
        patch.setattr(source_choice, "inflate_on_host", inflate(device))
        yield device


def span(tensor: Tensor) -> tuple[int, int]:
    """First byte of a tensor, and the one behind its last."""
    if not tensor.numel():
        return tensor.data_ptr(), tensor.data_ptr()
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
