"""Statistics of every channel of every image in one table: what normalisation is worked out from.

Rows follow the volumes of the chunk table, and within a volume its channels. What a record does not
have is NaN: all of it for a volume of several channels whose statistics are pooled, the clipped
moments for one made before they were kept.
"""

from collections.abc import Sequence

import numpy as np

from mim3d.dataio.corpus.manifest import ChannelRecord, Intensity, VolumeRecord

CHANNELS = "chunks.channels.npy"
LARGEST = float(np.finfo(np.float32).max)
WHOLE = ("minimum", "maximum", "mean", "std", "p005", "p995")
INSIDE = ("foreground_mean", "foreground_std", "foreground_p005", "foreground_p995")
CLIPPED = ("clipped_mean", "clipped_std", "foreground_clipped_mean", "foreground_clipped_std")
COLUMNS = (*WHOLE, *INSIDE, *CLIPPED)
CHANNEL_DTYPE = np.dtype([(name, "<f4") for name in COLUMNS])
NOTHING = (np.nan,) * len(COLUMNS)


def channel_rows(records: Sequence[VolumeRecord]) -> np.ndarray:
    """Rows (CHANNEL_DTYPE) of records in the table's order."""
    rows = np.zeros(sum(record.channels for record in records), CHANNEL_DTYPE)
    first = 0
    for record in records:
        given = record.channel_records
        for channel in range(record.channels):
            rows[first + channel] = _figures(given[channel]) if given else NOTHING
        first += record.channels
    return rows


def _figures(channel: ChannelRecord) -> tuple[float, ...]:
    whole, inside = channel.intensity, channel.foreground
    figures = (
        whole.minimum, whole.maximum, whole.mean, whole.std, whole.p005, whole.p995,
        inside.mean, inside.std, inside.p005, inside.p995, *_clipped(whole), *_clipped(inside),
    )  # fmt: skip
    return tuple(held(figures))


def _clipped(found: Intensity) -> tuple[float, float]:
    if found.clipped_mean is None or found.clipped_std is None:
        return np.nan, np.nan
    return found.clipped_mean, found.clipped_std


def held(figures: Sequence[float]) -> list[float]:
    """Figures within float32: a scl_slope near its end takes real values beyond it."""
    return np.clip(figures, -LARGEST, LARGEST).tolist()


def rows_of_volumes(volumes: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """The rows where a table has none (before format 4), of its `volumes` with `channels` (n,).

    One channel has the volume's own statistics; of several, what is pooled counts as not known.
    """
    rows = np.empty(int(channels.sum()), CHANNEL_DTYPE)
    rows[...] = NOTHING
    single = channels == 1
    places = (np.cumsum(channels) - channels)[single]
    for name in (*WHOLE, *INSIDE):
        rows[name][places] = volumes[name][single]
    return rows
