"""Doubts about the numbers of classes: several ways of numbering in one label, grey levels among
small numbers, numbers below 0."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from mim3d.dataio.corpus.conversion import MOST_VALUES, listed
from mim3d.dataio.corpus.manifest import IGNORED, MASK_OF_255, VolumeRecord
from mim3d.dataio.inspect.guesses import MOST_MODALITIES, NEW, some_numbers
from mim3d.dataio.subjects.grouping import counted

FAR_APART = 3  # times their number, and classes are grey levels or parts of a long list
ASTRAY = 10  # times the other classes and their number, and a rare number is none of them
RARE = 10  # of as many volumes at most one has it
BY_HAND = "number them alike in the files and convert again"


@dataclass
class Numbers:
    """Numbers above and below 0 in the volumes of one label: how many volumes have each set of
    them, and the file of the first; how often a mask of 255 became class 1."""

    name: str
    volumes: dict[frozenset[int], int] = field(default_factory=lambda: defaultdict(int))
    first: dict[frozenset[int], str] = field(default_factory=dict)
    named: set[int] = field(default_factory=set)
    ignore: int | None = None
    n_of_255: int = 0

    @property
    def every(self) -> list[int]:
        """All numbers."""
        return sorted(set().union(*self.volumes))

    def having(self, numbers: Iterable[int]) -> tuple[int, str]:
        """How many volumes have any of these numbers, and the file of the first."""
        sets = [found for found in self.volumes if not found.isdisjoint(numbers)]
        return sum(self.volumes[found] for found in sets), self.first[sets[0]]

    def renumbering(self, groups: Sequence[Sequence[int]]) -> str:
        """The option that numbers each of these lists 1, 2, ...; empty where no option can."""
        is_apart = self.n_of_255 and not any(IGNORED in group for group in groups)
        lists = [*groups, *([[IGNORED]] if is_apart else [])]
        if len(lists) > MOST_MODALITIES or max(map(len, lists)) >= MOST_VALUES:
            return ""
        kept = "" if self.ignore is None else f" --ignore-label {self.ignore}"
        return f"--label-values {self.name}={listed(lists)}{kept} {NEW}"


def number_doubts(records: Sequence[VolumeRecord]) -> list[str]:
    """A line for each kind of doubt about a label's numbers."""
    lines = []
    for label in numbers_of(records).values():
        groups = groups_of(label.volumes)
        several = several_ways(label, groups)
        lines += sparse_classes(label)
        lines += several or astray(label)
        lines += below_zero(label, groups if several else [label.every])
    return lines


def numbers_of(records: Iterable[VolumeRecord]) -> dict[str, Numbers]:
    """Labels by name; a mask of 255 alone is told apart, as are volumes where nothing is drawn."""
    labels: dict[str, Numbers] = {}
    for record in records:
        for label in record.labels:
            found = labels.setdefault(label.name, Numbers(label.name))
            found.named |= label.class_names.keys()
            found.ignore = label.ignore if found.ignore is None else found.ignore
            numbers = frozenset(number for number, n in label.classes.items() if number and n)
            if f"label {label.name!r}: {MASK_OF_255}" in record.warnings:
                found.n_of_255 += 1
            elif numbers:
                found.volumes[numbers] += 1
                found.first.setdefault(numbers, label.source)
    return labels


def sparse_classes(label: Numbers) -> list[str]:
    """A line where a label's few classes have large numbers, as masks drawn in grey levels have: a
    network gets an output for every number up to the largest."""
    every = label.every
    if not are_sparse(every):
        return []
    levels: list[int] = sorted({*every, *([IGNORED] if label.n_of_255 else [])})
    option = label.renumbering([levels])
    remedy = f"to number them 1 to {len(levels)}, convert with {option}" if option else BY_HAND
    return [
        f"label {label.name!r} has {counted(len(every), 'class', 'classes')} with numbers up to "
        f"{every[-1]} ({some_numbers(every)}): {remedy}; else --accept-doubts"
    ]


