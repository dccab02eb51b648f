"""Voxels of foreground classes of a corpus' label arrays, looked up one array at a time.

A corpus of a million labelled volumes has 10^8 of them; they stay in the mapped file, and of them
what is used is checked where it is first used.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np

from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.corpus.names import TABLE
from mim3d.dataio.corpus.table_file import crcs_of_blocks
from mim3d.dataio.corpus.table_head import damaged
from mim3d.dataio.corpus.table_rows import POINTS_TOGETHER


class Points(NamedTuple):
    """`zyx` (n, 3) of voxels and the class (n,) of each, sorted by class."""

    classes: np.ndarray
    zyx: np.ndarray


class LabelPoints:
    """The points of label arrays, `rows` of the table's arrays; entry i is that of `rows[i]`."""

    def __init__(self, table: ChunkTable, rows: np.ndarray) -> None:
        self.table, self.rows = table, rows

    def __call__(self, entry: int) -> Points:
        """Points of one array; CorpusError if they are damaged."""
        found = self._of_array(int(self.rows[entry]))
        return Points(found["cls"], found["zyx"])

    def _of_array(self, row: int) -> np.ndarray:
        first = self.table.first_points
        if first is None or self.table.point_crcs is None:  # a table written before it had these
            begin, end = np.searchsorted(self._arrays, np.array([row, row + 1], "<u4"))
            return self.table.points[begin:end]
        begin, end = (int(i) for i in first[row : row + 2])
        for block in range(begin // POINTS_TOGETHER, -(-end // POINTS_TOGETHER)):
            if not self._checked[block]:
                self._check(block, self.table.point_crcs)
        return np.asarray(self.table.unchecked_points)[begin:end]

    def _check(self, block: int, crcs: np.ndarray) -> None:
        begin = block * POINTS_TOGETHER
        content = np.asarray(self.table.unchecked_points)[begin : begin + POINTS_TOGETHER]
        if crcs_of_blocks(content, POINTS_TOGETHER)[0] != crcs[block]:
            raise damaged(f"{self.table.root}/{TABLE}", "the sample points fail their checksum")
        self._checked[block] = 1

    @cached_property
    def _checked(self) -> bytearray:
        """1 for each block that passed."""
        crcs = self.table.point_crcs
        return bytearray(0 if crcs is None else len(crcs))

    @cached_property
    def _arrays(self) -> np.ndarray:
        """The array of each point, ascending: points are written array by array."""
        return np.ascontiguousarray(self.table.points["array"])
