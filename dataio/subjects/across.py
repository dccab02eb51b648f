"""Subjects of several corpora: whom the user says to be one person, and who became whom."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, cast

from mim3d.dataio.errors import CorpusError
from mim3d.dataio.subjects.declared import DECLARED, SubjectRule
from mim3d.dataio.subjects.spelling import folded

ALL = "all"


class Volume(Protocol):
    """What is asked of a volume."""

    @property
    def id(self) -> str:
        """Its name in its corpus."""
        ...

    @property
    def sources(self) -> tuple[str, ...]:
        """Files that it was made of."""
        ...

    @property
    def subject(self) -> str:
        """Whose it is."""
        ...

    @property
    def group(self) -> str:
        """Its data set."""
        ...


V = TypeVar("V", bound=Volume)


@dataclass(frozen=True)
class SamePerson:
    """Who is one person in all corpora, as the user says.

    `same` are subjects that several corpora name (`all`: each of them); `subject_of` tells a
    volume's subject by its path and id, empty where it tells nothing.
    """

    same: Sequence[str] = ()
    subject_of: SubjectRule = field(default=lambda path, id: "")

    def declared(self, volume: Volume, part: str) -> str:
        """The subject that the rule has for a volume, by the id it has in its corpus or that a
        merge gives it, or nothing."""
        ids = (volume.id, f"{part}_{volume.id}")
        return next(filter(None, (self.subject_of(volume.sources[0], id) for id in ids)), "")

    def spelled(
        self, parts: Mapping[str, Sequence[Volume]], others: Sequence[Volume]
    ) -> Mapping[str, str]:
        """By its name in small letters, what each of `same` is called; CorpusError for a name that
        is not in several corpora. `others` are of corpora that were merged before."""
        found: dict[str, str] = {}
        several = [
            {self.declared(v, part) or v.subject for v in volumes}
            for part, volumes in parts.items()
        ]
        several.append({plain_name(v) for v in others})
        for subject in (subject for subjects in several for subject in sorted(subjects)):
            found.setdefault(folded(subject), subject)
        alike = shared({folded(s) for s in subjects} for subjects in several)
        # Who was kept apart by an earlier merge is of several corpora as well.
        alike |= {folded(plain_name(v)) for v in others if plain_name(v) != v.subject}
        wanted = alike if ALL in self.same else {folded(name) for name in self.same}
        if unknown := sorted(wanted - alike):
            raise CorpusError(
                f"--same-subjects {unknown[0]}: is no subject of several corpora; those are "
                f"{', '.join(sorted(found[name] for name in alike)) or 'none'}"
            )
        return {name: found[name] for name in wanted}

    def retold(
        self, parts: Mapping[str, Sequence[V]], others: Sequence[V]
    ) -> tuple[dict[str, list[V]], set[str]]:
        """The volumes of each corpus with the subjects that the user says, and which those are."""
        spelled = self.spelled(parts, others)
        names = {*spelled.values()}
        found: dict[str, list[V]] = {}
        for part, volumes in parts.items():
            found[part] = []
            for volume in volumes:
                subject = self.declared(volume, part)
                names |= {subject} - {""}
                subject = subject or spelled.get(folded(volume.subject), "")
                fields = {"subject_from": DECLARED, "subject_doubt": "", "subject": subject}
                declared = cast(V, replace(cast(Any, volume), **fields)) if subject else volume
                found[part].append(declared)
        return found, names


def shared(sets: Iterable[set[str]]) -> set[str]:
    """Names that are in more than one of the sets."""
    return {name for name, n in Counter(name for each in sets for name in each).items() if n > 1}


def plain_name(volume: Volume) -> str:
    """A subject without the name of the corpus that a merge put in front of it."""
    corpus, slash, name = volume.subject.partition("/")
    return name if slash and corpus == volume.group.split("/")[0] else volume.subject


@dataclass(frozen=True)
class Namesakes:
    """Subjects that several corpora name alike (but for capitals): those that are several people
    in the merged one, and those that are one, each with whom they became and volumes of theirs."""

    apart: dict[str, tuple[str, ...]] = field(default_factory=dict)
    joined: dict[str, tuple[str, ...]] = field(default_factory=dict)


def namesakes(
    volumes: Sequence[tuple[str, str, Volume]], others: Sequence[Volume] = ()
) -> Namesakes:
    """Of volumes, each with its corpus and the subject it has there; `others` are of corpora that
    were merged before."""
    became: dict[str, dict[str, dict[str, str]]] = {}
    before = [("", plain_name(volume), volume) for volume in others]
    for corpus, subject, volume in [*volumes, *before]:
        people = became.setdefault(folded(subject), {})
        people.setdefault(volume.subject, {}).setdefault(corpus, volume.id)
    apart: dict[str, tuple[str, ...]] = {}
    joined: dict[str, tuple[str, ...]] = {}
    for corpus, subject, volume in volumes:
        if folded(plain_name(volume)) != folded(subject):  # by a volume that was here
            joined[f"{subject} of {corpus}"] = (f"{volume.subject} ({volume.id})",)
    names = {folded(subject): subject for _, subject, _ in volumes}
    for name in sorted(names):
        people = became[name]
        lines = tuple(f"{who} ({', '.join(ids.values())})" for who, ids in people.items())
        if len(people) > 1:
            apart[names[name]] = lines
        elif len(next(iter(people.values()))) > 1:
            joined[names[name]] = lines
    return Namesakes(apart, joined)
