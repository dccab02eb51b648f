"""How long an operation takes on a machine, from its sizes: linear laws, a family each.

    seconds = sum over columns of seconds a unit x units of the operation        (a calibrated one)
    seconds = calls + the larger of arithmetic and traffic (roofline)            (an assumed one)

Columns, in units of an operation:
    product       calls, flops, operands and results (elements)
    convolution   calls, flops, padded (flops with channels in sixteens, as vector code pads them),
                  operands and results (elements), spilled (as of a pass)
    attention     calls, flops, scores (elements of the matrix of weights), rows (features read)
    pass          calls, bytes, spilled (bytes beyond what a core's own cache holds)
    optimiser     calls (tensors), parameters
A device that works in tiles computes whole ones, in waves over its multiprocessors; see `tiled`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mim3d.engine.planning.operations import Operation

Columns = Mapping[str, float]
COLUMNS: dict[str, tuple[str, ...]] = {
    "product": ("calls", "flops", "operands", "results"),
    "convolution": ("calls", "flops", "padded", "operands", "results", "spilled"),
    "attention": ("calls", "flops", "scores", "rows"),
    "pass": ("calls", "bytes", "spilled"),
    "optimiser": ("calls", "parameters"),
}
"""By kind; a family of passes is that of one operation, such as "pass gelu", or all others'."""
ARITHMETIC = {"flops", "padded", "scores", "parameters"}
OWN_CACHE = 1 << 20
"""Bytes that a core of a CPU keeps to itself, about; on a GPU the column is not used."""
LANES = 16
TILES = ((128, 256, 1.0), (256, 128, 1.0), (192, 128, 0.97), (128, 128, 0.86), (64, 128, 0.66))
"""Tiles of a product on a GPU, and what they reach of the best one's rate."""
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Parts that the inner dimension may be split in, to fill a device."""
RAMP = 350
"""Elements of the inner dimension that a tile's beginning and end take as long as."""
LEAST_SPLIT = 256
ATTENTION_TILE = 128


@dataclass(frozen=True)
class Law:
    """Seconds a unit, by column, and how it is known."""

    seconds: dict[str, float]
    source: str
    roofline: bool = False
    """The larger of arithmetic and traffic counts, not their sum."""
    spread: float = 0.0
    """Mean distance of what was measured from the law, as a share."""
    largest: float = math.inf
    """The most arithmetic or bytes of an operation that the law was fitted to."""
    samples: int = 0

    def of(self, columns: Columns) -> float:
        """Seconds of an operation."""
        parts = {name: each * columns.get(name, 0.0) for name, each in self.seconds.items()}
        if not self.roofline:
            return sum(parts.values())
        busy = sum(value for name, value in parts.items() if name in ARITHMETIC)
        traffic = sum(v for name, v in parts.items() if name not in {*ARITHMETIC, "calls"})
        return parts.get("calls", 0.0) + max(busy, traffic)


@dataclass(frozen=True)
class Laws:
    """The laws of a machine by family, and its multiprocessors (0: it does not work in tiles)."""

    families: dict[str, Law] = field(default_factory=dict)
    multiprocessors: int = 0
    head_rates: Mapping[int, float] = field(default_factory=dict)
    """How much slower attention is, by features of a head; 1 where not given."""
    met: frozenset[str] = frozenset()
    """Most particular families of all operations that laws were fitted to, with a law or a share in
    that of all other passes."""

    def family(self, operation: Operation) -> str:
        """The most particular family that has a law."""
        for name in names_of(operation):
            if name in self.families:
                return name
        return names_of(operation)[-1]

    def knows(self, operation: Operation) -> bool:
        """Whether laws were fitted to operations of its name."""
        return names_of(operation)[0] in self.met

    def seconds(self, operation: Operation) -> float:
        """Of one operation on the device."""
        law = self.families[self.family(operation)]
        seconds = law.of(columns_of(operation, self.multiprocessors))
        if operation.kind == "attention":
            seconds *= self.slowness(operation.size[-1])
        return seconds

    def slowness(self, head: int) -> float:
        """Of attention with heads of so many features, beside the widest known."""
        known = [self.head_rates[each] for each in sorted(self.head_rates) if each >= head]
        return known[0] if known else 1.0


def names_of(operation: Operation) -> tuple[str, ...]:
    """Families that an operation belongs to, the most particular first."""
    if operation.kind == "pass":
        return f"pass {operation.name}", "pass"
    if operation.backward:
        return f"{operation.kind} backward", operation.kind
    return (operation.kind,)


def columns_of(operation: Operation, multiprocessors: int = 0) -> dict[str, float]:
    """What an operation takes, in the units of its kind's columns."""
    if operation.kind == "product":
        batch, m, n, k = operation.size
        flops = tiled(batch, m, n, k, multiprocessors) if multiprocessors else operation.flops
        return {
            "calls": 1.0,
            "flops": flops,
            "operands": batch * float(m * k + k * n),
            "results": batch * float(m * n),
        }
    if operation.kind == "convolution":
        return convolution_columns(operation)
    if operation.kind == "attention":
        rows, n, m, d = operation.size
        if multiprocessors:
            n, m = whole(n, ATTENTION_TILE), whole(m, ATTENTION_TILE // 2)
        size = rows * float(n * m)
        times = 2.5 if operation.backward else 1.0
        return {
            "calls": 1.0,
            "flops": 4.0 * size * d * times,
            "scores": size,
            "rows": rows * float((n + m) * d),
        }
    nbytes = operation.nbytes
    return {"calls": 1.0, "bytes": nbytes, "spilled": max(0.0, nbytes - OWN_CACHE)}


def convolution_columns(operation: Operation) -> dict[str, float]:
    """A convolution's: padded to whole vectors of channels."""
    read, written, wide_in, wide_out, _, gradients, _ = operation.size
    padding = whole(wide_in, LANES) * whole(wide_out, LANES) / (wide_in * wide_out)
    times = max(gradients, 1)
    return {
        "calls": 1.0,
        "flops": operation.flops,
        "padded": operation.flops * padding,
        "operands": float(times * read * wide_in),
        "results": float(times * written * wide_out),
        "spilled": times * max(0.0, 4.0 * (read * wide_in + written * wide_out) - OWN_CACHE),
    }


def tiled(batch: int, m: int, n: int, k: int, multiprocessors: int) -> float:
    """FLOPs of a product as if whole tiles in whole waves were computed, by the best of tiles."""
    best = math.inf
    for tile_m, tile_n, rate in TILES:
        tiles = batch * math.ceil(m / tile_m) * math.ceil(n / tile_n)
        for parts in SPLITS:
            if parts > 1 and k / parts < LEAST_SPLIT:
                break
            waves = math.ceil(tiles * parts / multiprocessors)
            one = 2.0 * tile_m * tile_n * (k / parts + RAMP) / rate
            best = min(best, waves * multiprocessors * one)
    return best


def whole(count: int, unit: int) -> int:
    """The multiple of `unit` that holds `count`."""
    return -(-count // unit) * unit
