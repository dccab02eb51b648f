"""Which sources a corpus already holds: by path, by file, and by content where files were moved.

All of it is a few look-ups a source. Files are asked for (one `stat` each) only where a source is
new by its path, and read only where records are left over whose files are gone.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mim3d.dataio.convert.volume_ids import label_facts, safe_id
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.errors import CorpusError, Rejection, SourceError
from mim3d.dataio.nifti.file import files_behind, is_remote
from mim3d.dataio.nifti.merged import masks_of
from mim3d.dataio.nifti.names import stem
from mim3d.dataio.sources.source import Source, was_declared
from mim3d.dataio.subjects.grouping import some

Paths = tuple[str, ...]
FileIds = tuple[tuple[int, int], ...]
Group = tuple[VolumeRecord, ...]
HashesOf = Callable[[Sequence[Source]], Mapping[Paths, tuple[str, ...]]]


@dataclass(frozen=True)
class Fact:
    """What was known of a volume; `now` it is another, or told no longer and so it `stays`. It
    `was_told` by a person or a table, or else by names, or an option of this run tells it anew;
    what stays and was not told cannot be changed."""

    what: str
    id: str
    before: str
    now: str
    stays: bool = False
    was_told: bool = True


@dataclass
class Recognised:
    """Sources to work on, each with the records the corpus has of it, groups of records that none
    of them is the source of, and what was listed twice. `hashes` are those that were read."""

    sources: list[tuple[Source, Group]] = field(default_factory=list)
    others: list[Group] = field(default_factory=list)
    duplicates: list[Rejection] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    hashes: Mapping[Paths, tuple[str, ...]] = field(default_factory=dict)


def recognise(
    sources: Sequence[Source],
    records: Iterable[VolumeRecord],
    hashes_of: HashesOf,
    conversion: Conversion | None = None,
) -> Recognised:
    """Find the records of every source; what was told of them and is not told again stays.

    `hashes_of` reads sources (of images only) and is called at most once. A source that names no
    label keeps those its volume has, unless they are another's now: a glob of the images alone
    takes nothing away.
    """
    found = Recognised()
    unique = without_repeated(sources, found.duplicates)
    groups = grouped(records)
    matched, left, held = by_path(unique, groups)
    ids: dict[Paths, FileIds | None] = {}
    if left:
        ids = {s.paths: file_ids(s.images) for s in unique}
        unique = without_same_files(unique, ids, found.duplicates)
        matched, left, held = by_path(unique, groups)
    if left and held:
        gone = by_file(left, held, ids, matched)
        left = [s for s in left if s.paths not in matched]
        # http and bucket objects cannot be asked cheaply: they are known by address alone.
        local = [s for s in left if not any(map(is_remote, s.images))]
        if gone and local:
            found.hashes = hashes_of(local)
            by_content(local, gone, found.hashes, matched)
    named = {path for source in unique for path in source.paths}
    for source in unique:
        group = matched.get(source.paths, ())
        whole = with_known_labels(source, group, named)
        whole = with_known_facts(whole, group, conversion or Conversion(), found.facts)
        found.sources.append((whole, group))
    taken = {record.id for _, group in found.sources for record in group}
    found.others = [group for group in groups if group[0].id not in taken]
    return found


def base_id(record: VolumeRecord) -> str:
    """Id of a record's source: that of its volume without the frame."""
    return record.id.rsplit("--t", 1)[0] if record.frame >= 0 else record.id


def grouped(records: Iterable[VolumeRecord]) -> list[Group]:
    """Records by source: the frames of one file belong together."""
    groups: dict[tuple[str, Paths], list[VolumeRecord]] = defaultdict(list)
    for record in records:
        groups[base_id(record), record.source_paths].append(record)
    return [tuple(group) for group in groups.values()]


