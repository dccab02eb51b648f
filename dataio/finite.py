"""Numbers of a configuration that are none, or none that could be meant; refused by name."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from mim3d.dataio.errors import Mim3dError

MOST_WORKERS = 1024
"""Threads, processes or batches read ahead; a mistyped number must not be tried."""
MOST_SIZE = 1 << 16
"""Voxels of an edge, features, blocks: what any model of today is far below."""
MOST_SEED = (1 << 63) - 1
MOST_SECONDS = 1e7


def refuse_not_finite(config: Any, part: str = "", kind: type[Mim3dError] = Mim3dError) -> None:
    """An error of `kind` naming the first field of a dataclass that holds NaN or an infinity.

    NaN passes every comparison by which a bound is checked, and turns what it meets into NaN.
    """
    for field in dataclasses.fields(config):
        for number in _numbers(getattr(config, field.name)):
            if isinstance(number, float) and not math.isfinite(number):
                raise kind(f"{_name(part, field.name)} {number} must be a finite number")


def refuse_outside(
    config: Any,
    names: str,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: float = -math.inf,
    part: str = "",
    kind: type[Mim3dError] = Mim3dError,
) -> None:
    """An error of `kind` naming the first of the fields in `names` (words) that is out of bounds.

    Bounds are `least` to `most`, or those numbers `above` one. Of a tuple every number is held
    against them; what is no number has none.
    """
    lowest = f"above {above:.8g}" if above > -math.inf else f"at least {least:.8g}"
    bounds = lowest if most == math.inf else f"{lowest} and at most {most:.8g}"
    if least > -math.inf and most < math.inf:
        bounds = f"between {least:.8g} and {most:.8g}"
    elif least == above == -math.inf:
        bounds = f"at most {most:.8g}"
    for name in names.split():
        for number in _numbers(getattr(config, name)):
            if isinstance(number, int | float) and not (least <= number <= most and number > above):
                raise kind(f"{_name(part, name)} {number} must be {bounds}")


def _numbers(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, tuple) else (value,)


def _name(part: str, name: str) -> str:
    return f"{part}.{name}" if part else name
