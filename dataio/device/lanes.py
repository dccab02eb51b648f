"""The order of work on a device: lanes beside one another, and marks that one has another wait for.

A lane is a CUDA stream (that word is taken: streams here are compressed bytes), a mark an event.
What is made ahead is queued on the side lane; whoever takes it has his own lane wait for the mark,
and no host waits for anything. Memory is the lane's in which it was asked for: let go of, it is
used again in that lane's order, whatever other lanes do with it, unless they said so by `hold`.

On a CPU there is one lane, which is the program itself.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor


class Lanes(Protocol):
    """Lanes, marks and memory of one device; calls concern the lane that is current."""

    device: torch.device
    overlaps: bool
    """Whether the side lane runs beside the others, so that it pays to be ahead."""

    def side(self) -> AbstractContextManager[Any]:
        """Make the side lane the current one."""
        ...

    def record(self) -> Any:
        """A mark behind all that the lane was given so far."""
        ...

    def wait(self, mark: Any) -> None:
        """Have the lane go on only once `mark` is passed; the host does not wait."""
        ...

    def passed(self, mark: Any) -> bool:
        """Whether the device has come to `mark`, without waiting."""
        ...

    def finish(self, mark: Any) -> None:
        """Have the host wait until the device has come to `mark`."""
        ...

    def throttle(self, mark: Any) -> None:
        """The same of a mark that later work of its lane stands behind: the device has enough."""
        ...

    def hold(self, tensor: Tensor) -> None:
        """Keep the memory of another lane's tensor from use until this lane has come so far."""
        ...

    def pinned(self, n: int) -> Tensor:
        """Host memory (n,) uint8, undefined, whose upload no host waits for.

        Let go of, it is used again only once its uploads are done.
        """
        ...

    def upload(self, host: Tensor) -> Tensor:
        """A copy of pinned host memory on the device, in the lane's order."""
        ...

    def download(self, target: Tensor, source: Tensor) -> None:
        """Copy a tensor of the device to pinned host memory, in the lane's order."""
        ...

    def handle(self) -> int:
        """The lane as C libraries name it."""
        ...

    def free_bytes(self) -> int | None:
        """Memory of the device that nobody has; None where that is no limit."""
        ...


class CudaLanes:
    """A GPU: torch's current stream, and one of our own beside it."""

    overlaps = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side = torch.cuda.Stream(device)

    def side(self) -> AbstractContextManager[Any]:
        """Make the side stream the current one."""
        return torch.cuda.stream(self._side)

    def record(self) -> Any:
        """An event on the current stream; a host that waits for it sleeps."""
        return self._current.record_event(torch.cuda.Event(blocking=True))

    def wait(self, mark: Any) -> None:
        """Have the current stream wait."""
        self._current.wait_event(mark)

    def passed(self, mark: Any) -> bool:
        """Whether the event is done."""
        return mark.query()

    def finish(self, mark: Any) -> None:
        """Wait for the event."""
        mark.synchronize()

    def throttle(self, mark: Any) -> None:
        """Wait for the event."""
        mark.synchronize()

    def hold(self, tensor: Tensor) -> None:
        """Tell torch's allocator that the current stream uses the tensor."""
        tensor.record_stream(self._current)

    def pinned(self, n: int) -> Tensor:
        """From torch's cache of pinned memory, which notes an event with every copy."""
        return torch.empty(n, dtype=torch.uint8, pin_memory=True)

    def upload(self, host: Tensor) -> Tensor:
        """Queue the copy."""
        return host.to(self.device, non_blocking=True)

    def download(self, target: Tensor, source: Tensor) -> None:
        """Queue the copy."""
        target.copy_(source, non_blocking=True)

    def handle(self) -> int:
        """cudaStream_t."""
        return self._current.cuda_stream

    def free_bytes(self) -> int | None:
        """By the driver, and what torch has cached but nobody uses."""
        free, _ = torch.cuda.mem_get_info(self.device)
        reserved = torch.cuda.memory_reserved(self.device)
        return free + reserved - torch.cuda.memory_allocated(self.device)

    @property
    def _current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)


class HostLanes:
    """A CPU: everything is done when the call returns, and nothing is copied."""

    overlaps = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def side(self) -> AbstractContextManager[Any]:
        """There is one lane."""
        return nullcontext()

    def record(self) -> Any:
        """All is done."""
        return None

    def wait(self, mark: Any) -> None:
        """All is done."""

    def passed(self, mark: Any) -> bool:
        """All is done."""
        return True

    def finish(self, mark: Any) -> None:
        """All is done."""

    def throttle(self, mark: Any) -> None:
        """All is done."""

    def hold(self, tensor: Tensor) -> None:
        """A holder's reference is enough."""

    def pinned(self, n: int) -> Tensor:
        """Ordinary memory."""
        return torch.empty(n, dtype=torch.uint8)

    def upload(self, host: Tensor) -> Tensor:
        """The same tensor."""
        return host

    def download(self, target: Tensor, source: Tensor) -> None:
        """Copy."""
        target.copy_(source)

    def handle(self) -> int:
        """The null stream."""
        return 0

    def free_bytes(self) -> int | None:
        """The system gives what it has when it is written."""
        return None


def lanes_of(device: torch.device) -> Lanes:
    """The lanes of a device."""
    return CudaLanes(device) if device.type == "cuda" else HostLanes(device)
