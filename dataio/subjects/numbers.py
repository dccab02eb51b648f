"""Bare numbers, `1` or `017`, that stand in several folders: one person, or counted anew in each?

Scanners of one study often see the same people (`PET/1`, `CT/1`), those of two seldom do: they stay
one subject, as splits leak otherwise, and that is doubted. Kinds of MR are one person's. Sites and
groups count anew, without doubt; of all other folders nobody knows.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from mim3d.dataio.subjects.words import is_gathering, role_of, words_of

LONGEST = 4  # digits; longer numbers are those of a register
SCANNERS = {
    "CT": re.compile(r"cta?|cect|ncct|ctres"),
    "PET": re.compile(r"pet|pt|suvr?"),
    "MR": re.compile(r"mr|t[12].*|pdw?|flair|dwi|adc|swi|mprage|mp2rage|bold|asl|dti|mra"),
}
"""Of words that are kinds of image: of other folders the people stay apart."""
HYBRID = {"CT", "PET"}
"""One machine, and so one person."""
GROUPS = re.compile(
    r"hgg|lgg|gbm|ad|cn|e?mci|lmci|smc|nc|hc|pd|sz|asd|adhd|tdc?|controls?|patients?|healthy"
    r"|normals?|abnormal|diseased?|benign|malignant|positives?|negatives?|covid(?:[-_ ]?19)?"
    r"|pneumonia|nor|dcm|hcm|minf|rv|(?:un)?labell?ed|siemens|philips|ge|toshiba|canon|men|women"
    r"|males?|females?|adults?|child(?:ren)?|infants?",
    re.IGNORECASE,
)
"""Names of groups of people, each of which is counted anew."""


def is_bare_number(name: str) -> bool:
    """Whether a subject's own name is a short number and nothing else."""
    return name.isdigit() and len(name) <= LONGEST


def counts_anew(folder: str) -> bool:
    """Whether people of a folder are other people than those of any beside it."""
    return is_gathering(folder) or bool(GROUPS.fullmatch(folder))


def doubts_of_scanners(names: Sequence[str], subjects: Sequence[str]) -> list[str]:
    """Why each path's subject may be several people; mostly empty.

    A bare number that lies in folders of several scanners, and nothing else tells whose it is.
    """
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    for name, subject in zip(names, subjects, strict=True):
        if is_bare_number(posixpath.basename(subject)):
            for folder in folders_above(name, posixpath.basename(subject)):
                if scanner := scanner_of(folder):
                    folders[subject].setdefault(scanner, folder)
    doubts = {
        subject: doubt_of(found.values())
        for subject, found in folders.items()
        if len(found) > 1 and found.keys() != HYBRID
    }
    return [doubts.get(subject, "") for subject in subjects]


def doubt_of(folders: Iterable[str]) -> str:
    """The doubt, and what tells them apart."""
    found = sorted(folders)
    pattern = "|".join(map(re.escape, found))
    return (
        f"{' and '.join(found)} hold the same bare numbers, taken for one person each; if they are "
        f"other people, --subject '({pattern})/([0-9]+)'"
    )


def folders_above(name: str, number: str) -> list[str]:
    """Folders of a path above what bears the number."""
    parts = posixpath.dirname(name).split("/")
    bearing = (i for i, part in enumerate(parts) if part == number)
    return parts[: next(bearing, len(parts))]


def scanner_of(folder: str) -> str:
    """The scanner that a folder of kinds of images tells; empty for other folders."""
    words = [word.text.lower() for word in words_of(folder) if role_of(word.text.lower()) == "kind"]
    found = {
        name for word in words for name, pattern in SCANNERS.items() if pattern.fullmatch(word)
    }
    return found.pop() if len(found) == 1 else ""


def of_several_scanners(subjects: Iterable[str]) -> dict[str, list[str]]:
    """Subjects that are called alike but for the scanner before: `ct_001`, `mr_001`."""
    found: dict[str, list[str]] = defaultdict(list)
    for subject in subjects:
        folder, last = posixpath.split(subject)
        match = re.fullmatch(r"(ct|mr|pet)[-_ ](.+)", last, re.IGNORECASE)
        if match:
            found[posixpath.join(folder, match[2])].append(subject)
    return {rest: several for rest, several in found.items() if len(several) > 1}
