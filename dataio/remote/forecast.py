"""How many requests a reading speed takes of a store: arithmetic, before a run."""

import math
from dataclasses import dataclass

from mim3d.dataio.geometry import Triple
from mim3d.dataio.remote.ticket import TOGETHER

CHUNK = 16
"""Voxels of a side of a chunk, as conversion has them by default."""
STORED_BYTES = 0.9
"""Of a voxel of int16, by lz4; CT and MR lie between 0.7 and 1.1."""


@dataclass(frozen=True)
class StoreNeed:
    """What a rank asks of a store whose every request takes `latency_ms`, then `mb_per_s`."""

    latency_ms: float
    mb_per_s: float
    crops_per_s: float
    requests_per_crop: int
    mb_per_crop: float
    requests: int
    """In flight at a time that it may have."""

    @property
    def request_s(self) -> float:
        """Seconds of one request."""
        return self.latency_ms / 1e3 + self.mb_per_crop / self.requests_per_crop / self.mb_per_s

    @property
    def in_flight(self) -> int:
        """Requests that must be in flight for the speed."""
        return math.ceil(self.crops_per_s * self._places * self.request_s)

    @property
    def most_crops_per_s(self) -> float:
        """What the requests that it may have give, where nothing else is in the way."""
        return self.requests / (self._places * self.request_s)

    @property
    def _places(self) -> int:
        """Of those in flight that a crop takes, times the requests it has in a row at each: a call
        holds its `TOGETHER` until the last of its requests is answered."""
        n = self.requests_per_crop
        return n if n < TOGETHER else TOGETHER * math.ceil(n / TOGETHER)


def store_need(
    crop: Triple,
    channels: int,
    crops_per_s: float,
    requests: int,
    latency_ms: float,
    mb_per_s: float,
) -> StoreNeed:
    """Of crops aligned to chunks, whose rows of chunks are a request each, nothing kept."""
    z, y, _ = (-(-side // CHUNK) for side in crop)
    nbytes = math.prod(crop) * channels * STORED_BYTES
    return StoreNeed(latency_ms, mb_per_s, crops_per_s, z * y * channels, nbytes / 1e6, requests)
