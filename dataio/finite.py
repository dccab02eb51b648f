"""Numbers of a configuration that are none: NaN and the infinities, refused by name."""

import dataclasses
import math
from typing import Any

from mim3d.dataio.errors import Mim3dError


def refuse_not_finite(config: Any, part: str = "", kind: type[Mim3dError] = Mim3dError) -> None:
    """An error of `kind` naming the first field of a dataclass that holds NaN or an infinity.

    NaN passes every comparison by which a bound is checked, and turns what it meets into NaN.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                name = f"{part}.{field.name}" if part else field.name
                raise kind(f"{name} {number} must be a finite number")