def without_repeated(sources: Sequence[Source], duplicates: list[Rejection]) -> list[Source]:
    """Sources whose files were not listed before."""
    unique: dict[Paths, Source] = {}
    for source in sources:
        if source.paths in unique:
            first = unique[source.paths]
            detail = f"listed twice, as {first.id!r} and {source.id!r}{claims(first, source)}"
            duplicates.append(Rejection(source.images[0], "duplicate-source", detail))
        else:
            unique[source.paths] = source
    return list(unique.values())


def without_same_files(
    sources: Sequence[Source], ids: Mapping[Paths, FileIds | None], duplicates: list[Rejection]
) -> list[Source]:
    """Sources without those that are links to the very files of another one.

    Of several with the same images, the labelled ones stay: their labels differ.
    """
    alike: dict[FileIds, list[Source]] = defaultdict(list)
    for source in sources:
        if (key := ids[source.paths]) is not None:
            alike[key].append(source)
    dropped: set[Paths] = set()
    for several in alike.values():
        if len(several) == 1:
            continue
        kept: dict[FileIds | None, Source] = {}
        labelled = [s for s in several if s.labels]
        for source in labelled or several[:1]:
            kept.setdefault(file_ids(source.paths[len(source.images) :]), source)
        stay = {source.paths for source in kept.values()}
        for source in several:
            if source.paths not in stay:
                other = next(iter(kept.values()))
                detail = f"is the same file as {other.images[0]}, by another path or label"
                detail += claims(other, source)
                duplicates.append(Rejection(source.images[0], "duplicate-source", detail))
                dropped.add(source.paths)
    return [source for source in sources if source.paths not in dropped]


def claims(first: Source, other: Source) -> str:
    """What the first of two sources of the same images says otherwise than the other: the first
    counts."""
    facts = [
        ("subject", first.subject, other.subject),
        ("split", first.split, other.split),
        ("labels", *(", ".join(f"{n} ({s.labels[n]})" for n in sorted(s.labels))
                     for s in (first, other))),
    ]  # fmt: skip
    differ = [f"{what} {a or 'none'!r} and {b or 'none'!r}" for what, a, b in facts if a != b]
    return f", with {'; '.join(differ)}: the first counts, leave one" if differ else ""


def file_ids(paths: Paths) -> FileIds | None:
    """Device and number of each file; None where one is remote or not there."""
    try:
        found = [os.stat(path) for path in paths if not is_remote(path)]  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return tuple((s.st_dev, s.st_ino) for s in found) if len(found) == len(paths) else None


def by_path(
    sources: Sequence[Source], groups: Sequence[Group]
) -> tuple[dict[Paths, Group], list[Source], list[Group]]:
    """Sources known by all their paths, else by their images'; sources and groups left over."""
    whole = {group[0].source_paths: group for group in groups}
    matched = {s.paths: whole.pop(s.paths) for s in sources if s.paths in whole}
    images: dict[Paths, list[Group]] = defaultdict(list)
    for group in reversed(whole.values()):
        images[group[0].sources].append(group)
    left = []
    for source in sources:
        if source.paths in matched:
            continue
        if images.get(source.images):
            matched[source.paths] = images[source.images].pop()
        else:
            left.append(source)
    return matched, left, [group for several in images.values() for group in several]


def by_file(
    sources: Sequence[Source],
    groups: Sequence[Group],
    ids: Mapping[Paths, FileIds | None],
    matched: dict[Paths, Group],
) -> list[Group]:
    """Match sources that are the same files under another path; returns groups that are gone."""
    places: dict[FileIds, list[Group]] = defaultdict(list)
    gone = []
    for group in groups:
        if any(map(is_remote, group[0].sources)):
            continue
        key = file_ids(group[0].sources)
        if key is None:
            gone.append(group)
        else:
            places[key].append(group)
    for source in sources:
        key = ids[source.paths]
        if key is not None and places.get(key):
            matched[source.paths] = places[key].pop()
    return gone


