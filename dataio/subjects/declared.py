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
    """Subjects of a table's files.

    `used` has by row the paths (of files or folders, or ids) that end in it, each with its files.
    """

    subjects: Mapping[str, str]
    used: dict[str, dict[str, set[str]]] = field(default_factory=dict)

    def __call__(self, path: str, id: str) -> str:
        """Subject of a file by its path or the end of it, its id, else of the innermost folder."""
        keys = [(key, path) for key in (*endings(path), *map(without_suffix, endings(path)))]
        keys.append((id, id))
        keys += [(key, folder) for folder in folders_above(path) for key in endings(folder)]
        for key, what in keys:
            if key in self.subjects:
                self.used.setdefault(key, {}).setdefault(what, set()).add(path)
                return self.subjects[key]
        return ""

    @property
    def unused(self) -> list[str]:
        """Rows that no file belongs to."""
        return [key for key in self.subjects if key not in self.used]

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
