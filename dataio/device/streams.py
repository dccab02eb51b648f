"""Stored chunks to one buffer of raw lz4 or zstd streams, as a batched decompressor wants them.

Two ways with equal bytes: a loop in C (`native/streams.c`) that checks and packs many chunks per
call without the GIL, and `blosc_frame.parse_frame`, stream by stream, for what the loop leaves
alone and where it was not built.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mim3d.dataio.chunks.decode import checked_frame
from mim3d.dataio.device.blosc_frame import CODECS, Frame, parse_frame
from mim3d.dataio.native.extension import stream_loops

ALIGN = 16  # bytes
STREAM_OVERHEAD = 48
"""Bytes that wrapping (21 at the most) and aligning (15) add to a stream, rounded up."""
BLOCK_BYTES = 1 << 15
"""No shorter blocks than these are expected in larger chunks: so many streams have room."""


class FrameError(ValueError):
    """A chunk that cannot be packed; `index` is its place in what was given."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(why)
        self.index = index


def packed_room(chunks: int, stored_bytes: int, chunk_bytes: int, itemsize: int) -> int:
    """Bytes that so many chunks, stored in `stored_bytes`, may take once their streams are laid."""
    streams = chunks * itemsize * -(-chunk_bytes // BLOCK_BYTES)
    return stored_bytes + chunks * chunk_bytes // 255 + (streams + 1) * STREAM_OVERHEAD


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


class StreamPacker:
    """Packs up to `chunks` chunks of `chunk_bytes` that are stored in `stored_bytes`.

    `room` is how long `buffer`, uint8, must be; set it before the first `add`.
    """

    def __init__(self, chunks: int, stored_bytes: int, chunk_bytes: int, itemsize: int) -> None:
        self._chunk_bytes, self._itemsize = chunk_bytes, itemsize
        streams = chunks * itemsize * -(-chunk_bytes // BLOCK_BYTES)
        self.room = packed_room(chunks, stored_bytes, chunk_bytes, itemsize)
        self.buffer = np.empty(0, np.uint8)
        self.used = 0
        self._rows = np.empty((streams, 4), np.int64)
        self._counts = np.zeros(chunks, np.int64)
        self._layouts = np.zeros((chunks, 3), np.int64)
        self._n_rows = self._done = 0

    def add(self, stored: Sequence[np.ndarray]) -> None:
        """Check and pack chunks, frame and crc32c each; FrameError for one that is damaged."""
        loop = stream_loops()
        begin = 0
        while begin < len(stored) and loop is not None:
            at = self._done
            _, done, self.used, self._n_rows = loop.pack(
                list(stored[begin:]), self._chunk_bytes, self._itemsize, self.buffer, self.used,
                self._rows, self._n_rows, self._counts[at:], self._layouts[at:],
            )  # fmt: skip
            begin, self._done = begin + done, self._done + done
            if begin < len(stored):  # what is wrong with it, or a kind the loop leaves alone
                self._add_parsed(begin, stored[begin])
                begin += 1
        for index in range(begin, len(stored)):
            self._add_parsed(index, stored[index])

    def streams(self, chunks: np.ndarray) -> Streams:
        """Where everything lies; `chunks` are the numbers of what was added, in that order."""
        layouts = self._layouts[: self._done]
        kinds = np.unique(layouts[:, 2])
        if len(kinds) > 1:
            raise ValueError(f"chunks of several codecs {kinds.tolist()} in one batch")
        codec = CODECS[int(kinds[0])] if len(kinds) else ""
        counts, rows = self._counts[: self._done], self._rows[: self._n_rows]
        return Streams(codec, chunks, layouts[:, :2], counts, rows)

    def _add_parsed(self, index: int, stored: np.ndarray) -> None:
        try:
            frame = parse_frame(checked_frame(stored), self._chunk_bytes, self._itemsize)
            self._put(frame)
        except ValueError as error:
            raise FrameError(index, str(error)) from error

    def _put(self, frame: Frame) -> None:
        n = self._n_rows
        if n + len(frame.streams) > len(self._rows):
            raise ValueError(f"blocks of {frame.block_bytes} bytes, shorter than are written here")
        for row, stream in enumerate(frame.streams, n):
            length = len(stream.data)
            self.buffer[self.used : self.used + length] = stream.data
            self._rows[row] = self.used, length, stream.at, stream.size
            self.used += -(-length // ALIGN) * ALIGN
        format = next(number for number, name in CODECS.items() if name == frame.codec)
        self._layouts[self._done] = frame.block_bytes, frame.shuffle == "bit", format
        self._counts[self._done] = len(frame.streams)
        self._n_rows += len(frame.streams)
        self._done += 1


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
