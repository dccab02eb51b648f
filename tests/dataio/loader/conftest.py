"""What several tests of the loader do to a corpus."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mim3d.dataio.reader.corpus import Corpus


@pytest.fixture(scope="session")
def spoil() -> Callable[[Path, int], None]:
    """Flips a byte in every stored chunk of a corpus' volume, so that none passes its checksum."""
    return _spoil


def _spoil(root: Path, volume: int) -> None:
    table = Corpus.open(root).table
    row = int(table.volumes["image"][volume])
    file = root / table.shard_path(row)
    data = bytearray(file.read_bytes())
    offsets, sizes = table.ranges(row)
    for offset in offsets[sizes > 0]:
        data[int(offset) + 40] ^= 255
    file.write_bytes(bytes(data))
