"""Where the compressed streams of many chunks lie: found for a whole batch without a loop."""

from dataclasses import dataclass

import numpy as np

ROWS = 4096


@dataclass(frozen=True)
class Streams:
    """Streams of `chunks` (n,), one chunk's after the other's, `counts` (n,) of each.

    `layouts` (n, 2) int64 say how each chunk is shuffled: bytes of a block, and 1 where by bits, 0
    where by bytes. `rows` (sum, 4) int64 are offset in a buffer, compressed bytes, place in the
    chunk, and bytes when decoded.
    """

    codec: str
    chunks: np.ndarray
    layouts: np.ndarray
    counts: np.ndarray
    rows: np.ndarray

    @property
    def owners(self) -> np.ndarray:
        """For each row, which of `chunks` it belongs to."""
        return np.repeat(np.arange(len(self.chunks)), self.counts)


class StreamTable:
    """The streams of resident chunks, all of one codec.

    Two entries per chunk of the corpus, in memory that the system provides when it is written.
    """

    def __init__(self, n_chunks: int) -> None:
        self.codec = ""
        self._first = np.zeros(n_chunks, np.int64)
        self._counts = np.zeros(n_chunks, np.int32)
        self._layouts = np.zeros((n_chunks, 2), np.int64)
        self._rows = np.empty((ROWS, 4), np.int64)
        self._used = 0

    def has(self, chunks: np.ndarray) -> np.ndarray:
        """Which of the chunks are resident; (n,) bool."""
        return self._counts[chunks] > 0

    def add(self, streams: Streams, shift: int) -> None:
        """Take up chunks whose buffer now begins at byte `shift`."""
        n = len(streams.rows)
        while self._used + n > len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[self._used : self._used + n] = streams.rows + np.array([shift, 0, 0, 0])
        ends = np.cumsum(streams.counts)
        self._first[streams.chunks] = self._used + ends - streams.counts
        self._counts[streams.chunks] = streams.counts
        self._used += n
        self._layouts[streams.chunks] = streams.layouts
        self.codec = streams.codec

    def find(self, chunks: np.ndarray) -> Streams:
        """Streams of resident chunks."""
        counts = self._counts[chunks].astype(np.int64)
        ends = np.cumsum(counts)
        at = np.repeat(self._first[chunks] - (ends - counts), counts)
        rows = self._rows[at + np.arange(len(at))]
        return Streams(self.codec, chunks, self._layouts[chunks], counts, rows)
