"""How volumes were grouped into people, shown by example, and where names look otherwise."""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mim3d.dataio.nifti.names import stem
from mim3d.dataio.subjects.declared import ACCEPTED, DECLARED
from mim3d.dataio.subjects.numbers import counts_anew, is_bare_number, of_several_scanners
from mim3d.dataio.subjects.spelling import folded
from mim3d.dataio.subjects.words import has_digit, identifies_nobody, is_gathering, words_of

UNDOUBTED = frozenset({DECLARED, ACCEPTED})
CASES = "names of cases"
OF_PEOPLE = frozenset({"BIDS names", CASES})  # people, whatever stands above them
LOCAL = frozenset({"file names", "folders", CASES})  # of no data set that is known
SERIES = "files or series"
SHOWN, NAMES = 3, 3
MOST_VISITS = 12  # more of one name are people of a site rather than visits of a person
REMEDY = "say who is who with --subject REGEX or --subjects FILE.csv, or --accept-doubts"


@dataclass(frozen=True)
class Scan:
    """What grouping needs of a volume: its subject, its file, and the rule that joined them.

    `rule` is in UNDOUBTED where the user said so. `doubt` says why the rule may be wrong;
    `group` is the data set, where that is known.
    """

    subject: str
    file: str
    rule: str = ""
    doubt: str = ""
    group: str = ""


@dataclass(frozen=True)
class Grouping:
    """N volumes of M subjects, a few examples, and what may be wrong, each in a line."""

    n_volumes: int
    n_subjects: int
    examples: tuple[str, ...]
    doubts: tuple[str, ...]

    @property
    def line(self) -> str:
        """`8 volumes of 4 subjects`."""
        return f"{counted(self.n_volumes, 'volume')} of {counted(self.n_subjects, 'subject')}"


def counted(number: int, what: str, several: str = "") -> str:
    """`1 volume`, `2 volumes`; the plural where it is not the singular with an s."""
    return f"{number} {what if number == 1 else several or what + 's'}"


def n_people(number: int) -> str:
    """`1 person`, `2 people`."""
    return "1 person" if number == 1 else f"{number} people"


def grouping(scans: Iterable[Scan]) -> Grouping:
    """Volumes by subject, with examples of the largest groups and every doubt."""
    by_subject: dict[str, list[Scan]] = defaultdict(list)
    n_volumes = 0
    for scan in scans:
        by_subject[scan.subject].append(scan)
        n_volumes += 1
    judges = (rule_doubts, visit_doubts, place_doubts, scanner_doubts, spelling_doubts)
    doubts = tuple(line for judge in judges for line in judge(by_subject))
    return Grouping(n_volumes, len(by_subject), examples(by_subject), doubts)


def examples(by_subject: Mapping[str, Sequence[Scan]]) -> tuple[str, ...]:
    """`P1 (by folders) has 3: t1, t2, flair`: the largest group of each rule first."""
    by_rule: dict[str, list[str]] = defaultdict(list)
    for subject in sorted(by_subject, key=lambda s: (-len(by_subject[s]), s)):
        by_rule[by_subject[subject][0].rule].append(subject)
    chosen = [subjects[turn] for turn in range(SHOWN) for subjects in by_rule.values()
              if len(subjects) > turn]  # fmt: skip
    lines = []
    for subject in chosen[:SHOWN]:
        scans = by_subject[subject]
        lines.append(
            f"{subject}{shown_rule(scans[0])} has {len(scans)}: {some(short_names(scans))}"
        )
    return tuple(lines)


def shown_rule(scan: Scan) -> str:
    """` (by folders)`; nothing where no rule is known."""
    if scan.rule == DECLARED:
        return " (as declared)"
    return f" (by {scan.rule})" if scan.rule else ""


def short_names(scans: Sequence[Scan]) -> list[str]:
    """Names of files, each once; with their folders where those alone tell them apart."""
    files = Counter(scan.file for scan in scans)
    names = [stem(file) for file in files]
    if len(set(names)) < len(names):
        names = ["/".join([*file.split("/")[-3:-1], stem(file)]) for file in files]
    times = [f" ({n} times)" * (n > 1) for n in files.values()]
    return [name + often for name, often in zip(names, times, strict=True)]


