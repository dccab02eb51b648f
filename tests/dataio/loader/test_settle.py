"""Streams that a GPU could not decode are told, whenever that comes out: nvCOMP says so late."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from nvcomp_library import Library, installed
from race_device import a_device

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.device.inflate import NvcompInflate
from mim3d.dataio.errors import ChunkError
from mim3d.dataio.loader.loader import Loader, LoaderConfig

CONFIG = LoaderConfig((16, 16, 16), micro_batch=2, cache="device", prefetch=1)
FAILURE = r"could not decode 1 streams whose stored bytes are sound: use cache='host'"


@pytest.fixture
def root(tmp_path) -> Path:
    return corpus_of(tmp_path / "c.zarr", [anatomy_like((32, 32, 32), i) for i in range(4)])


@contextmanager
def opened(root: Path, spoilt: Callable[[int], int], **more: Any) -> Iterator[Loader]:
    """A loader over nvCOMP's stand-in, on a device where one stream of those of `take` fails."""
    with pytest.MonkeyPatch.context() as patch:
        library = installed(patch)
        with a_device(inflate=NvcompInflate):
            loader = Loader(root, CONFIG, **more)
            library.spoilt = Last(library, spoilt)  # type: ignore[assignment]
            yield loader


class Last:
    """Streams of which the one that `which` names fails."""

    def __init__(self, library: Library, which: Callable[[int], int]) -> None:
        self.library, self.which = library, which

    def __contains__(self, number: int) -> bool:
        return number == self.which(number)


def first(_number: int) -> int:
    return 0


def never(_number: int) -> int:
    return -1


def test_sound_streams_are_settled_in_silence(root):
    with opened(root, never, epochs=1) as loader, loader:
        assert len(list(loader)) == 2
        loader.settle()


def test_the_end_of_a_pass_tells_it(root):
    with opened(root, first, epochs=1) as loader:
        batches = iter(loader)
        next(batches)
        next(batches)  # a device says so when it comes to it
        with pytest.raises(ChunkError, match=FAILURE):
            next(batches)
        loader.close()


def test_close_tells_it_once_all_is_closed(root):
    with opened(root, first) as loader:
        next(loader)
        with pytest.raises(ChunkError, match=FAILURE):
            loader.close()
        loader.close()
        with pytest.raises(RuntimeError, match="closed"):
            next(loader)


def test_the_end_of_a_block_tells_it_and_hides_no_other_error(root):
    with opened(root, first) as loader, pytest.raises(ChunkError, match=FAILURE), loader:
        next(loader)
    with opened(root, first) as loader, pytest.raises(ZeroDivisionError) as found, loader:
        next(loader)
        _ = 1 / 0
    assert "could not decode 1 streams" in found.value.__notes__[0]


def test_what_was_told_is_not_told_again_by_close(root):
    with opened(root, first) as loader:
        next(loader)
        for _ in range(2):
            with pytest.raises(ChunkError, match=FAILURE):
                loader.settle()
        with pytest.raises(ChunkError, match=FAILURE):
            next(loader)  # its voxels may be kept
        loader.close()


def test_what_the_message_advises_reads_the_same_corpus(root):
    with opened(root, first) as loader:
        next(loader)
        with pytest.raises(ChunkError, match="use cache='host'"):
            loader.close()
    with Loader(root, LoaderConfig((16, 16, 16), micro_batch=2, cache="host")) as host:
        assert next(host).image.isfinite().all()
