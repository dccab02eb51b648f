"""A network over a whole volume by sliding windows, Gaussian blending, in finished planes.

The windows, their weights and the order of sums are those of MONAI's `sliding_window_inference`
(mode gaussian, padding constant), so in float32 the logits are its logits to the bit. But a plane
is given away as soon as no later window touches it: what is held is a window's depth, not the
volume, which lets a CT of 512 x 512 x 800 with its classes fit where ten times that would not.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mim3d.dataio.extras import extra
from mim3d.dataio.geometry import Triple

with extra():
    from monai.data.utils import compute_importance_map, dense_patch_slices
    from monai.inferers.utils import _get_scan_interval

WINDOWS_AT_ONCE = 4
CHANNELS_LAST = torch.channels_last_3d  # a fifth faster on a CPU, as fast or faster on a GPU
Planes = Callable[[int, int], Tensor]
"""Planes [start, end) of a volume: (c, z, y, x) float32, normalised."""
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Windows:
    """Where windows of `size` lie over a volume padded to at least that; starts with z slowest."""

    shape: Triple
    size: Triple
    overlap: float

    @property
    def padded(self) -> Triple:
        """The volume's shape, at least a window's."""
        z, y, x = (max(a, b) for a, b in zip(self.shape, self.size, strict=True))
        return (z, y, x)

    @property
    def before(self) -> Triple:
        """Voxels of padding before the volume."""
        z, y, x = ((a - b) // 2 for a, b in zip(self.padded, self.shape, strict=True))
        return (z, y, x)

    @property
    def is_padded(self) -> bool:
        """Whether the volume is smaller than a window on some axis."""
        return self.padded != self.shape

    def starts(self) -> list[Triple]:
        """First voxel of every window in the padded volume, in MONAI's order."""
        interval = _get_scan_interval(self.padded, self.size, 3, [self.overlap] * 3)
        slices = dense_patch_slices(self.padded, self.size, interval)
        return [(int(z.start), int(y.start), int(x.start)) for z, y, x in slices]


class Slabs:
    """Planes of a volume that a window needs, padded; the two latest depths are kept."""

    def __init__(self, planes: Planes, windows: Windows, device: torch.device) -> None:
        self.planes, self.windows, self.device = planes, windows, device
        self.fill = lowest(planes, windows.shape[0]) if windows.is_padded else 0.0
        self._held: dict[int, Tensor] = {}

    def crop(self, start: Triple) -> Tensor:
        """A window (1, c, z, y, x) of the padded volume."""
        z, y, x = start
        _, height, width = self.windows.size
        return self._slab(z)[:, :, :, y : y + height, x : x + width]

    def _slab(self, z: int) -> Tensor:
        if z not in self._held:
            while len(self._held) > 1:
                del self._held[min(self._held)]
            self._held[z] = self._read(z).to(self.device)
        return self._held[z]

    def _read(self, z: int) -> Tensor:
        windows = self.windows
        first, end = z - windows.before[0], z - windows.before[0] + windows.size[0]
        inside = (max(first, 0), min(end, windows.shape[0]))
        slab = self.planes(*inside)[None]
        around = [inside[0] - first, end - inside[1]]
        pads: list[int] = []
        for axis in (2, 1):
            over = windows.padded[axis] - windows.shape[axis]
            pads += [over // 2, over - over // 2]
        pads += around
        return nn.functional.pad(slab, pads, value=self.fill) if any(pads) else slab


def lowest(planes: Planes, depth: int) -> float:
    """The smallest value of a volume, read some planes at a time."""
    step = 32
    return min(float(planes(z, min(z + step, depth)).min()) for z in range(0, depth, step))


def blended(
    net: Network,
    planes: Planes,
    windows: Windows,
    device: torch.device,
    advance: Callable[[float], None] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """First plane and logits (k, n, y, x) of finished planes, ascending, on the device.

    `advance` is told the share of the windows that was done, after each few.
    """
    starts = windows.starts()
    slabs, sums = Slabs(planes, windows, device), Sums(windows, starts, device)
    for first in range(0, len(starts), WINDOWS_AT_ONCE):
        batch = starts[first : first + WINDOWS_AT_ONCE]
        yield from sums.finished(batch[0][0])
        crops = torch.cat([slabs.crop(start) for start in batch])
        sums.add(batch, net(crops.to(memory_format=CHANNELS_LAST)))
        if advance is not None:
            advance(len(batch) / len(starts))
    yield from sums.finished(windows.padded[0])


class Sums:
    """Weighted logits and weights of the planes that windows still touch."""

    def __init__(self, windows: Windows, starts: list[Triple], device: torch.device) -> None:
        self.windows = windows
        self.weight = compute_importance_map(windows.size, mode="gaussian", device=device)
        at_once = [starts[i : i + WINDOWS_AT_ONCE] for i in range(0, len(starts), WINDOWS_AT_ONCE)]
        self.depth = max(batch[-1][0] - batch[0][0] for batch in at_once) + windows.size[0]
        _, y, x = windows.padded
        self.counts = torch.zeros(self.depth, y, x, device=device)
        self.logits: Tensor | None = None
        self.first = 0
        """Plane of the padded volume that the sums begin at."""

    def add(self, starts: list[Triple], logits: Tensor) -> None:
        """Take the logits (b, k, z, y, x) of windows."""
        logits = logits.float() * self.weight
        if self.logits is None:
            self.logits = logits.new_zeros(logits.shape[1], *self.counts.shape)
        for start, each in zip(starts, logits, strict=True):
            z, y, x = (
                slice(a, a + n)
                for a, n in zip((start[0] - self.first, *start[1:]), self.windows.size, strict=True)
            )
            self.logits[:, z, y, x] += each
            self.counts[z, y, x] += self.weight

    def finished(self, until: int) -> Iterator[tuple[int, Tensor]]:
        """Planes before `until`, those of padding left out; their room is for later ones."""
        n = min(until - self.first, self.depth)
        if n <= 0 or self.logits is None:
            return
        before, shape = self.windows.before, self.windows.shape
        low = max(self.first, before[0])
        high = min(self.first + n, before[0] + shape[0])
        if low < high:
            part = slice(low - self.first, high - self.first)
            y, x = (slice(b, b + s) for b, s in zip(before[1:], shape[1:], strict=True))
            yield low - before[0], self.logits[:, part, y, x] / self.counts[part, y, x]
        for held in (self.logits, self.counts[None]):
            held[:, : self.depth - n] = held[:, n:].clone()
            held[:, self.depth - n :] = 0
        self.first += n


def best_class(logits: Tensor) -> Tensor:
    """The class of the largest of (k, ...) logits as uint8, the first where several are.

    `max` gives what `argmax` does, six times faster over the first axis on a CPU (torch 2.13).
    """
    return logits.max(0).indices.to(torch.uint8)


def mirrored(net: Network) -> Network:
    """The mean of a network's logits over the eight reflections of its input."""

    def mean(crops: Tensor) -> Tensor:
        total = net(crops).float()
        for axes in ((2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)):
            total = total + net(crops.flip(axes)).float().flip(axes)
        return total / 8

    return mean
