"""Several corpora as one, without copying a voxel: their files get a second name (a hard link).

What comes out is a corpus like any other, so samples are a function of the seed at any number of
ranks, and it can be verified, mended and added to. Its parts stay what they are: a conversion
exchanges files and never writes into one, so neither sees what is done to the other later.
"""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mim3d.dataio.convert.upkeep import check_manifest_lines
from mim3d.dataio.convert.volume_ids import safe_id, short_hash
from mim3d.dataio.corpus.arrays import expected_keys
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import VolumeRecord, read_manifest
from mim3d.dataio.corpus.names import OWN
from mim3d.dataio.corpus.root import recipe_of
from mim3d.dataio.corpus.writer import CorpusWriter
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.storage.remote import ADDRESS
from mim3d.dataio.storage.store import LocalStore, store_error


@dataclass(frozen=True)
class Merged:
    """Volumes by the corpus they came from, those already there, and subjects renamed apart."""

    volumes: dict[str, int]
    n_known: int
    renamed: tuple[str, ...]


def merge(corpora: Sequence[str | Path], destination: str | Path) -> Merged:
    """Make one corpus of several on the same file system; one that exists gets what it lacks.

    Ids and subjects that occur in several corpora get the name of theirs in front: the same name
    need not be the same person. CorpusError where corpora were made with other options, lie in a
    bucket or on another file system, or where the manifest of one is damaged.
    """
    names = corpus_names([str(corpus) for corpus in corpora], str(destination))
    conversion = common_recipe(corpora)
    listed = {name: read_manifest(Path(c)) for name, c in zip(names, corpora, strict=True)}
    clashes = shared([{r.subject for r in records} for records in listed.values()])
    doubled = shared([{r.id.casefold() for r in records} for records in listed.values()])
    store = LocalStore(destination)
    volumes: dict[str, int] = {}
    n_known = 0
    with store.lock():
        writer = CorpusWriter(store, conversion)
        writer.open()
        for (name, records), corpus in zip(listed.items(), corpora, strict=True):
            for record in records:
                made = renamed(record, name, clashes, doubled)
                if same_voxels(writer.records.get(made.id), made):
                    n_known += 1
                    continue
                link_volume(Path(corpus), record, store, made.id)
                writer.take([made], [])
                volumes[name] = volumes.get(name, 0) + 1
        writer.close(set())
    return Merged(volumes, n_known, tuple(sorted(clashes)))


def corpus_names(corpora: Sequence[str], destination: str) -> list[str]:
    """What each corpus is called: its folder's name without `.zarr`."""
    if len(corpora) < 2:
        raise CorpusError(f"{len(corpora)} corpora: name two or more to merge")
    for corpus in (*corpora, destination):
        if ADDRESS.match(corpus):
            raise CorpusError(
                f"{corpus}: only folders can be merged by links; copy the bucket's corpora to one "
                "file system first"
            )
        if not os.path.isdir(corpus) and corpus != destination:  # noqa: PTH112
            raise CorpusError(f"{corpus}: no such folder; `mim3d convert SRC {corpus}` makes one")
    names = [safe_id(Path(corpus).resolve().name.removesuffix(".zarr")) for corpus in corpora]
    twice = {name for name, n in Counter(map(str.casefold, names)).items() if n > 1}
    return [
        f"{name}-{short_hash(str(Path(corpus).resolve()))}" if name.casefold() in twice else name
        for name, corpus in zip(names, corpora, strict=True)
    ]


def common_recipe(corpora: Sequence[str | Path]) -> Conversion:
    """The recipe all were made by; CorpusError naming what differs."""
    stores = [LocalStore(corpus) for corpus in corpora]
    for store in stores:
        check_manifest_lines(store)
    found = [recipe_of(store) for store in stores]
    recipes = [recipe.attributes() for recipe in found]
    for store, recipe in zip(stores[1:], recipes[1:], strict=True):
        if differ := [key for key in recipe if recipe[key] != recipes[0].get(key)]:
            pairs = ", ".join(
                f"{key} {recipes[0].get(key)!r} and {recipe[key]!r}" for key in differ
            )
            raise CorpusError(
                f"{stores[0].url} and {store.url}: were made with other options ({pairs}); "
                "convert one of them again with those of the other, into a new corpus"
            )
    return found[0]


def shared(sets: Sequence[set[str]]) -> set[str]:
    """Names that are in more than one of the sets."""
    return {name for name, n in Counter(name for each in sets for name in each).items() if n > 1}


def renamed(
    record: VolumeRecord, corpus: str, clashes: set[str], doubled: set[str]
) -> VolumeRecord:
    """The record under the id and subject it gets; `group` is the corpus, and within it the
    data set that it was of."""
    id = f"{corpus}_{record.id}" if record.id.casefold() in {*doubled, OWN} else record.id
    subject = f"{corpus}/{record.subject}" if record.subject in clashes else record.subject
    is_named = record.group.split("/")[0] in ("", corpus)
    group = record.group or corpus if is_named else f"{corpus}/{record.group}"
    return replace(record, id=id, subject=subject, group=group)


def same_voxels(known: VolumeRecord | None, record: VolumeRecord) -> bool:
    """Whether a volume of the id is there, of the same shards."""
    if known is None:
        return False
    hashes = [[r.shard_sha256, *(a.shard_sha256 for a in r.labels)] for r in (known, record)]
    return hashes[0] == hashes[1]


def link_volume(corpus: Path, record: VolumeRecord, store: LocalStore, id: str) -> None:
    """Give the files of a volume a second name below the destination, all or none of them."""
    target = store.path(id)
    partial = target.parent / f".{id}.{os.getpid()}.partial"
    key = ""
    try:
        for key in expected_keys(record):
            (partial / key).parent.mkdir(parents=True, exist_ok=True)
            os.link(corpus / record.id / key, partial / key)
        store.delete(id)
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise CorpusError(
                f"{corpus / record.id}: cannot be linked into {store.root} ({error.strerror}); "
                "name a destination on the same file system, one that has hard links"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise CorpusError(
                f"{corpus / record.id}: lacks {key}; `mim3d verify {corpus} --mend` makes it anew"
            ) from error
        raise store_error(target, error) from error