def some(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return ", ".join(names[:NAMES]) + more


def rule_doubts(by_subject: Mapping[str, Sequence[Scan]]) -> list[str]:
    """What the rules themselves were unsure of, one line a reason."""
    unsure: dict[str, list[Scan]] = defaultdict(list)
    for scans in by_subject.values():
        for scan in scans:
            if scan.doubt and scan.rule not in UNDOUBTED:
                unsure[scan.doubt].append(scan)
    return [
        f"{counted(len(scans), 'volume')} may belong to other subjects than shown ({doubt}; such "
        f"as {scans[0].file} of {scans[0].subject}): {REMEDY}"
        for doubt, scans in unsure.items()
    ]


def visit_doubts(by_subject: Mapping[str, Sequence[Scan]]) -> list[str]:
    """Subjects that may be visits, dates, time points or sides of one person."""
    families: dict[tuple[str, str], list[str]] = defaultdict(list)
    for subject, scans in by_subject.items():
        rules = {scan.rule for scan in scans}
        if any(rule in UNDOUBTED or rule.startswith("MSD") for rule in rules):
            continue
        for kind, whole in wholes_of(subject):
            if kind != SERIES or not rules <= OF_PEOPLE:
                families[kind, whole].append(subject)
    doubts = []
    for kind in dict.fromkeys(kind for kind, _ in families):
        groups = {whole: found for (k, whole), found in families.items() if k == kind}
        several = {w: [*found, w] if w in by_subject else found for w, found in groups.items()}
        several = {w: f for w, f in several.items() if 1 < len(f) <= MOST_VISITS}
        is_one_prefix = kind == "numbers" and len(groups) == 1 and not by_subject.keys() & groups
        if not several or is_one_prefix or 2 * len(several) < len(groups):
            continue
        first = next(iter(several))
        n = sum(map(len, several.values()))
        doubts.append(
            f"{n} subjects may be {kind} of {n_people(len(several))} (such as "
            f"{some(sorted(several[first]))}): {REMEDY}"
        )
    return doubts


def wholes_of(subject: str) -> list[tuple[str, str]]:
    """Whom a subject may be a part of, and what its name then tells: visits, numbers, series."""
    folder, last = posixpath.split(subject)
    found = []
    words = words_of(last)
    rest = [word for word in words if word.role in {"who", "image"}]
    if len(rest) < len(words) and not identifies_nobody(last):
        times = {w.role for w in words if w.role in {"visit", "date", "side", "run"}}
        if times:
            name = "_".join(word.text for word in rest)
            found.append(("visits, dates or sides", posixpath.join(folder, name)))
    elif words and all(word.role == "date" for word in words):
        found.append(("visits, dates or sides", folder))
    base, number = last_number(last)
    if number and has_digit(base) and not is_gathering(base.rstrip("-_0123456789")):
        found.append(("numbers", posixpath.join(folder, base)))
    above = posixpath.basename(folder)
    if has_digit(above) and not is_gathering(above):
        found.append((SERIES, folder))
    return found


def last_number(name: str) -> tuple[str, str]:
    """A name cut before a last short number or letter, as visits have: `P1_2`, `P1b`, `P1T2`."""
    words = words_of(name)
    if glued := re.fullmatch(r"(.*\d)([a-eA-E]|[tvTV]\d{1,2})", name):
        return glued[1], glued[2]
    if len(words) < 2 or not re.fullmatch(r"\d{1,3}|[a-eA-E]", words[-1].text):
        return "", ""
    return name[: words[-1].start].rstrip("-_. "), words[-1].text


def anew(folders: Iterable[str]) -> bool:
    """Whether all folders are of sites or groups, each of which counts its people anew."""
    return all(counts_anew(posixpath.basename(folder)) for folder in folders)


def scanner_doubts(by_subject: Mapping[str, Sequence[Scan]]) -> list[str]:
    """Subjects that may be images of one person by several scanners: `ct_001`, `pet_001`."""
    found = of_several_scanners(s for s, scans in by_subject.items() if scans[0].rule in LOCAL)
    if not found:
        return []
    n = sum(map(len, found.values()))
    return [
        f"{n} subjects may be images of {n_people(len(found))} by several scanners (such "
        f"as {some(next(iter(found.values())))}): {REMEDY}"
    ]


def spelling_doubts(by_subject: Mapping[str, Sequence[Scan]]) -> list[str]:
    """Subjects whose names differ in capitals or in the spelling of accents alone."""
    alike: dict[str, list[str]] = defaultdict(list)
    for subject, scans in by_subject.items():
        if scans[0].rule != ACCEPTED:
            alike[folded(subject)].append(subject)
    found = {name: sorted(several) for name, several in alike.items() if len(several) > 1}
    if not found:
        return []
    n = sum(map(len, found.values()))
    return [
        f"{n} subjects may be {n_people(len(found))} (such as {some(found[min(found)])}, which "
        f"differ in capitals or in how accents are written alone): {REMEDY}"
    ]


def place_doubts(by_subject: Mapping[str, Sequence[Scan]]) -> list[str]:
    """Names that stand in several folders: one person, or people of several data sets?"""
    homes: dict[str, set[str]] = defaultdict(set)
    for subject, scans in by_subject.items():
        folder, last = posixpath.split(subject)
        if scans[0].group and not is_gathering(posixpath.basename(folder)):
            continue  # of another data set, and so another person
        if folder and scans[0].rule not in UNDOUBTED:
            homes[last].add(folder)
    shared = {last: sorted(found) for last, found in homes.items() if len(found) > 1}
    shared = {last: f for last, f in shared.items() if not (is_bare_number(last) and anew(f))}
    if not shared:
        return []
    last, found = next(iter(sorted(shared.items())))
    return [
        f"{counted(len(shared), 'name')} of subjects stand in several folders and are taken for "
        f"several people (such as {last} in {some(found)}): {REMEDY}"
    ]
