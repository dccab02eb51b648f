"""Intensity normalisation from the corpus' statistics, as one clip and one multiply-add per volume.

Modes: `none` (real values), `zscore` (foreground mean and deviation), `clip-zscore` (the same after
clipping to the foreground's 0.5 and 99.5 percentiles), `percentile` (whole-volume 0.5 and 99.5
percentiles to -1 and 1), `window:LOW:HIGH` (that range, in real units such as HU, to -1 and 1).

Statistics that would leave one value of a volume are not used: a foreground without deviation gives
way to the whole volume, percentiles that coincide (few bright voxels on a flat ground) to the
extremes.
"""

from dataclasses import dataclass

import numpy as np

from mim3d.dataio.chunks.decode import Affine
from mim3d.dataio.errors import Mim3dError

MODES = ("none", "zscore", "clip-zscore", "percentile", "window:LOW:HIGH")
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Intensities:
    """`out = clip(stored, low, high) * scale + shift`, one entry per volume, float32 `(n,)`.

    `fill` is the stored value that stands for air: padding uses it, so that after normalisation
    it is the darkest value of the volume.
    """

    low: np.ndarray
    high: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    fill: np.ndarray

    def affine(self, volume: int, gain: float = 1.0, bias: float = 0.0) -> Affine:
        """What turns stored voxels of entry `volume` into `gain * normalised + bias`."""
        return Affine(
            float(self.low[volume]),
            float(self.high[volume]),
            float(np.float32(self.scale[volume] * gain)),
            float(np.float32(self.shift[volume] * gain + bias)),
        )


def parse_mode(mode: str) -> tuple[str, float, float]:
    """Split a mode into its name and window; Mim3dError where it is none of MODES."""
    name, *bounds = str(mode).split(":")
    if name == "window":
        try:
            low, high = (float(bound) for bound in bounds)
        except ValueError:
            low = high = 0.0
        if not -LARGEST <= low < high <= LARGEST:
            raise Mim3dError(
                f"normalise={mode!r}: write window:LOW:HIGH with LOW < HIGH, two numbers of float32"
            )
        return name, low, high
    if mode not in MODES:
        raise Mim3dError(f"normalise={mode!r} is none of: {', '.join(MODES)}")
    return name, -np.inf, np.inf


def intensities(mode: str, volumes: np.ndarray, images: np.ndarray) -> Intensities:
    """Normalisation of `volumes` (table rows) whose stored arrays are `images` (rows alike)."""
    name, window_low, window_high = parse_mode(mode)
    low, high = np.full(len(volumes), window_low), np.full(len(volumes), window_high)
    if name == "clip-zscore":
        low, high = _foreground_range(volumes)
    elif name == "percentile":
        low, high = _range(volumes)
    if name in {"zscore", "clip-zscore"}:
        centre, unit = _foreground_moments(volumes)
    elif name == "none":
        centre, unit = np.zeros(len(volumes)), np.ones(len(volumes))
    else:
        centre, unit = (high + low) / 2, (high - low) / 2
    return _on_stored_values(volumes, images, (low, high), centre, unit)


def largest(values: Intensities, volumes: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The largest magnitude of each volume's voxels as they come out; float64 `(n,)`."""
    slope, intercept = _real(images["slope"]), _real(images["intercept"])
    ends = []
    for name in ("minimum", "maximum"):
        stored = np.clip((_real(volumes[name]) - intercept) / slope, values.low, values.high)
        ends.append(np.abs(stored * values.scale + values.shift))
    return np.maximum(*ends)


def _foreground_moments(volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the foreground, of the whole volume where the foreground has none."""
    usable = _has_foreground(volumes)
    mean, std = _real(volumes["foreground_mean"]), _real(volumes["foreground_std"])
    mean = np.where(usable, mean, _real(volumes["mean"]))
    return mean, np.where(usable, std, _real(volumes["std"]))


def _foreground_range(volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of the foreground, or the range of the volume whose moments are used."""
    low, high = _real(volumes["foreground_p005"]), _real(volumes["foreground_p995"])
    usable = _has_foreground(volumes) & (low < high)
    whole_low, whole_high = _range(volumes)
    return np.where(usable, low, whole_low), np.where(usable, high, whole_high)


def _range(volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of the whole volume, its extremes where they coincide."""
    low, high = _real(volumes["p005"]), _real(volumes["p995"])
    usable = low < high
    low = np.where(usable, low, _real(volumes["minimum"]))
    return low, np.where(usable, high, _real(volumes["maximum"]))


def _has_foreground(volumes: np.ndarray) -> np.ndarray:
    """Whether a volume's foreground has a mean and a deviation."""
    mean, std = _real(volumes["foreground_mean"]), _real(volumes["foreground_std"])
    return np.isfinite(mean) & (std > 0)


def _on_stored_values(
    volumes: np.ndarray,
    images: np.ndarray,
    clip: tuple[np.ndarray, np.ndarray],
    centre: np.ndarray,
    unit: np.ndarray,
) -> Intensities:
    """Fold `real = slope * stored + intercept` into the affine; a constant volume gets unit 1."""
    slope, intercept = _real(images["slope"]), _real(images["intercept"])
    unit = np.where(unit > 0, unit, 1.0)
    stored_low, stored_high = ((edge - intercept) / slope for edge in clip)
    scale, shift = slope / unit, (intercept - centre) / unit
    air = (_real(volumes["minimum"]) - intercept) / slope
    fill = np.where(np.isfinite(air), air, 0.0)
    ordered = np.minimum(stored_low, stored_high), np.maximum(stored_low, stored_high)
    return Intensities(*(part.astype(np.float32) for part in (*ordered, scale, shift, fill)))


def _real(column: np.ndarray) -> np.ndarray:
    return np.asarray(column, np.float64)