def by_content(
    sources: Sequence[Source],
    gone: Sequence[Group],
    hashes: Mapping[Paths, tuple[str, ...]],
    matched: dict[Paths, Group],
) -> None:
    """Match sources whose images are those of records whose files are gone: they were moved."""
    contents: dict[tuple[str, ...], list[Group]] = defaultdict(list)
    for group in reversed(gone):
        contents[group[0].source_hash].append(group)
    for source in sources:
        if contents.get(hashes.get(source.images, ())):
            matched[source.paths] = contents[hashes[source.images]].pop()


def with_known_facts(
    source: Source, group: Group, conversion: Conversion, facts: list[Fact]
) -> Source:
    """The source with what was told of its volume before and is not told now: whose it is, its
    split, data set and session, and names of classes. `facts` get what stays or changes."""
    if not group:
        return source
    first, id = group[0], base_id(group[0])
    # What the converter or a merge made of an id is no other one.
    own_id, told_id = (f"_{each}".partition("--")[0] for each in (id, safe_id(source.id)))
    if source.tells_id and not own_id.endswith(told_id):
        facts.append(Fact("id", id, id, source.id, stays=True, was_told=False))
    own = source.subject or source.id
    of_group = bool(first.group) and f"{first.group}/{own}" == first.subject
    was_told = was_declared(first.subject_from, or_accepted=True) or (of_group and not source.group)
    stays = not source.subject or (was_told and not source.tells_subject)
    if own != first.subject or (stays and was_declared(first.subject_from)):
        needs_look = was_told and not source.is_declared
        needs_look |= source.is_declared and of_other_set(source, first)
        facts.append(Fact("subject", id, first.subject, own, stays, stays or needs_look))
        if stays:
            rule, doubt = first.subject_from, first.subject_doubt
            source = replace(source, subject=first.subject, subject_from=rule, doubt=doubt)
    if first.split and first.split != source.split:
        facts.append(Fact("split", id, first.split, source.split, not source.split))
    source = replace(
        source,
        split=source.split or first.split,
        group=source.group or first.group,
        session=source.session or first.session,
    )
    had, has = {label.name for label in first.labels}, set(map(safe_id, source.labels))
    if had - has:  # they are another's now, or another is named in their place
        now = ", ".join(sorted(has)) or "none"
        facts.append(Fact("set of labels", id, ", ".join(sorted(had)), now))
    for label in first.labels:
        given = next((name for name in source.labels if safe_id(name) == label.name), "")
        values = conversion.values_of_label(label.name)
        stated = label_facts(source, label.name, values)
        names = stated.names
        if stated.ignore is not None and stated.ignore != label.ignore and not values:
            what = f"ignored value of label {label.name}"
            facts.append(Fact(what, id, str(label.ignore), str(stated.ignore), True, False))
        had_masks, masks = (dict(masks_of(p)) for p in (label.source, source.labels.get(given, "")))
        left = [mask for mask in had_masks.values() if mask not in masks.values()]
        if given and left and not all(map(is_gone, left)):
            now = in_short(masks.values()) or source.labels[given]
            facts.append(
                Fact(f"masks of label {label.name}", id, in_short(had_masks.values()), now)
            )
        for number in names.keys() & label.class_names.keys():
            before, now = label.class_names[number], names[number]
            if before.strip().casefold() != now.strip().casefold():
                what = f"name of class {number} of label {label.name}"
                facts.append(Fact(what, id, before, now))
        if given and label.class_names and not names:
            kept = {values[n - 1] if 0 < n <= len(values) else n: name
                    for n, name in label.class_names.items()}  # fmt: skip
            source = replace(source, class_names={**source.class_names, given: kept})
    return source


def of_other_set(source: Source, record: VolumeRecord) -> bool:
    """Whether --dataset makes a person another one who was declared before: by another data set, or
    without one where the subject itself was declared, and is not now."""
    if not source.group or not source.subject.startswith(f"{source.group}/"):
        return False
    if record.group and record.subject.startswith(f"{record.group}/"):
        return record.group != source.group
    return was_declared(record.subject_from) and not was_declared(source.subject_from)


def in_short(masks: Iterable[str]) -> str:
    """Names of mask files, of many the first few."""
    return some(list(map(stem, masks)))


