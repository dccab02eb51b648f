"""Whose image a file is, inferred from folders and names: a person is one subject over all visits.

First by the names of known data sets, then by BIDS' `sub-XX`, then by the innermost folder that is
no visit, date or kind of image; where such a folder holds several people (a site), by the file.
"""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mim3d.dataio.nifti.names import identifies_no_case, stem
from mim3d.dataio.subjects.families import known_person
from mim3d.dataio.subjects.numbers import doubts_of_scanners
from mim3d.dataio.subjects.words import (
    has_digit,
    identifies_nobody,
    is_gathering,
    person_folder,
    person_in,
    words_of,
)

MOST_IMAGES_OF_A_SUBJECT = 12  # a folder with more is a collection, not one person
PLAIN_FOLDER = re.compile(
    r"(images?|imgs?|volumes?|vols?|nifti|nii|data|raw|rawdata|sourcedata|derivatives|anat|func|dwi"
    r"|perf|fmap|mri|scans?|unprocessed|(pre)?processed(_?data)?|raw_?data|mninonlinear)"
    r"([-_]?\d{0,2}|tr|ts|va|val)?",
    re.IGNORECASE,
)
BIDS = re.compile(r"(?:^|[_/])(sub-[A-Za-z0-9]+)")


@dataclass(frozen=True)
class InferredSubject:
    """Whose a file is and which rule says so; `doubt` where the rule may be wrong, in words."""

    subject: str
    rule: str
    doubt: str = ""


def infer_subjects(
    names: Sequence[str], root: str = "", *, short: bool = False
) -> list[InferredSubject]:
    """The subject of each path relative to a root, all judged together.

    With `short`, folders stand before a file's own name only where people would else be confused.
    """
    names = without_channels(names)
    homes = Homes(names)
    found = [infer_subject(name, homes, posixpath.basename(root)) for name in names]
    if short:
        found = without_needless_folders(found)
    doubts = doubts_of_scanners(names, [each.subject for each in found])
    pairs = zip(found, doubts, strict=True)
    return [replace(each, doubt=each.doubt or doubt) if doubt else each for each, doubt in pairs]


CHANNEL = re.compile(r"(.+)_(00\d\d)")


def without_channels(names: Sequence[str]) -> list[str]:
    """Names without `_0000`, `_0001`, ... where several cases of a folder have the same of them."""
    split = [CHANNEL.fullmatch(stem(name)) for name in names]
    cases: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, match in zip(names, split, strict=True):
        if match:
            cases[posixpath.dirname(name)][match[1]].add(match[2])
    of_channels = set()
    for folder, found in cases.items():
        sets = [tuple(sorted(numbers)) for numbers in found.values()]
        usual = tuple(f"{number:04d}" for number in range(max(map(len, sets))))
        if len(usual) > 1 and 2 * sets.count(usual) > len(sets) > 1:
            of_channels.add(folder)
    return [
        posixpath.join(posixpath.dirname(name), f"{match[1]}.nii")
        if match and posixpath.dirname(name) in of_channels
        else name
        for name, match in zip(names, split, strict=True)
    ]


def infer_subject(name: str, homes: "Homes", root: str) -> InferredSubject:
    """One path's subject."""
    subject, family = known_person(name)
    if family:
        return InferredSubject(subject, f"{family} names")
    if bids := BIDS.search(name):
        return InferredSubject(posixpath.join(place_of(name, bids[1]), bids[1]), "BIDS names")
    home = homes.home(name)
    core = homes.core(name)
    if not home and not core and not homes.mixed_root:
        return InferredSubject(root or stem(name), "folders", homes.vague_root)
    if not home:
        return InferredSubject(core or stem(name), "file names")
    decided, doubt = homes.decide(home)
    doubt = doubt or homes.passed(name)
    if decided == "folder" or not core:
        return InferredSubject(home, "folders", doubt)
    return InferredSubject(posixpath.join(home, core), "file names", doubt)


