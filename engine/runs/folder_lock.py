"""One writer to a folder of results: the kernel's lock on a file in it.

The lock goes with the process, however that ends, so nothing has to be cleaned up after a crash.
Network file systems without locks refuse it loudly, which is better than two writers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mim3d.dataio.corpus.names import store_around
from mim3d.dataio.storage.file_lock import sign, take_lock
from mim3d.engine.errors import ConfigError, TrainingError
from mim3d.engine.runs.files import refuse_address

LOCK = ".lock"
DEAD_HOLDER_S = 20.0
"""A killed holder's lock is waited for: a process that it was starting may hold it for a moment."""


def refuse_store(folder: Path) -> None:
    """A ConfigError where results would lie in a corpus, which would be one no more."""
    if place := store_around(folder):
        raise ConfigError(
            f"{place} is a Zarr store: choose an --out that is not a corpus, nor in one"
        )


@contextmanager
def sole_writer(folder: Path, place: str = "") -> Iterator[None]:
    """Hold the folder's lock; TrainingError naming the holder where another process has it,
    ConfigError where it is a corpus or in one.

    `place` is what people are told of a folder that stands for another place.
    """
    refuse_address(folder)
    refuse_store(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as held:
        if holder := take_lock(held, DEAD_HOLDER_S):
            raise TrainingError(
                f"{place or folder}: {holder} is writing to it; wait for it, stop it, or name "
                "another --out"
            )
        sign(held)
        yield