def refuse_two_names(named: Iterable[tuple[str, str, Mapping[int, str]]]) -> None:
    """CorpusError where a number of a label has one name in a place and another in the next.

    Given are places, labels and names by number.
    """
    known: dict[tuple[str, int], tuple[str, str]] = {}
    for place, label, names in named:
        for number, name in names.items():
            other, first = known.setdefault((label, number), (name, place))
            if first != place and other.strip().casefold() != name.strip().casefold():
                raise CorpusError(
                    f"label {label}: {number} is {other!r} in {first} and {name!r} in {place}: "
                    "keep them apart, or convert one of them anew with the numbers and names of "
                    "the other"
                )


def named_classes(
    found: Recognised, corpus: str, conversion: Conversion
) -> Iterator[tuple[str, str, Mapping[int, str]]]:
    """Names of classes for `refuse_two_names`: what stays in the corpus, then what this run brings
    or names otherwise."""
    brought = []
    for source, group in found.sources:
        before = {label.name: label.class_names for label in group[0].labels} if group else {}
        for label in map(safe_id, source.labels):
            names = label_facts(source, label, conversion.values_of_label(label)).names
            if before.get(label) == names:
                yield corpus, label, names
            else:
                brought.append((source.images[0], label, names))
    for label in (label for group in found.others for label in group[0].labels):
        yield corpus, label.name, label.class_names
    if brought:
        place = f"the sources given (such as {brought[0][0]})"
        yield from ((place, label, names) for _, label, names in brought)


def in_words(facts: Iterable[Fact]) -> tuple[list[str], list[str]]:
    """A line for each kind of fact that stays or that nobody had told, which are notes; and for
    each that was told and is another now, which needs a look."""
    kinds: dict[tuple[str, bool, bool], list[Fact]] = defaultdict(list)
    for fact in facts:
        if fact.before != fact.now:
            kinds[fact.what, fact.stays, fact.was_told].append(fact)
    notes, doubts = [], []
    for (what, stays, was_told), several in kinds.items():
        first = several[0]
        of = f"the {what} of {first.id}"
        of += f" and {len(several) - 1} more volumes" if len(several) > 1 else ""
        change = f"{of} was {first.before} and is {first.now} now"
        if stays and not was_told:
            remedy = "convert into a new corpus, or --accept-doubts"
            doubts.append(f"{of} stays {first.before}, though {first.now} is told now: {remedy}")
        elif stays:
            other = "a table, --subject or --subjects tells another"
            other = "a table's column `split` tells another" if what == "split" else other
            notes.append(f"{of} stays {first.before}, told before and not by this run: {other}")
        elif not was_told:
            notes.append(change)
        else:
            remedy = "convert again with what told it before; else --accept-doubts"
            doubts.append(f"{change}: if that is not meant, {remedy}")
    return notes, doubts


def parts_of(path: str) -> Paths:
    """The files behind a source's path: two for a .hdr and .img pair, all of a merged label."""
    if masks := masks_of(path):
        return tuple(part for _, mask in masks for part in parts_of(mask))
    try:
        return files_behind(path)
    except SourceError:
        return (path,)


def is_gone(path: str) -> bool:
    """Whether a file of this machine is no more; objects in a bucket are not asked for."""
    return not is_remote(path) and not all(Path(part).exists() for part in parts_of(path))


def with_known_labels(source: Source, group: Group, named: set[str]) -> Source:
    """The source with the labels its volume has, where it names none of its own; and with those
    whose file is no more, which nobody could name: they are not lost without a word."""
    labels = {label.name: label.source for label in group[0].labels} if group else {}
    if source.labels:
        own = set(map(safe_id, source.labels))
        labels = {n: p for n, p in labels.items() if n not in own and p not in named and is_gone(p)}
        return replace(source, labels={**source.labels, **labels}) if labels else source
    if not labels or named.intersection(labels.values()):
        return source
    return replace(source, labels=labels)
