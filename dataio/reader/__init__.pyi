from .corpus import Corpus, opened_corpus
from .shard_reader import ShardReader
from .whole_volume import read_volume

__all__ = [
    "Corpus",
    "ShardReader",
    "opened_corpus",
    "read_volume",
]
