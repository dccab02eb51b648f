"""Several corpora as one, without copying a voxel: their files get a second name (a hard link).

What comes out is a corpus like any other, so samples are a function of the seed at any number of
ranks, and it can be verified, mended and added to. Its parts stay what they are: a conversion
exchanges files and never writes into one, so neither sees what is done to the other later.
"""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mim3d.dataio.convert.known_sources import refuse_two_names
from mim3d.dataio.convert.run import check_destination
from mim3d.dataio.convert.upkeep import check_manifest_lines, earlier_rejections
from mim3d.dataio.convert.volume_ids import safe_id, short_hash
from mim3d.dataio.corpus.arrays import expected_keys, missized
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.history import (
    Barred,
    Event,
    history_text,
    parse_history,
    removed_before,
)
from mim3d.dataio.corpus.manifest import VolumeRecord, intact_records
from mim3d.dataio.corpus.names import MANIFEST, OWN, own_file
from mim3d.dataio.corpus.root import recipe_of
from mim3d.dataio.corpus.seen_files import note_merge
from mim3d.dataio.corpus.table_head import whole_records
from mim3d.dataio.corpus.writer import CorpusWriter
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.storage.links import link_folder
from mim3d.dataio.storage.remote import ADDRESS
from mim3d.dataio.storage.store import LocalStore
from mim3d.dataio.subjects.across import (
    Namesakes,
    SamePerson,
    namesakes,
    plain_name,
    shared,
)
from mim3d.dataio.subjects.declared import ACCEPTED
from mim3d.dataio.subjects.grouping import counted


@dataclass(frozen=True)
class Merged:
    """Volumes by the corpus they came from, those already there, and subjects renamed apart.

    `left_out` says what was removed on request, and therefore is not taken; `namesakes` who is one
    person of several corpora and who is not, `ids` which volumes have another id than in their
    corpus. `parts` are the volumes of each corpus as they are here, and under the destination's
    own name those of no corpus that was named; `records` is all it holds.
    """

    volumes: dict[str, int]
    n_known: int
    renamed: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    namesakes: Namesakes = field(default_factory=Namesakes)
    ids: tuple[str, ...] = ()
    parts: dict[str, tuple[VolumeRecord, ...]] = field(default_factory=dict)
    records: tuple[VolumeRecord, ...] = ()
    mended: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


