"""What every place that compressed bytes come from can do."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.reader.local_shards import OpenFile

Numbers = Sequence[int] | np.ndarray
Run = tuple[int, np.ndarray]
"""First byte in a shard, and the bytes from there on."""


def sliced(runs: Sequence[Run], offsets: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """Ascending ranges out of the runs that hold them."""
    views, at = [], 0
    for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
        while offset >= runs[at][0] + len(runs[at][1]):
            at += 1
        begin, data = runs[at]
        views.append(data[offset - begin : offset - begin + size])
    return views


class Shards(Protocol):
    """Where compressed bytes come from: local files, an object store, or a cache before either."""

    def open_file(self, path: str, nbytes: int) -> OpenFile | None:
        """The shard as an open local file; None where it is none, and is to be read by `runs`."""
        ...

    def runs(self, path: str, nbytes: int, offsets: Numbers, sizes: Numbers) -> list[Run]:
        """Ranges of one shard (ascending) with what was read between them: where each run of bytes
        begins, and its bytes (uint8), valid until the calling thread reads again."""
        ...

    def has_room(self) -> bool:
        """Whether readings to come should be announced now; never where that gains nothing."""
        ...

    def announce(self, path: str, offsets: np.ndarray, sizes: np.ndarray) -> None:
        """These ranges of a shard (int64, ascending) will be read, after those announced before."""
        ...

    def withdraw(self) -> None:
        """What was announced and not read will not be."""
        ...

    def metrics(self) -> dict[str, float]:
        """Totals so far, by name."""
        ...

    def watch(self, table: ChunkTable) -> None:
        """From here on a shard that is not the one this table tells of is a CorpusError."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...
