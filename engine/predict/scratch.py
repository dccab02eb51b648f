"""A scan's files through the very conversion of the run's corpus, into a corpus that soon goes.

No second way to read a scan: what a network learned from came through `convert`, and so does what
it is shown later. The corpus of one scan lies beside the results and is deleted with the scan.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mim3d.dataio.convert.job import Job
from mim3d.dataio.convert.work import run_job
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.writer import CorpusWriter
from mim3d.dataio.errors import SourceError
from mim3d.dataio.memory import forget
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.source import Source
from mim3d.dataio.storage.store import open_store

SCRATCH = ".scan.zarr"


@contextmanager
def converted(source: Source, id: str, conversion: Conversion, folder: Path) -> Iterator[Corpus]:
    """A corpus of the one source, without its labels; SourceError where it cannot be made."""
    place = folder / SCRATCH
    shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
    try:
        store = open_store(place)
        writer = CorpusWriter(store, conversion)
        writer.open()
        bare = replace(source, labels={}, class_names={}, ignore={})
        result = run_job(Job(bare, id, (), store.url, conversion))
        if result.rejections:
            first = result.rejections[0]
            raise SourceError(first.code, first.path, first.detail)
        writer.take(result.records, result.stale)
        writer.close(set())
        forget()  # what files were read into; the network needs the room
        yield Corpus.open(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
