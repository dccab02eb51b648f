"""Intensity normalisation from the corpus' statistics: one clip and one multiply-add per channel.

Modes: `none` (real values), `zscore` (mean and deviation of the foreground, the voxels above Otsu's
threshold), `clip-zscore` (the foreground clipped to its 0.5 and 99.5 percentiles, and the mean and
deviation of what that leaves), `percentile` (0.5 and 99.5 percentiles of all voxels to -1 and 1),
`window:LOW:HIGH` (that range, in real units such as HU, to -1 and 1).

Every channel has statistics of its own, so that its scale changes no other channel's values.
Statistics that would leave one value of a channel are not used: a foreground without deviation
gives way to the whole channel, percentiles that coincide (few bright voxels on a flat ground) to
the extremes. A channel that is one value everywhere, a modality that is missing, stays one value
(0, but for `none` and `window`).

A plugin adds modes of its own by `register_normalisation`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mim3d.dataio.chunks.decode import Rescale
from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.errors import CorpusError, Mim3dError
from mim3d.dataio.registry import OURS, Registry

LARGEST = float(np.finfo(np.float32).max)
VOLUMES_TOGETHER = 1 << 16
Column = np.ndarray
Moments = tuple[Column, Column]
Scaling = tuple[Column, Column, Column, Column]
"""Of each channel, in real units: low and high, the range to clip to, centre and unit:
`out = (clip(real, low, high) - centre) / unit`."""
Measure = Callable[..., Scaling]
"""From statistics (a structured array, one row a channel) and the mode's numbers to a Scaling."""


@dataclass(frozen=True)
class Intensities:
    """`out = clip(stored, low, high) * scale + shift`, one entry per channel, float32 `(rows,)`.

    Those of volume `v` begin at entry `first[v]` (-1: not among the chosen) and are `n[v]`.
    `fill` is the stored value that stands for air: padding uses it, so that after normalisation
    it is the darkest value of the channel.
    """

    low: np.ndarray
    high: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    fill: np.ndarray
    first: np.ndarray
    n: np.ndarray

    def rescales(self, volume: int, gain: float = 1.0, bias: float = 0.0) -> tuple[Rescale, ...]:
        """What turns stored voxels of each channel of a volume into `gain * normalised + bias`."""
        return tuple(
            Rescale(
                float(self.low[row]),
                float(self.high[row]),
                float(np.float32(self.scale[row] * gain)),
                float(np.float32(self.shift[row] * gain + bias)),
            )
            for row in self._rows(volume)
        )

    def fills(self, volume: int) -> tuple[float, ...]:
        """The stored value of air of each channel of a volume."""
        return tuple(float(self.fill[row]) for row in self._rows(volume))

    def _rows(self, volume: int) -> range:
        first = int(self.first[volume])
        return range(first, first + int(self.n[volume]))


def parse_mode(mode: str) -> tuple[str, tuple[float, ...]]:
    """Split a mode into its name and its numbers; Mim3dError where it is none of MODES."""
    name, *given = str(mode).split(":")
    measure = MODES.find(name, "normalise")
    try:
        numbers = tuple(float(number) for number in given)
        inspect.signature(measure).bind(None, *numbers)
    except (ValueError, TypeError):
        numbers = (np.nan,)
    if not np.isfinite(numbers).all() or not all(abs(number) <= LARGEST for number in numbers):
        raise Mim3dError(f"normalise={mode!r}: write {usage(name)}, with numbers of float32")
    if name == "window" and sorted(set(numbers)) != list(numbers):
        raise Mim3dError(f"normalise={mode!r}: write window:LOW:HIGH with LOW < HIGH")
    return name, numbers


def usage(name: str) -> str:
    """How a mode is written, such as window:LOW:HIGH."""
    _, *numbers = inspect.signature(MODES[name]).parameters
    return ":".join((name, *(number.upper() for number in numbers)))


def register_normalisation(name: str, measure: Measure) -> None:
    """Add a plugin's mode, written NAME or NAME:NUMBER:... by the parameters of `measure`.

    `measure(rows, ...)` is called with the statistics of all channels at once, among them
    rows["mean"], "std", "minimum", "maximum", "p005", "p995" and foreground_mean, foreground_std.
    """
    if not callable(measure) or not inspect.signature(measure).parameters:
        raise Mim3dError(
            f"the normalisation {name!r} is no function of the channels' statistics: give one such "
            "as measure(rows)"
        )
    MODES.add(name, measure)


