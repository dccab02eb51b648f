"""One name in several spellings: accents as letters of their own (as a Mac writes file names) or
as one, and capitals.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def composed(name: str) -> str:
    """A name with every accent on its letter (Unicode's NFC), as people type it."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """What names that differ in accents' spelling or in capitals alone have in common."""
    return composed(composed(name).casefold())


def composed_names(names: Sequence[str]) -> list[str]:
    """File names composed, but those that would then be called alike."""
    if all(map(str.isascii, names)):
        return list(names)
    forms = Counter(map(composed, names))
    return [form if forms[form := composed(name)] == 1 else name for name in names]


def on_disk(path: str) -> str:
    """The path as its files are called: each part as it stands, else in another spelling; from the
    first part on that is not there as it is."""
    if path.isascii() or os.path.exists(path):  # noqa: PTH110 - asked for each file with an umlaut
        return path
    found, parts = "", Path(path).parts
    for i, part in enumerate(parts):
        forms = (part, composed(part), unicodedata.normalize("NFD", part))
        places = [os.path.join(found, form) for form in forms]  # noqa: PTH118
        there = next(filter(os.path.exists, places), "")
        if not there:
            return os.path.join(found, *parts[i:])  # noqa: PTH118
        found = there
    return found
