"""Sources whose images a volume of the corpus holds already, in another order or number: they would
be two volumes of one scan, and nothing would tell.
"""

from collections.abc import Iterator, Mapping, Sequence

from mim3d.dataio.convert.known_sources import (
    Group,
    Paths,
    Recognised,
    base_id,
    file_ids,
    is_gone,
)
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.sources.source import Source


def refuse_held_twice(found: Recognised, corpus: str, *, prune: bool = False) -> None:
    """CorpusError where a new source has an image that a volume which stays holds already.

    A volume that `prune` takes out does not stay. Images of volumes that are of the sources given
    may be held twice: one list says so.
    """
    new = [source for source, group in found.sources if not group]
    stay = [group for group in found.others if not (prune and is_missing(group))] if new else []
    several = list(held_twice(new, stay, found.hashes))
    if several:
        source, group = several[0]
        more = f" ({len(several)} such sources)" if len(several) > 1 else ""
        raise CorpusError(
            f"{corpus}: volume {base_id(group[0])} holds {', '.join(group[0].sources)} in this "
            f"order, and another volume, of {', '.join(source.images)}, would hold the same image "
            f"again{more}: convert with the same --channels, or the same rows of a table, as "
            "before, or into a new corpus"
        )


def held_twice(
    sources: Sequence[Source], groups: Sequence[Group], hashes: Mapping[Paths, Sequence[str]]
) -> Iterator[tuple[Source, Group]]:
    """Sources with the volume that holds an image of theirs: by its path, as the same file, or
    moved."""
    holders: dict[object, Group] = {}
    contents: dict[str, list[Group]] = {}
    for group in groups:
        for path in group[0].sources:
            holders.update(dict.fromkeys(names_of(path), group))
        if hashes and is_missing(group):
            for hash in group[0].source_hash:
                contents.setdefault(hash, []).append(group)
    for source in sources:
        names = {name for path in source.images for name in names_of(path)}
        held = [holders[name] for name in names if name in holders]
        content = set(hashes.get(source.images, ()))
        # What stands for a missing modality is of several volumes, and says nothing.
        moved = [each[0] for hash in content if len(each := contents.get(hash, [])) == 1]
        for group in moved:
            whole = {*group[0].source_hash}
            held += [group] * (content <= whole or content >= whole)
        if held:
            yield source, min(held, key=lambda group: group[0].id)


def names_of(path: str) -> set[object]:
    """What an image is known by: its path, and its number on this machine."""
    return {path, *(file_ids((path,)) or ())}


def is_missing(group: Group) -> bool:
    """Whether an image of a volume is no more."""
    return any(map(is_gone, group[0].sources))
