"""Which byte ranges of an object are fetched by one request: pure arithmetic."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

SPARE_SHARE = 0.4
"""Of the bytes that are needed so many more may be read, to save requests."""
SPARE_SLOTS, SPARE_BYTES = 1 / 64, 1 << 16
"""Of what a connection carries in one latency, at most so many bytes: what little objects may be
read beyond that share."""


@dataclass(frozen=True)
class Runs:
    """Joined ranges: run k is bytes `begins[k]` to `ends[k]`, range i lies in run `of[i]`."""

    begins: np.ndarray
    ends: np.ndarray
    of: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of all runs."""
        return int((self.ends - self.begins).sum())


def joined(offsets: np.ndarray, sizes: np.ndarray, latency_bytes: float) -> Runs:
    """Join ranges that touch, then the smallest gaps first.

    `offsets` and `sizes` are int64, ascending and apart from each other. `latency_bytes` is what a
    connection carries in the time that a request costs before its first byte: reading across a
    wider gap takes longer than asking again. All gaps together stay within a share of what is
    needed, for bytes are paid for too: by the link, and by others who share it.
    """
    ends = offsets + sizes
    gaps = offsets[1:] - ends[:-1]
    little = min(SPARE_SLOTS * latency_bytes, SPARE_BYTES)
    spare = max(SPARE_SHARE * float(sizes.sum()), little)
    order = np.argsort(gaps, kind="stable")
    ascending = gaps[order]
    taken = (np.cumsum(ascending) <= spare) & (ascending <= latency_bytes) | (ascending <= 0)
    apart = np.ones(len(gaps), bool)
    apart[order[taken]] = False
    first = np.concatenate([[True], apart])
    last = np.concatenate([apart, [True]])
    return Runs(offsets[first], ends[last], np.cumsum(first) - 1)


def cut(runs: Runs, most: int) -> list[tuple[int, int, int]]:
    """Requests `(run, begin, end)` of at most `most` bytes each, about alike within a run."""
    spans = []
    for run, (begin, end) in enumerate(zip(runs.begins.tolist(), runs.ends.tolist(), strict=True)):
        n = max(-(-(end - begin) // most), 1)
        edges = [begin + (end - begin) * i // n for i in range(n + 1)]
        spans += [(run, a, b) for a, b in pairwise(edges)]
    return spans
