"""Subjects that the user declares: by a regular expression over paths, or by a table."""

import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mim3d.dataio.nifti.names import stem
from mim3d.dataio.subjects.spelling import composed

DECLARED, ACCEPTED = "told", "accepted"  # as manifests have them in `subject_from`
"""Rules of a subject that the user gave, and of one that was looked at and found right."""

SubjectRule = Callable[[str, str], str]


def by_pattern(pattern: str) -> SubjectRule:
    """Subject of (path, id): a pattern's groups joined, or all it matches; empty if nothing."""
    compiled = re.compile(composed(pattern))

    def subject_of(path: str, id: str) -> str:
        del id
        found = compiled.search(composed(path))
        if found is None:
            return ""
        return "_".join(filter(None, found.groups())) if compiled.groups else found[0]

    return subject_of


@dataclass
class ByTable:
    """Subjects of a table's files.

    `used` has by row the paths (of files or folders, or ids) that end in it, each with its files;
    of rows that a longer one decided before, `outdone` has one of those.
    """

    subjects: Mapping[str, str]
    used: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    outdone: dict[str, str] = field(default_factory=dict)

    def __call__(self, path: str, id: str) -> str:
        """Subject of a file by its path or the end of it, its id, else of the innermost folder."""
        path = composed(path)
        keys = [(key, path) for key in (*endings(path), *map(without_suffix, endings(path)))]
        keys.append((id, id))
        keys += [(key, folder) for folder in folders_above(path) for key in endings(folder)]
        first = ""
        for key, what in (pair for pair in keys if pair[0] in self.subjects):
            first = first or key
            if self.subjects[key] == self.subjects[first]:
                self.used.setdefault(key, {}).setdefault(what, set()).add(path)
            else:
                self.outdone.setdefault(key, first)
        return self.subjects[first] if first else ""

    @property
    def unused(self) -> list[str]:
        """Rows that no file belongs to."""
        return [key for key in self.subjects if key not in self.used | self.outdone]

    @property
    def overruled(self) -> dict[str, str]:
        """Rows that decide nothing, each with one that decided instead and says otherwise."""
        return {key: by for key, by in self.outdone.items() if key not in self.used}

    def joined(self, people: Mapping[str, str]) -> dict[str, list[str]]:
        """Rows that are the end of several paths, whose files are not one person's by `people`
        (subjects by path), with these paths."""
        found = {}
        for key, paths_of in self.used.items():
            whose = [{people.get(path) for path in paths} for paths in paths_of.values()]
            if len(set[str | None]().union(*whose)) > max(map(len, whose)):
                found[key] = sorted(paths_of)
        return found


def endings(path: str) -> list[str]:
    """A path whole, then without its first folder, and so on to its own name."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts)) if parts[start:] != [""]]


def without_suffix(path: str) -> str:
    """A path without `.nii.gz` and the like."""
    return posixpath.join(posixpath.dirname(path), stem(path))


def folders_above(path: str) -> list[str]:
    """Folders of a path, innermost first."""
    found, folder = [], posixpath.dirname(path)
    while folder and folder != "/":
        found.append(folder)
        folder = posixpath.dirname(folder)
    return found