def merge(
    corpora: Sequence[str | Path],
    destination: str | Path,
    *,
    person: SamePerson | None = None,
    accept_doubts: bool = False,
    command: str = "",
) -> Merged:
    """Make one corpus of several on the same file system; one that exists gets what it lacks.

    Ids and subjects that occur in several corpora, or in the destination from another one, get the
    name of theirs in front: the same name need not be the same person, unless `person` says so. A
    name once given stays, unless that says otherwise. `command` is what completes the merge where
    it is interrupted, if it is another one than names the corpora alone.
    What was removed on request from the destination or from a part stays out, by its name and by
    its files, and the destination's history tells of it from then on. CorpusError where corpora
    were made with other options, name one number of a label otherwise, lie in a bucket or on
    another file system, or where one is half-made or its manifest damaged.
    """
    names = corpus_names([str(corpus) for corpus in corpora], str(destination))
    conversion = common_recipe(corpora)
    listed = {name: whole_records(Path(c)) for name, c in zip(names, corpora, strict=True)}
    there = own_file(destination, MANIFEST).exists()
    # Damaged lines of the destination are no obstacle: the same merge makes them anew.
    text = own_file(destination, MANIFEST).read_bytes() if there else b""
    earlier = {str(destination): intact_records(text)[0]} if there else {}
    refuse_other_classes({**earlier, **listed})
    people = person or SamePerson()
    listed, one_person = people.retold(listed, earlier.get(str(destination), []))
    clashes = shared({r.subject for r in records} for records in listed.values()) - one_person
    doubled = shared({r.id.casefold() for r in records} for records in listed.values())
    store = LocalStore(destination)
    with store.lock():
        writer = CorpusWriter(store, conversion)
        writer.open()
        left_before = earlier_rejections(store)
        words = ["mim3d", "merge", *map(str, corpora), "--into", str(destination)]
        note_merge(store, command or shlex.join(words))
        writer.set_aside()
        for name, corpus in zip(names, corpora, strict=True):
            take_over(removals_of(corpus), name, listed, writer, one_person)
        whole = Whole(store, writer, one_person, clashes, doubled, accept_doubts)
        for name, corpus in zip(names, corpora, strict=True):
            whole.take_part(name, Path(corpus), listed[name])
        lost = writer.lost()
        left_out = [*whole.left_out, *still_there(writer, whole.barred)]
        left_out += [f"{each.path}: {each.detail}" for each in lost]
        writer.close(left_before | set(lost))
    here = whole.here
    of_parts = {now.id for _, _, now in here}
    others = tuple(record for record in whole.present if record.id not in of_parts)
    parts = {name: tuple(now for part, _, now in here if part == name) for name in names}
    return Merged(
        *(whole.volumes, whole.n_known, tuple(sorted(whole.clashes)), tuple(left_out)),
        namesakes([(name, was.subject, now) for name, was, now in here], others),
        tuple(f"{was.id} of {name} is {now.id}" for name, was, now in here if was.id != now.id),
        parts | ({str(destination): others} if others else {}),
        tuple(writer.records[id] for id in sorted(writer.records)),
        *map(tuple, (whole.mended, whole.replaced, whole.absent)),
    )


class Whole:
    """The merged corpus, open for writing, and what it takes of its parts.

    `here` has each volume that it has of them: the part's name, the record there, and here.
    """

    def __init__(
        self,
        store: LocalStore,
        writer: CorpusWriter,
        one_person: set[str],
        clashes: set[str],
        doubled: set[str],
        accept_doubts: bool,
    ) -> None:
        self.store, self.writer = store, writer
        self.one_person, self.accept_doubts = one_person, accept_doubts
        self.clashes, self.doubled = clashes, doubled
        self.barred = Barred(writer.events)
        self.present = list(writer.records.values())
        self.volumes: dict[str, int] = {}
        self.n_known = 0
        self.left_out: list[str] = []
        self.here: list[tuple[str, VolumeRecord, VolumeRecord]] = []
        self.mended: list[str] = []
        self.replaced: list[str] = []
        self.absent: list[str] = []
        self._subjects = {n for r in self.present for n in (r.subject, plain_name(r))}
        self._taken = {record.id.casefold() for record in self.present} | doubled

    def take_part(self, name: str, corpus: Path, records: Sequence[VolumeRecord]) -> None:
        """Link what is not here yet, under ids and subjects that are its own."""
        found = known_again(name, records, self.present, self.doubled)
        title = name if found else new_name(name, corpus, self.present)
        people = {r.subject: found[r.id].subject for r in records if r.id in found}
        people |= {subject: subject for subject in self.one_person}
        self.clashes |= {r.subject for r in records if r.subject in self._subjects} - {*people}
        for record in records:
            known = found.get(record.id)
            made = renamed(record, title, self.clashes, self._taken)
            subject = people.get(record.subject, made.subject)
            made = replace(made, subject=subject, id=known.id if known else made.id)
            if self.accept_doubts:
                made = replace(made, subject_from=ACCEPTED, subject_doubt="")
            if known is not None and shards_of(known) == shards_of(record):
                self._keep(name, record, self._intact(corpus, record, known), made)
            elif known is not None and (lost := sorted(labels_of(known) - labels_of(record))):
                self.left_out.append(
                    f"{corpus}: {record.id} has no label {', '.join(lost)}, which {known.id} of "
                    f"{self.store.url} has: left as it is there; to take it, convert it in "
                    f"{corpus} with that label and merge again"
                )
            elif event := self.barred.event_of(made):
                removed = removed_before(made.subject, event, self.store.url)
                self.left_out.append(f"{corpus}: {removed}")
            else:
                self._link(corpus, record, made)
                if known is None:
                    self.volumes[name] = self.volumes.get(name, 0) + 1
                else:
                    self.replaced.append(f"{known.id}: is as {name} has it now")
                self.here.append((name, record, made))
        of_part = [r.id for r in self.present if found and r.group.split("/")[0] == name]
        self.absent += sorted({*of_part} - {known.id for known in found.values()})

    def _link(self, corpus: Path, record: VolumeRecord, made: VolumeRecord) -> None:
        """Take a volume of a part, in the place of what has its id here."""
        link_folder(corpus, record.id, expected_keys(record), self.store, made.id)
        self.writer.take([made], [])
        self._taken.add(made.id.casefold())

    def _intact(self, corpus: Path, record: VolumeRecord, known: VolumeRecord) -> VolumeRecord:
        """A volume that is here, linked anew from its part where files are not what was written."""
        wrong = missized(known, self.store.sizes(known.id))
        if not wrong:
            return known
        same = of_person(record, known)
        known = replace(same, id=known.id, group=known.group, split=known.split)
        self._link(corpus, record, known)
        self.mended.append(f"{known.id}: {wrong}; linked anew from {corpus}")
        return known

    def _keep(
        self, name: str, record: VolumeRecord, known: VolumeRecord, made: VolumeRecord
    ) -> None:
        """Leave a volume that is here, of the subject that the user says now."""
        if self.accept_doubts or record.subject in self.one_person:
            known = of_person(known, made)
            self.writer.take([known], [])
        self.n_known += 1
        self.here.append((name, record, known))