def intensities(mode: str, table: ChunkTable, volumes: np.ndarray) -> Intensities:
    """Normalisation of `volumes` (rows of the table).

    CorpusError with the remedy where one of them lacks the statistics that the mode needs.
    """
    name, numbers = parse_mode(mode)
    _check(name, table, volumes)
    first = np.full(table.n_volumes, -1, np.int64)
    n = table.n_channels[volumes]
    ends = np.cumsum(n)
    first[volumes] = ends - n
    columns = np.empty((5, int(n.sum())), np.float32)
    # A plugin's function is given all channels at once; float64 columns of a million are 0.5 GB.
    together = VOLUMES_TOGETHER if MODES.maker_of(name) == OURS else len(volumes)
    for begin in range(0, len(volumes), together):
        part = volumes[begin : begin + together]
        rows, scalings = _of_channels(table, part)
        low, high, centre, unit = _columns(name, MODES[name](rows, *numbers), len(rows))
        entry = int(first[part[0]])
        columns[:, entry : entry + len(rows)] = _on_stored_values(
            rows, scalings, (low, high), centre, unit
        )
    low, high, scale, shift, fill = columns
    return Intensities(low, high, scale, shift, fill, first, table.n_channels)


def _columns(name: str, scaling: Scaling, n: int) -> Scaling:
    """A scaling of `n` channels as columns of float64; a Mim3dError where a plugin's is none."""
    try:
        columns = [np.broadcast_to(_real(np.asarray(column)), n) for column in scaling]
        low, high, centre, unit = columns
    except (ValueError, TypeError) as error:
        raise Mim3dError(
            f"the normalisation {name!r} gave no low, high, centre and unit for {n} channels "
            f"({error}): return four arrays of one number a channel"
        ) from error
    if np.isnan(np.stack(columns)).any() or not np.isfinite(np.stack([centre, unit])).all():
        raise Mim3dError(
            f"the normalisation {name!r} gave NaN or an infinite centre or unit for a channel: "
            "return finite numbers (low and high may be infinite)"
        )
    return low, high, centre, unit


def _none(rows: np.ndarray) -> Scaling:
    n = len(rows)
    return np.full(n, -np.inf), np.full(n, np.inf), np.zeros(n), np.ones(n)


def _zscore(rows: np.ndarray) -> Scaling:
    n = len(rows)
    return np.full(n, -np.inf), np.full(n, np.inf), *_foreground_moments(rows)


def _clip_zscore(rows: np.ndarray) -> Scaling:
    (low, high), (centre, unit) = _clipped(rows)
    return low, high, centre, unit


def _percentile(rows: np.ndarray) -> Scaling:
    low, high = _range(rows)
    return low, high, (high + low) / 2, (high - low) / 2


def _window(rows: np.ndarray, low: float, high: float) -> Scaling:
    ends = np.full(len(rows), low), np.full(len(rows), high)
    return *ends, (ends[1] + ends[0]) / 2, (ends[1] - ends[0]) / 2


MODES: Registry[Measure] = Registry(
    "normalisation",
    {
        "none": _none,
        "zscore": _zscore,
        "clip-zscore": _clip_zscore,
        "percentile": _percentile,
        "window": _window,
    },
)


def largest(values: Intensities, table: ChunkTable, volumes: np.ndarray) -> np.ndarray:
    """The largest magnitude that voxels of each of `volumes` come out with; float64 `(n,)`."""
    rows, (slope, intercept) = _of_channels(table, volumes)
    ends = []
    for name in ("minimum", "maximum"):
        stored = np.clip((_real(rows[name]) - intercept) / slope, values.low, values.high)
        ends.append(np.abs(stored * values.scale + values.shift))
    return np.maximum.reduceat(np.maximum(*ends), values.first[volumes])


