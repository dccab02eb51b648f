"""Which volumes are drawn and how often, by what the corpus knows of them.

`where` chooses volumes by their data set, modality, session, split or subject, and `shares` tells
what part of the samples each data set gets, however many volumes it has. Both are a function of
the corpus and the configuration alone, so samples stay one of the seed at any number of ranks.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import isfinite

import numpy as np

from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.reader.corpus import Corpus

FACTS = ("dataset", "modality", "session", "split", "subject")
SHOWN = 6  # names listed in a message


def values_of(record: VolumeRecord, fact: str) -> Collection[str]:
    """What a record says of a fact; of a data set within a data set both names."""
    if fact == "dataset":
        return names_above(record.group)
    if fact == "modality":
        return record.channel_names
    return (str(getattr(record, fact)),)


def names_above(group: str) -> list[str]:
    """A group and those it lies in: `ours/siteA` -> `ours/siteA`, `ours`."""
    parts = group.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]


def check_where(words: Sequence[str]) -> None:
    """Mim3dError where a word is no FACT=VALUE[,VALUE...]."""
    for word in words:
        fact, _, listed = word.partition("=")
        if fact not in FACTS or not all(listed.split(",")):
            raise Mim3dError(f"where={word!r}: FACT=VALUE, the fact one of: {', '.join(FACTS)}")


def parsed_shares(words: Sequence[str]) -> dict[str, float]:
    """Share by name; Mim3dError where a word is no NAME=SHARE, or none is above 0."""
    shares: dict[str, float] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if not name or not isfinite(share) or share < 0:
            raise Mim3dError(f"shares={word!r}: DATASET=SHARE, such as openmind=0.7; 0 is none")
        if name in shares:
            raise Mim3dError(f"shares name {name!r} twice: leave one")
        shares[name] = share
    if shares and not any(shares.values()):
        raise Mim3dError(f"shares={tuple(words)!r}: one must be above 0")
    return shares


def drawn(
    corpus: Corpus,
    rows: np.ndarray,
    where: Sequence[str],
    shares: Sequence[str],
    weights_of: Callable[[np.ndarray], np.ndarray | None],
) -> tuple[np.ndarray, np.ndarray | None]:
    """Those of the table rows to draw from, and their weights (n,), or None for all alike.

    `weights_of` gives the weights of rows where there are no shares. Mim3dError where `where` or
    `shares` name what the corpus has not.
    """
    known: list[VolumeRecord] = []
    if where or shares:
        opened = Corpus(corpus.root, corpus.attributes, corpus.address)  # whose records then go
        by_id = {record.id: record for record in opened.records}
        known = [by_id[corpus.table.volume_id(row)] for row in rows.tolist()]
    if where:
        kept = chosen(known, where, corpus.table.root)
        rows, known = rows[kept], [known[i] for i in kept]
    weights = weights_of(rows)
    if shares:
        weights = share_weights(known, shares, weights, corpus.table.root)
        rows, weights = rows[weights > 0], weights[weights > 0]
    return rows, weights


def chosen(records: Sequence[VolumeRecord], where: Sequence[str], root: str) -> list[int]:
    """Places of the records of which every word of `where` is true; Mim3dError where a value is
    none of theirs, naming what there is."""
    places = list(range(len(records)))
    for word in where:
        fact, _, listed = word.partition("=")
        wanted = set(listed.split(","))
        found = [values_of(records[i], fact) for i in places]
        there = {value for values in found for value in values}
        if unknown := sorted(wanted - there):
            raise Mim3dError(
                f"where={word!r}: no volume of {root} has {fact} {unknown[0]!r}; it has "
                f"{some(there)}"
            )
        places = [i for i, values in zip(places, found, strict=True) if wanted & {*values}]
    return places


def share_weights(
    records: Sequence[VolumeRecord], words: Sequence[str], weights: np.ndarray | None, root: str
) -> np.ndarray:
    """Weights (n,) with which each data set gets its share, and within it volumes theirs
    (`weights`; None: all alike). Mim3dError where a volume is of no data set that is named, or
    none is of one that is."""
    shares = parsed_shares(words)
    owners = np.array([owner_of(record, shares) for record in records])
    groups = {record.group for record in records}
    if unnamed := {records[i].group for i in np.flatnonzero(owners == "").tolist()}:
        raise Mim3dError(
            f"shares do not name data set {some(unnamed)} of {root}: add its share (0 is none)"
        )
    made = np.ones(len(records)) if weights is None else np.array(weights, np.float64)
    for name, share in shares.items():
        mine = owners == name
        if not mine.any():
            raise Mim3dError(f"shares={name}={share:g}: {root} has data set {some(groups)} alone")
        made[mine] *= share / made[mine].sum()
    return made


def owner_of(record: VolumeRecord, shares: Mapping[str, float]) -> str:
    """The name that a volume's share stands under; empty where none is."""
    return next((name for name in names_above(record.group) if name in shares), "")


def some(names: Collection[str]) -> str:
    """The first few names, and how many more."""
    listed = [name or "(none: `mim3d convert --dataset NAME` names it)" for name in sorted(names)]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
