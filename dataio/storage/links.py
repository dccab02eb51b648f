"""A folder of one store under a second name in another: hard links, no byte copied."""

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from mim3d.dataio.errors import CorpusError
from mim3d.dataio.storage.store import LocalStore, store_error


def link_folder(corpus: Path, name: str, keys: Iterable[str], store: LocalStore, id: str) -> None:
    """Give the files of a volume a second name below another store, all or none of them.

    What is there under that name goes. CorpusError where a file is missing, or the file system has
    no such links.
    """
    target = store.path(id)
    partial = target.parent / f".{id}.{os.getpid()}.partial"
    key = ""
    try:
        for key in keys:
            (partial / key).parent.mkdir(parents=True, exist_ok=True)
            os.link(corpus / name / key, partial / key)
        store.delete(id)
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise CorpusError(
                f"{corpus / name}: cannot be linked into {store.root} ({error.strerror}); "
                "name a destination on the same file system, one that has hard links"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise CorpusError(
                f"{corpus / name}: lacks {key}; `mim3d verify {corpus} --mend` makes it anew"
            ) from error
        raise store_error(target, error) from error
