"""A corpus in a folder or at an address, opened with what reads its shards."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mim3d.dataio.corpus import Corpus
from mim3d.dataio.quarantine import QUARANTINE, Rejection, parse_quarantine
from mim3d.dataio.shard_files import LocalShards
from mim3d.dataio.shard_reader import Shards
from mim3d.dataio.store import open_store
from mim3d.dataio.tree import ADDRESS


@contextmanager
def opened_corpus(place: str | Path) -> Iterator[tuple[Corpus, Shards]]:
    """Open it and close it; CorpusError where there is none. A remote table is fetched first."""
    if not is_address(place):
        corpus = Corpus.open(place)
        yield corpus, LocalShards(corpus.root)
        return
    from mim3d.dataio.remote_shards import open_remote

    corpus, shards, folder = open_remote(str(place))
    with folder:
        yield corpus, shards


def is_address(place: str | Path) -> bool:
    """Whether a corpus is named by an address such as s3://bucket/corpus.zarr."""
    return bool(ADDRESS.match(str(place)))


def quarantined(place: str | Path) -> list[Rejection]:
    """What the conversion left out; none where it did not finish."""
    store = open_store(place)
    if not store.exists(QUARANTINE):
        return []
    return parse_quarantine(store.get(QUARANTINE), f"{place}/{QUARANTINE}")
