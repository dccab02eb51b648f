"""Which byte ranges of an object are fetched by one request: pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

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


class Spans(NamedTuple):
    """Requests: number k asks for bytes `begins[k]` to `ends[k]`, of run `of[k]`."""

    of: Sequence[int]
    begins: list[int]
    ends: list[int]


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


def cut(runs: Runs, most: int) -> Spans:
    """Requests of at most `most` bytes each, about alike within a run."""
    begins, ends = runs.begins.tolist(), runs.ends.tolist()
    if int((runs.ends - runs.begins).max()) <= most:
        return Spans(range(len(begins)), begins, ends)
    of, edges = [], []
    for run, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        n = max(-(-(end - begin) // most), 1)
        edges += list(pairwise([begin + (end - begin) * i // n for i in range(n + 1)]))
        of += [run] * n
    return Spans(of, [begin for begin, _ in edges], [end for _, end in edges])
