"""A crop with the artefacts that its numbers give it.

It is (c, z, y, x) float32 on any device, and all that happens follows from numbers already drawn.
A label is left as it is, for voxels stay where they are.
"""

import numpy as np
from torch import Tensor

from mim3d.dataio.transforms.artefacts import Artefacts
from mim3d.dataio.transforms.intensity_artefacts import (
    TERMS,
    bias_field,
    low_resolution,
    multiplied,
    powered,
)
from mim3d.dataio.transforms.kspace import ghosting, truncated
from mim3d.dataio.transforms.placement import Range

# Which number of a sample decides what, COEFFICIENT one for each term, LOG_GAMMA one a channel.
BIAS, GHOST, GHOSTS, GHOST_AXIS, GHOST_STRENGTH, GIBBS, ALPHA, LOW, LOW_AXIS, LOW_FACTOR = range(10)
GAMMA, COEFFICIENT = 10, 11
LOG_GAMMA = COEFFICIENT + len(TERMS)


def n_draws(channels: int) -> int:
    """Numbers that a crop's artefacts are drawn by."""
    return LOG_GAMMA + channels


def with_artefacts(image: Tensor, kind: Artefacts, u: np.ndarray) -> Tensor:
    """A crop (c, z, y, x) float32 with the artefacts that `u` (n_draws(c),) in [0, 1) gives it."""
    if u[BIAS] < kind.bias_field:
        coefficients = kind.coefficient * (2 * u[COEFFICIENT:LOG_GAMMA] - 1)
        image = multiplied(image, bias_field(image.shape[1:], coefficients.tolist(), image))
    if u[GHOST] < kind.ghosting:
        fewest, most = kind.ghosts
        ghosts = fewest + int(u[GHOSTS] * (most + 1 - fewest))
        strength = _between(kind.ghost_strength, u[GHOST_STRENGTH])
        image = ghosting(image, ghosts, int(3 * u[GHOST_AXIS]), strength)
    if u[GIBBS] < kind.gibbs:
        image = truncated(image, _between(kind.truncation, u[ALPHA]))
    if u[LOW] < kind.low_resolution:
        factor = _between(kind.downsampling, u[LOW_FACTOR])
        image = low_resolution(image, int(3 * u[LOW_AXIS]), factor)
    if u[GAMMA] < kind.gamma:
        low, high = kind.log_gamma
        image = powered(image, np.exp(low + (high - low) * u[LOG_GAMMA:]).tolist())
    return image


def _between(bounds: Range, u: float) -> float:
    return float(bounds[0] + (bounds[1] - bounds[0]) * u)