def are_sparse(numbers: Collection[int]) -> bool:
    """Whether numbers of classes, without 0, are much larger than they are many."""
    return bool(numbers) and min(numbers) > FAR_APART and max(numbers) > FAR_APART * len(numbers)


def groups_of(sets: Iterable[Iterable[int]]) -> list[list[int]]:
    """Numbers that meet in a volume, or through others do; ascending."""
    groups: list[set[int]] = []
    for found in map(set, sets):
        meeting = [group for group in groups if not group.isdisjoint(found)]
        groups = [group for group in groups if group.isdisjoint(found)]
        groups.append(found.union(*meeting))
    return sorted(map(sorted, groups))


def several_ways(label: Numbers, groups: Sequence[Sequence[int]]) -> list[str]:
    """A line where volumes of a label share no number, as where one reader drew 1 and 2 and the
    next 63 and 126: some numbers are far from the others, or several groups have several.

    Single small numbers say nothing: one kind of lesion a person is common.
    """
    every = label.every
    far = [group for group in groups if group[0] > FAR_APART * len(every)]
    of_several = [group for group in groups if len(group) > 1]
    is_told = are_sparse(every) and len(of_several) < 2  # by `sparse_classes`
    if len(groups) < 2 or is_told or not (far or len(of_several) > 1):
        return []
    if label.named.issuperset(every):
        return []
    shown = [f"{some_numbers(group)} in {in_volumes(label, group)}" for group in groups[:3]]
    shown += [f"{len(groups) - 3} more"] if len(groups) > 3 else []
    option = label.renumbering(groups)
    remedy = f"if they are the same classes, in this order, convert with {option}" if option else ""
    return [
        f"label {label.name!r} is numbered in {len(groups)} ways that no volume mixes "
        f"({'; '.join(shown)}): {remedy or BY_HAND}; else --accept-doubts"
    ]


def astray(label: Numbers) -> list[str]:
    """A line where a few of many volumes have a number far above all the others."""
    n_volumes = sum(label.volumes.values())
    often: dict[int, int] = defaultdict(int)
    for numbers, n in label.volumes.items():
        for number in numbers:
            often[number] += n
    usual = [number for number, n in often.items() if RARE * n > n_volumes]
    far = ASTRAY * max(*usual, len(usual) + 1, 1)
    found = [number for number in label.every if number > far and number not in label.named]
    if not found or not usual:
        return []
    return [
        f"label {label.name!r} has {some_numbers(found)} in {in_volumes(label, found)} of "
        f"{n_volumes} alone, far from its other classes: {choice(label, found, [label.every])}"
    ]


def below_zero(label: Numbers, groups: Sequence[Sequence[int]]) -> list[str]:
    """A line where a label has numbers below 0, which a network has no output for."""
    found = [number for number in label.every if number < 0]
    if not found:
        return []
    return [
        f"label {label.name!r} has numbers below 0 ({some_numbers(found)}) in "
        f"{in_volumes(label, found)}: {choice(label, found, groups)}"
    ]


def choice(label: Numbers, odd: Sequence[int], groups: Sequence[Sequence[int]]) -> str:
    """What to do with numbers that may be no classes."""
    option = label.renumbering(groups)
    remedy = f"to number all classes 1 and up, convert with {option}" if option else BY_HAND
    if len(odd) == 1 and label.ignore is None:
        ignoring = f"--ignore-label {odd[0]} {NEW}"
        remedy = f"if it is no class, convert with {ignoring}; if it is one, {remedy}"
    return f"{remedy}; else --accept-doubts"


def in_volumes(label: Numbers, numbers: Iterable[int]) -> str:
    """How many volumes have any of these numbers, with a file."""
    n, first = label.having(numbers)
    return f"{counted(n, 'volume')} (such as {first})"