def _of_channels(
    table: ChunkTable, volumes: np.ndarray
) -> tuple[np.ndarray, tuple[Column, Column]]:
    """For every channel of `volumes`, one after the other: statistics; slope and intercept."""
    n = table.n_channels[volumes]
    within = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    rows = table.channels[np.repeat(table.first_channel[volumes], n) + within]
    arrays = np.repeat(np.asarray(table.volumes["image"])[volumes].astype(np.int64), n)
    slope, intercept = (_real(table.arrays[name][arrays]) for name in ("slope", "intercept"))
    return rows, (slope, intercept)


def _check(name: str, table: ChunkTable, volumes: np.ndarray) -> None:
    """Refuse volumes whose statistics are not of their own channels, or not of clipped voxels."""
    rows, first = table.channels, table.first_channel[volumes]
    pooled = np.isnan(rows["mean"][first])
    if pooled.any():
        volume = int(volumes[pooled][0])
        raise CorpusError(
            f"{table.root}: volume {table.volume_id(volume)} has {table.n_channels[volume]} "
            "channels and one mean and deviation for all, from an earlier version: run the same "
            "`mim3d convert` again, which measures each channel"
        )
    old = np.isnan(rows["clipped_mean"][first])
    if name == "clip-zscore" and old.any():
        volume = table.volume_id(int(volumes[old][0]))
        raise CorpusError(
            f"{table.root}: normalise='clip-zscore' needs mean and deviation of clipped voxels, "
            f"which volume {volume}, from an earlier version, lacks: "
            "convert the sources into a new folder, or use normalise='zscore' or 'percentile'"
        )


def _foreground_moments(rows: np.ndarray) -> Moments:
    """Mean and deviation of the foreground, of the whole channel where the foreground has none."""
    usable = _has_foreground(rows)
    mean, std = _real(rows["foreground_mean"]), _real(rows["foreground_std"])
    mean = np.where(usable, mean, _real(rows["mean"]))
    return mean, np.where(usable, std, _real(rows["std"]))


def _clipped(rows: np.ndarray) -> tuple[tuple[Column, Column], Moments]:
    """Range to clip to, and moments of the voxels clipped to it: of the foreground, else of the
    whole channel, else its extremes, which clip nothing, with the foreground's own moments."""
    low, high = _real(rows["minimum"]), _real(rows["maximum"])
    mean, std = _foreground_moments(rows)
    for prefix in ("", "foreground_"):
        p005, p995, centre, unit = (
            _real(rows[prefix + part]) for part in ("p005", "p995", "clipped_mean", "clipped_std")
        )
        usable = (p005 < p995) & (unit > 0)
        low, high = np.where(usable, p005, low), np.where(usable, p995, high)
        mean, std = np.where(usable, centre, mean), np.where(usable, unit, std)
    return (low, high), (mean, std)


def _range(rows: np.ndarray) -> tuple[Column, Column]:
    """Percentiles of the whole channel, its extremes where they coincide."""
    low, high = _real(rows["p005"]), _real(rows["p995"])
    usable = low < high
    low = np.where(usable, low, _real(rows["minimum"]))
    return low, np.where(usable, high, _real(rows["maximum"]))


def _has_foreground(rows: np.ndarray) -> np.ndarray:
    """Whether a channel's foreground has a mean and a deviation."""
    mean, std = _real(rows["foreground_mean"]), _real(rows["foreground_std"])
    return np.isfinite(mean) & (std > 0)


def _on_stored_values(
    rows: np.ndarray,
    scalings: tuple[Column, Column],
    clip: tuple[np.ndarray, np.ndarray],
    centre: np.ndarray,
    unit: np.ndarray,
) -> list[np.ndarray]:
    """Fold `real = slope * stored + intercept` into the rescale: low, high, scale, shift, fill.

    A constant channel gets unit 1.
    """
    slope, intercept = scalings
    unit = np.where(unit > 0, unit, 1.0)
    stored_low, stored_high = ((edge - intercept) / slope for edge in clip)
    scale, shift = slope / unit, (intercept - centre) / unit
    air = (_real(rows["minimum"]) - intercept) / slope
    fill = np.where(np.isfinite(air), air, 0.0)
    ordered = np.minimum(stored_low, stored_high), np.maximum(stored_low, stored_high)
    return [part.astype(np.float32) for part in (*ordered, scale, shift, fill)]


def _real(column: np.ndarray) -> np.ndarray:
    return np.asarray(column, np.float64)