def place_of(name: str, subject: str) -> str:
    """Folders above a BIDS subject that tell one data set from another."""
    parts = name.split("/")[:-1]
    above = parts[: parts.index(subject)] if subject in parts else parts
    above = above[: above.index("derivatives")] if "derivatives" in above else above
    return "/".join(part for part in above if part and not is_passage(part))


def is_passage(folder: str) -> bool:
    """Whether a folder stands between a person and a file, or above people, and names nobody."""
    return bool(PLAIN_FOLDER.fullmatch(folder)) or identifies_nobody(folder)


class Homes:
    """The folders that may be people, and what their files are called beside that."""

    def __init__(self, names: Sequence[str]) -> None:
        self._repeated = repeated_folders(names)
        self._passed: dict[str, str] = {}
        self._home = {name: self._home_of(name) for name in names}
        self._core: dict[str, str] = {}
        self._cores: dict[str, Counter[str]] = defaultdict(Counter)
        for name, home in self._home.items():
            core = core_of(stem(name), posixpath.basename(home))
            self._core[name] = core
            self._cores[home][core] += 1
        self._beside: dict[str, list[str]] = defaultdict(list)
        for home in self._cores:
            self._beside[posixpath.dirname(home)].append(home)
        self._decided: dict[str, tuple[str, str]] = {}

    @property
    def mixed_root(self) -> bool:
        """Whether files of the root itself are called after people or cases."""
        return set(self._cores.get("", ())) != {""}

    @property
    def vague_root(self) -> str:
        """Doubt whether all files without a person's name are one person's."""
        names = [name for name, home in self._home.items() if not home]
        many = len(names) > MOST_IMAGES_OF_A_SUBJECT
        alike = len({person_folder(stem(name)) for name in names}) < len(names)
        return "no name or folder tells a person" if many or alike or self._dated else ""

    @property
    def _dated(self) -> bool:
        roles = {word.role for name in self._home for word in words_of(stem(name))}
        return bool(roles & {"date", "visit", "side"})

    def home(self, name: str) -> str:
        """Folders above a file that may name a person, without all that tells how or when."""
        return self._home[name]

    def core(self, name: str) -> str:
        """What a file's own name tells of a person beyond its home; often nothing."""
        return self._core[name]

    def _home_of(self, name: str) -> str:
        parts = posixpath.dirname(name).split("/")
        kept = [part for part in parts if part and not is_passage(part)]
        while len(kept) > 1 and has_digit(kept[-2]) and is_series(kept[-1]):
            kept.pop()
        kept = [person_folder(part) for part in kept]
        while kept and kept[-1] in self._repeated:
            if has_digit(kept[-1]):
                self._passed[name] = f"`{kept[-1]}` is found in several folders"
            kept.pop()
        return "/".join(kept)

    def passed(self, name: str) -> str:
        """Doubt about folders with numbers that were taken for series of the person above."""
        return self._passed.get(name, "")

    def decide(self, home: str) -> tuple[str, str]:
        """Whether a home is one person ("folder") or its files are people ("file"); the doubt."""
        if home not in self._decided:
            self._decided[home] = self._judge(home)
        return self._decided[home]

    def _judge(self, home: str) -> tuple[str, str]:
        cores, last = self._cores[home], posixpath.basename(home)
        named = [core for core in cores if core]
        if not named or is_gathering(last):
            return ("file" if named else "folder"), ""
        alike = self._repeats(home, named)
        if not any(map(has_digit, named)):
            return ("folder" if has_digit(last) or alike else "file"), ""
        if not has_digit(last):
            alike = alike and len(named) > 1
            return ("folder", "the names are alike in several folders") if alike else ("file", "")
        if not 1 < len(named) <= MOST_IMAGES_OF_A_SUBJECT:
            return ("folder" if len(named) == 1 else "file"), ""
        return ("folder" if alike else "file"), "folder and files are both numbered"

    def _repeats(self, home: str, named: Iterable[str]) -> bool:
        """Whether most of the names occur in other folders beside, and those outnumber the names.

        `AX_T1` in every folder is a series; `001` to `030` in three folders are people of sites.
        """
        beside = [h for h in self._beside[posixpath.dirname(home)] if h != home]
        cores = list(named)
        if any(len(self._cores[other]) > MOST_IMAGES_OF_A_SUBJECT for other in beside[:50]):
            return False  # its like beside is a collection
        shared = [c for c in cores if any(c in self._cores[other] for other in beside[:50])]
        return 2 * len(shared) > len(cores) and len(beside) + 1 >= len(cores)