def of_person(record: VolumeRecord, other: VolumeRecord) -> VolumeRecord:
    """A record as one of the other's subject."""
    return replace(
        record,
        subject=other.subject,
        subject_from=other.subject_from,
        subject_doubt=other.subject_doubt,
    )


def new_name(name: str, corpus: str | Path, present: Sequence[VolumeRecord]) -> str:
    """What a corpus of which nothing is here yet is called: by a name that another one has, its
    people and its data set would become that one's."""
    if name in {record.group.split("/")[0] for record in present}:
        return f"{name}-{short_hash(str(Path(corpus).resolve()))}"
    return name


def known_again(
    name: str, records: Sequence[VolumeRecord], present: Sequence[VolumeRecord], doubled: set[str]
) -> dict[str, VolumeRecord]:
    """By its id in a part, the volume of the destination that each is, under whatever name.

    One is known by its files, where the destination has them twice by its voxels or its name; or
    by its name with the same voxels, where the files were moved. An id of several parts is no name.
    """
    by_files: dict[tuple[object, ...], list[VolumeRecord]] = {}
    by_id = {record.id: record for record in present}
    for record in present:
        by_files.setdefault((record.sources, record.frame), []).append(record)
    found: dict[str, VolumeRecord] = {}
    for record in records:
        own = [f"{name}_{record.id}", *([record.id] * (record.id.casefold() not in doubled))]
        of_files = by_files.get((record.sources, record.frame), [])
        named = [by_id[id] for id in own if id in by_id]
        same = [r for r in [*of_files, *named] if shards_of(r) == shards_of(record)]
        changed = [r for r in of_files if r.id in {*own, record.id}]
        if known := next(iter([*same, *changed]), None):
            found[record.id] = known
    return found


def shards_of(record: VolumeRecord) -> list[str]:
    """Hashes of a volume's shards."""
    return [record.shard_sha256, *(label.shard_sha256 for label in record.labels)]


def labels_of(record: VolumeRecord) -> set[str]:
    """Names of a volume's labels."""
    return {label.name for label in record.labels}


