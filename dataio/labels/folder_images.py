"""The images of one folder by all that a label beside or across may call them."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from mim3d.dataio.labels.words import (
    bare_word,
    claim_of,
    ending_organ,
    ending_word,
    identifies_visit,
    label_key,
    leading_word,
    numbers_of,
)
from mim3d.dataio.nifti.names import cases_of, stem
from mim3d.dataio.subjects.inferred import MOST_IMAGES_OF_A_SUBJECT
from mim3d.dataio.subjects.words import occasion_in

EXACT, CASE, LOOSE = 0, 1, 2
Index = dict[str, list[str]]


@dataclass(frozen=True)
class Match:
    """Images a label goes with and how surely; `candidates` where no rule tells which of them."""

    owners: tuple[str, ...] = ()
    key: str = "seg"
    word: str = "seg"
    rank: int = EXACT
    candidates: tuple[str, ...] = ()

    @property
    def claim(self) -> tuple[int, int]:
        """What decides between labels of one image with one name; the lowest wins."""
        return self.rank, claim_of(self.word)


@dataclass
class FolderImages:
    """The files of one folder that are not called labels."""

    names: list[str] = field(default_factory=list)
    cores: set[str] = field(default_factory=set)
    by_stem: Index = field(default_factory=lambda: defaultdict(list))
    by_case: Index = field(default_factory=lambda: defaultdict(list))
    by_number: Index = field(default_factory=lambda: defaultdict(list))
    by_prefix: Index = field(default_factory=lambda: defaultdict(list))
    by_occasion: Index = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str) -> None:
        """File an image under its stem, its case, its number and every part before a `_` or `-`."""
        whole = stem(name)
        cases = cases_of(whole)
        self.names.append(name)
        self.cores.add(occasion_in(cases[-1]))
        self.by_stem[whole].append(name)
        self.by_occasion[occasion_in(whole)].append(name)
        for case in filter(None, cases[1:]):
            self.by_case[case].append(name)
        for number in numbers_of(whole):
            self.by_number[number].append(name)
        for found in re.finditer("[_-]", whole):
            self.by_prefix[whole[: found.start()]].append(name)

    @property
    def is_one_subject(self) -> bool:
        """Whether the folder holds one visit's images: few, alike but for the kind of image."""
        return len(self.cores) == 1 and len(self.names) <= MOST_IMAGES_OF_A_SUBJECT

    def beside(self, name: str) -> Match:
        """What a file called a label in this very folder belongs to."""
        whole = stem(name)
        base, word = ending_word(whole)
        if not base:
            base, word = ending_organ(whole)
        match = self.of_number(whole)
        if match.owners:
            return match
        if word_alone := bare_word(whole) or (word if not base else ""):
            if self.is_one_subject:
                return Match(tuple(self.names), label_key(word_alone), word_alone)
            return Match(candidates=tuple(self.names))
        if base:
            match = self.of_case(base, word)
            if match.owners or match.candidates:
                return match
        if base and self.is_one_subject and self.cores == {""}:
            # `brain_mask` beside `t1` and `flair`: the folder itself is the case.
            return Match(tuple(self.names), whole, whole, LOOSE)
        return self.of_described(base, word) if base else match

    def across(self, name: str) -> Match:
        """What a file in a label folder belongs to here, by name."""
        whole = stem(name)
        if whole in self.by_stem:
            return Match(tuple(self.by_stem[whole]))
        base, word = ending_word(whole)
        match = self.of_case(base, word) if base else Match()
        if match.owners or match.candidates:
            return match
        if whole in self.by_case:
            return Match(tuple(self.by_case[whole]), rank=CASE)
        match = self.of_number(whole)
        return match if match.owners else self.of_prefix(whole)

    def of_case(self, base: str, word: str) -> Match:
        """Images of the label `base_word`: the one called so, else all of that case, else one."""
        for index, rank in ((self.by_stem, EXACT), (self.by_case, CASE)):
            if base in index:
                owners = self.of_occasion(base, index[base], rank)
                return Match(owners, label_key(word), word, rank)
        near = self.by_prefix.get(base, [])
        if len(near) == 1 and not identifies_visit(stem(near[0])[len(base) :]):
            return Match(tuple(near), label_key(word), word, LOOSE)
        wanted = occasion_in(base)
        if near and all(occasion_in(stem(image)) == wanted for image in near):
            return Match(tuple(near), label_key(word), word, LOOSE)
        return Match(candidates=tuple(near))

    def of_occasion(self, case: str, owners: list[str], rank: int) -> tuple[str, ...]:
        """Images of a case with those of more kinds that are as much its own: `case_T1_bias`."""
        more = self.by_occasion.get(occasion_in(case), ()) if rank == CASE else ()
        return tuple(dict.fromkeys((*owners, *more)))

    def of_number(self, whole: str) -> Match:
        """Images of `segmentation-0` or `label0001`: `volume-0`, `img0001`, or just `0`."""
        word, number = leading_word(whole)
        if not word:
            return Match()
        owners = self.by_stem.get(number) or self.by_number.get(number) or []
        return Match(tuple(owners), label_key(word), word, CASE)

    def of_described(self, base: str, word: str) -> Match:
        """Images of `case_tumor_seg`: those of the longest case that it begins with."""
        for found in reversed(list(re.finditer("[_-]", base))):
            case, rest = base[: found.start()], base[found.end() :]
            rank = EXACT if case in self.by_stem else CASE
            owners = self.by_stem.get(case) or self.by_case.get(case)
            if owners and identifies_visit(rest):
                return Match(candidates=tuple(owners))
            if owners:
                key = f"{rest}_{word}"
                return Match(self.of_occasion(case, owners, rank), key, key, LOOSE)
        return Match()

    def of_prefix(self, whole: str) -> Match:
        """Images of `case_liver` in a label folder: the longest stem that it begins with."""
        for found in reversed(list(re.finditer("[_-]", whole))):
            owners, rest = self.by_stem.get(whole[: found.start()]), whole[found.end() :]
            if owners and not identifies_visit(rest):
                return Match(tuple(owners), rest, rest, LOOSE)
            if owners:
                return Match(candidates=tuple(owners))
        return Match()


def index_images(names: Iterable[str]) -> dict[str, FolderImages]:
    """Images by their folder."""
    folders: dict[str, FolderImages] = defaultdict(FolderImages)
    for name in names:
        folders[name.rpartition("/")[0]].add(name)
    return folders
