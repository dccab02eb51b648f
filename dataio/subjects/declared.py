"""Subjects that the user declares: by a regular expression over paths, or by a table."""

import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mim3d.dataio.nifti.names import stem

DECLARED, ACCEPTED = "told", "accepted"  # as manifests have them in `subject_from`
"""Rules of a subject that the user gave, and of one that was looked at and found right."""

SubjectRule = Callable[[str, str], str]


def by_pattern(pattern: str) -> SubjectRule:
    """Subject of (path, id): a pattern's groups joined, or all it matches; empty if nothing."""
    compiled = re.compile(pattern)

    def subject_of(path: str, id: str) -> str:
        del id
        found = compiled.search(path)
        if found is None:
            return ""
        return "_".join(filter(None, found.groups())) if compiled.groups else found[0]

    return subject_of


@dataclass
class ByTable:
    """Subjects of a table's files, and which of its rows were used."""

    subjects: Mapping[str, str]
    used: set[str] = field(default_factory=set)

    def __call__(self, path: str, id: str) -> str:
        """Subject of a file by its path, name, stem or id, else of the innermost folder listed."""
        for key in (path, posixpath.basename(path), stem(path), id, *folders_above(path)):
            if key in self.subjects:
                self.used.add(key)
                return self.subjects[key]
        return ""

    @property
    def unused(self) -> list[str]:
        """Rows that no file belongs to."""
        return [key for key in self.subjects if key not in self.used]


def folders_above(path: str) -> list[str]:
    """Folders of a path, innermost first, each whole and then by its own name."""
    found, folder = [], posixpath.dirname(path)
    while folder and folder != "/":
        found += [folder, posixpath.basename(folder)]
        folder = posixpath.dirname(folder)
    return found