def removals_of(corpus: str | Path) -> list[Event]:
    """What was removed on request from a part, and not readmitted there."""
    return Barred(parse_history(history_text(LocalStore(corpus)))).events


def take_over(
    events: Sequence[Event],
    corpus: str,
    listed: dict[str, list[VolumeRecord]],
    writer: CorpusWriter,
    one_person: set[str],
) -> None:
    """Let the destination know what was removed from a part.

    A name that another part has too is another person's there, unless it is one person's: then the
    name gets the part's in front, and files alone tell who was meant.
    """
    others = [r for name, records in listed.items() if name != corpus for r in records]
    subjects, ids = {r.subject for r in others} - one_person, {r.id for r in others}
    for event in events:
        known = replace(
            event,
            subjects=tuple(f"{corpus}/{s}" if s in subjects else s for s in event.subjects),
            volumes=tuple(f"{corpus}_{v}" if v in ids else v for v in event.volumes),
        )
        if known not in writer.events:
            writer.add_events(known)


def still_there(writer: CorpusWriter, barred: Barred) -> list[str]:
    """Volumes of an earlier merge whose person was removed from a part since."""
    found = []
    for record in writer.records.values():
        if event := barred.event_of(record):
            corpus = writer.store.url
            found.append(
                f"{record.id} was removed from a part on {event.time[:10]} and is still in "
                f"{corpus}: `mim3d remove {corpus} --volume {record.id}` takes it out"
            )
    return found


def refuse_other_classes(listed: dict[str, list[VolumeRecord]]) -> None:
    """CorpusError where a number of a label has one name in a corpus and another in the next."""
    refuse_two_names(
        (corpus, label.name, label.class_names)
        for corpus, records in listed.items()
        for record in records
        for label in record.labels
    )


def corpus_names(corpora: Sequence[str], destination: str) -> list[str]:
    """What each corpus is called: its folder's name without `.zarr`."""
    check_destination(destination)
    if len(corpora) < (1 if own_file(destination, MANIFEST).exists() else 2):
        raise CorpusError(
            f"{counted(len(corpora), 'corpus', 'corpora')} to merge: name two or more, or one with "
            f"--into a corpus that exists, which {destination} is not"
        )
    for corpus in (*corpora, destination):
        if ADDRESS.match(corpus):
            raise CorpusError(
                f"{corpus}: only folders can be merged by links; copy the bucket's corpora to one "
                "file system first"
            )
        of_corpus = (own_file(corpus, MANIFEST), Path(corpus, "zarr.json"))
        if corpus != destination and not any(file.is_file() for file in of_corpus):
            what = "no corpus" if Path(corpus).exists() else "no such folder"
            raise CorpusError(f"{corpus}: {what}; `mim3d convert SRC CORPUS` makes one")
    places = [Path(corpus).resolve() for corpus in corpora]
    if twice := [corpus for corpus, n in Counter(places).items() if n > 1]:
        raise CorpusError(f"{twice[0]}: is named twice; name each corpus once")
    if Path(destination).resolve() in places:
        raise CorpusError(
            f"{destination}: is one of the corpora to be merged, which stay as they are; name "
            "another folder with --into"
        )
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


def renamed(record: VolumeRecord, corpus: str, clashes: set[str], taken: set[str]) -> VolumeRecord:
    """The record under the id and subject it gets; `group` is the corpus, and within it the
    data set that it was of."""
    id = f"{corpus}_{record.id}" if record.id.casefold() in {*taken, OWN} else record.id
    if id.casefold() in taken:
        id = f"{id}-{short_hash(record.sources[0])}"
    subject = f"{corpus}/{record.subject}" if record.subject in clashes else record.subject
    is_named = record.group.split("/")[0] in ("", corpus)
    group = record.group or corpus if is_named else f"{corpus}/{record.group}"
    return replace(record, id=id, subject=subject, group=group)