SERIES = re.compile(
    r"[SIE]\d{4,8}|(VSD|SMIR)\..*|\d+\.0{6}-.*", re.IGNORECASE
)  # LONI's, VSD's, TCIA's


def is_series(folder: str) -> bool:
    """Whether a folder below a person's tells a series: `S13408`, `AX T1 thin`, `rest_1`."""
    words = words_of(folder)
    is_kind = any(word.role in {"kind", "visit"} for word in words)
    numbers = [word.text for word in words if word.role == "who" and has_digit(word.text)]
    return bool(SERIES.fullmatch(folder)) or (is_kind and all(len(n) < 3 for n in numbers))


def repeated_folders(names: Sequence[str]) -> set[str]:
    """Names of folders that are found below several others, as series are and people are not.

    Those with a number in them only where more folders hold them than there are of them in one.
    """
    above: dict[str, set[str]] = defaultdict(set)
    below: dict[str, set[str]] = defaultdict(set)
    for folder in {posixpath.dirname(name) for name in names}:
        parts = folder.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            above[parts[depth]].add(parent)
            below[parent].add(parts[depth])
    return {
        name
        for name, parents in above.items()
        if len(parents) > 1
        and not any(map(is_gathering, map(posixpath.basename, parents)))
        and (
            not has_digit(name)
            or (
                len(parents) >= max(len(below[parent]) for parent in parents)
                and all(has_digit(posixpath.basename(parent)) for parent in parents)
            )
        )
    }


def core_of(whole: str, folder: str) -> str:
    """What a stem tells of a person, without what its folder tells as well."""
    core = "" if identifies_no_case(whole) else person_in(whole)
    if not core or not folder:
        return core
    if is_numbered_kind(whole) and has_digit(folder) and not is_gathering(folder):
        return ""
    there, here = spelled(person_in(folder) or folder), spelled(core)
    if there[: len(here)] == here:
        return ""
    if here[: len(there)] == there:
        rest = here[len(there) :]
        return "-".join(rest) if any(map(has_digit, rest)) else ""
    return core


def is_numbered_kind(whole: str) -> bool:
    """Whether a stem is kinds of image with a small number, `post_1`: in a person's folder only."""
    words = words_of(whole)
    numbers = [word.text for word in words if word.role == "who"]
    kinds = any(word.role == "kind" for word in words)
    return kinds and all(number.isdigit() and len(number) < 3 for number in numbers)


def spelled(name: str) -> list[str]:
    """The parts of a name in small letters."""
    return [part for part in re.split(r"[-_. ]+", name.lower()) if part]


def without_needless_folders(found: Sequence[InferredSubject]) -> list[InferredSubject]:
    """Subjects by their last part alone where no other has the same."""
    wholes: dict[str, set[str]] = defaultdict(set)
    for person in found:
        wholes[posixpath.basename(person.subject)].add(person.subject)
    short = []
    for person in found:
        last = posixpath.basename(person.subject)
        is_file = person.rule == "file names" and len(wholes[last]) == 1
        short.append(replace(person, subject=last) if is_file else person)
    return short


def without_shared_folders(names: Sequence[str]) -> list[str]:
    """Names without the leading folders all have in common, where any is not within the table's
    own folder: absolute paths would make subjects of where the data lie.
    """
    if not any(name.startswith(("/", "..")) or "://" in name for name in names):
        return list(names)
    folders = [name.split("/")[:-1] for name in names]
    low, high = min(folders), max(folders)
    differ = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    n_shared = next(differ, min(len(low), len(high)))
    return ["/".join(name.split("/")[n_shared:]) for name in names]
