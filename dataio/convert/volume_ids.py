"""Ids that are safe as folder names and object keys, and unique wherever case does not count."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mim3d.dataio.corpus.names import OWN
from mim3d.dataio.errors import CorpusError, Mim3dError
from mim3d.dataio.sources.source import Source

MAX_LENGTH = 100
RESERVED = frozenset({"con", "prn", "aux", "nul", "zarr.json", "labels", "c", "nifti", OWN})


def safe_id(wanted: str) -> str:
    """Letters, digits, `.`, `_` and single `-` of the wanted id, accents dropped.

    Never empty, never beginning with a dot or dash, never a reserved name. `--` does not occur: it
    marks what the converter appends itself.
    """
    flat = unicodedata.normalize("NFKD", wanted)
    flat = "".join(letter for letter in flat if not unicodedata.combining(letter))
    flat = re.sub(r"[^A-Za-z0-9._-]", "_", flat)
    flat = re.sub(r"\.\.+", ".", re.sub(r"--+", "-", flat)).strip("-.")
    if not flat.strip("_"):
        return f"v{short_hash(wanted)}"
    if flat.casefold() in RESERVED or flat.casefold().startswith(
        ("manifest.", "quarantine.", "chunks.")
    ):
        flat = f"v_{flat}"
    if len(flat) > MAX_LENGTH:
        flat = f"{flat[:MAX_LENGTH].rstrip('-.')}--{short_hash(wanted)}"
    return flat


def short_hash(text: str) -> str:
    """Eight hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


@dataclass(frozen=True)
class LabelFacts:
    """What a source says of one of its labels: names of classes, and the value that is none."""

    names: Mapping[int, str]
    ignore: int | None


def label_facts(source: Source, name: str, values: Sequence[int] = ()) -> LabelFacts:
    """What a source says of the label that is stored under this name, its `values` as classes 1,
    2, ... where it names these."""
    given = next((known for known in source.labels if safe_id(known) == name), name)
    names = source.class_names.get(given, {})
    if any(value in names for value in values):
        named = enumerate(values, start=1)
        names = {number: names[value] for number, value in named if value in names}
    return LabelFacts(names, source.ignore.get(given))


def unique_ids(
    sources: Sequence[Source], taken: Iterable[tuple[str, tuple[str, ...]]]
) -> list[str]:
    """One id per source, no two equal after case folding.

    `taken` are (id, paths) already in the corpus: a source keeps its id over reruns and other
    sources cannot have it. A second claimant gets a hash of its paths appended.
    """
    owners = {id.casefold(): paths for id, paths in taken}
    ids = []
    for source in sources:
        id, paths = safe_id(source.id), source.paths
        wanted = (id, f"{id}--{short_hash('|'.join(source.images))}")
        free = (name for name in wanted if owners.get(name.casefold(), paths) == paths)
        id = next(free, f"{id}--{short_hash('|'.join(paths))}")
        owners[id.casefold()] = paths
        ids.append(id)
    return ids


One = TypeVar("One")


def with_ids(
    known: Mapping[str, One],
    ids: Sequence[str],
    place: str,
    what: str = "volume",
    kind: type[Mim3dError] = CorpusError,
) -> list[One]:
    """Those of the ids asked for, in their order, all by default; `kind` for an unknown id."""
    missing = [id for id in ids if id not in known]
    if missing:
        near = ", ".join(list(known)[:3])
        like = f"; its ids are like {near}" if known else ", nor any other"
        raise kind(f"{place}: holds no {what} {missing[0]!r}{like}")
    return [known[id] for id in dict.fromkeys(ids or known)]
