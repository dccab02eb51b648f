"""A folder of source files, local or remote, as one list of relative names."""

import json
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.labels.label_map import read_text
from mim3d.dataio.storage.remote import ADDRESS, locate, read_remote_bytes, store_reason
from mim3d.dataio.subjects.spelling import composed_names, on_disk

MANIFESTS = ("mim3d/manifest.jsonl", "manifest.jsonl")
"""Of a corpus, and of one begun up to format 2; `corpus.names` says so to those who may ask it."""


class Tree(Protocol):
    """What layouts read: names relative to `root` with `/`, and small text files."""

    root: str

    @property
    def names(self) -> list[str]:
        """Every file below the root, sorted."""
        ...

    @property
    def problems(self) -> list[Rejection]:
        """What could not be listed, known once `names` was asked for."""
        ...

    def path(self, name: str) -> str:
        """Path or address of an entry: relative to the root, absolute, or an address."""
        ...

    def has(self, name: str) -> bool:
        """Whether the entry is there; True where that cannot be known without opening it."""
        ...

    def read_text(self, name: str) -> str:
        """Text of a small file; SourceError where it is missing or not UTF-8."""
        ...


class LocalTree:
    """A folder on this machine; symbolic links are followed, each real folder once."""

    def __init__(self, root: str | Path) -> None:
        # Absolute: manifests name sources by path, and a rerun may start elsewhere.
        self.root = plain_path(str(root))
        if not is_text(self.root):
            problem = f"{NOT_UTF8}; or name it by a symbolic link"
            raise SourceError("bad-name", as_text(self.root), problem)
        self.problems: list[Rejection] = []
        self._names: list[str] | None = None

    @property
    def names(self) -> list[str]:
        """Every file below the root, sorted, with accents as one letter; loops of links end where
        they began."""
        if self._names is None:
            self._names = sorted(composed_names([*self._walk()]))
        return self._names

    def _walk(self) -> Iterator[str]:
        seen: set[tuple[int, int]] = set()
        for folder, subfolders, files in os.walk(
            self.root, followlinks=True, onerror=self._cannot_list
        ):
            if "zarr.json" in files and is_corpus(folder):
                subfolders.clear()
                continue
            subfolders[:] = sorted(s for s in subfolders if self._is_new(folder, s, seen))
            for file in sorted(files):
                if not is_text(file):
                    self._skip(os.path.join(folder, file), "bad-name", NOT_UTF8)  # noqa: PTH118
                    continue
                path = os.path.join(folder, file)  # noqa: PTH118 - a corpus has millions of these
                if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114
                    self._skip(path, *broken(path))
                else:
                    yield os.path.relpath(path, self.root).replace(os.sep, "/")

    def _is_new(self, folder: str, subfolder: str, seen: set[tuple[int, int]]) -> bool:
        if subfolder.startswith("."):
            return False
        if not is_text(subfolder):
            self._skip(os.path.join(folder, subfolder), "bad-name", NOT_UTF8)  # noqa: PTH118
            return False
        if not seen:
            status = os.stat(self.root)  # noqa: PTH116
            seen.add((status.st_dev, status.st_ino))
        path = Path(folder, subfolder)
        try:
            status = path.stat()
        except OSError as error:
            self._skip(str(path), "unreadable", error.strerror or str(error))
            return False
        key = (status.st_dev, status.st_ino)
        if key in seen:
            if path.is_symlink():
                self._skip(str(path), "link-loop", "is a link to a folder already read")
            return False
        seen.add(key)
        return True

    def _cannot_list(self, error: OSError) -> None:
        path = str(error.filename or self.root)
        if path == self.root:
            raise SourceError("unreadable", path, f"cannot be listed ({error.strerror})")
        self._skip(path, "unreadable", f"cannot be listed ({error.strerror})")

    def _skip(self, path: str, code: str, detail: str) -> None:
        self.problems.append(Rejection(as_text(path), code, detail))

    def path(self, name: str) -> str:
        """Path of an entry as it is called on disk; addresses stay as they are."""
        if ADDRESS.match(name):
            return name
        if posixpath.isabs(name):
            return on_disk(name)
        path = on_disk(str(Path(self.root, name)))
        return plain_path(path) if ".." in name else path

    def has(self, name: str) -> bool:
        """Whether the entry is a readable file; addresses are taken at their word."""
        path = self.path(name)
        return bool(ADDRESS.match(path)) or Path(path).is_file()

    def read_text(self, name: str) -> str:
        """Text of a small file, without a byte-order mark."""
        return read_text(self.path(name))


def read_json(tree: Tree, name: str) -> Any:
    """Content of a JSON file; SourceError bad-json where it is none."""
    text = tree.read_text(name)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError("bad-json", tree.path(name), f"is not JSON ({error})") from error


def broken(link: str) -> tuple[str, str]:
    """Code and reason of a symbolic link to nothing, as an annex leaves where it has no content."""
    if ".git/annex/objects" in os.readlink(link):  # noqa: PTH115
        return "annex-pointer", "its content is in a git-annex elsewhere: `datalad get` it"
    return "broken-link", "is a symbolic link to nothing"


NOT_UTF8 = "its name is not UTF-8, which nothing that is written could repeat; rename it"


def is_text(name: str) -> bool:
    """Whether a name can be written down: Python keeps bytes that are not UTF-8 as surrogates."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def as_text(name: str) -> str:
    """A name that can be written down, bytes that are not UTF-8 as `\\xfc`."""
    return name if is_text(name) else os.fsencode(name).decode("utf-8", "backslashreplace")


def plain_path(path: str) -> str:
    """Absolute path; one that goes through `..` is followed to where it leads, links and all."""
    return os.path.realpath(path) if ".." in Path(path).parts else str(Path(path).absolute())


def is_corpus(folder: str) -> bool:
    """Whether a folder is a corpus of ours: what a conversion wrote is no source of another."""
    if any(Path(folder, name).is_file() for name in MANIFESTS):
        return True
    try:
        document = json.loads(Path(folder, "zarr.json").read_bytes())
        return "mim3d" in document["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def outside_corpora(names: Sequence[str]) -> list[str]:
    """Names of an object store without those inside a corpus, told by the files every one has."""
    known = set(names)
    roots = {n.removesuffix(file) for file in MANIFESTS for n in names if n.endswith(file)}
    corpora = {root for root in roots if f"{root}zarr.json" in known}
    if not corpora:
        return list(names)
    return [n for n in names if not any(above in corpora for above in _folders_above(n))]


def _folders_above(name: str) -> Iterator[str]:
    """Prefixes of a name that end in `/`, and the empty one."""
    yield ""
    for found in re.finditer("/", name):
        yield name[: found.end()]


def glob_pattern(pattern: str) -> re.Pattern[str]:
    """Regular expression of a glob over `/`-joined names; `**` crosses folders."""
    out, i = "", 0
    while i < len(pattern):
        if pattern.startswith("**/", i):
            out, i = out + "(?:.*/)?", i + 3
        elif pattern.startswith("**", i):
            out, i = out + ".*", i + 2
        elif pattern[i] in "*?":
            out, i = out + ("[^/]*" if pattern[i] == "*" else "[^/]"), i + 1
        elif pattern[i] == "[" and "]" in pattern[i + 2 :]:
            end = pattern.index("]", i + 2)
            inner = pattern[i + 1 : end].replace("\\", "\\\\")
            out, i = out + "[" + re.sub(r"^!", "^", inner) + "]", end + 1
        else:
            out, i = out + re.escape(pattern[i]), i + 1
    return re.compile(out)


TEXT_BUDGET = 1 << 28


class RemoteTree:
    """What layouts read of an address; `names` lists s3:// and gs:// once and is kept."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.problems: list[Rejection] = []
        self._names: list[str] | None = None
        self._known: frozenset[str] = frozenset()
        self._called: dict[str, str] = {}

    @property
    def can_list(self) -> bool:
        """Whether the address is a bucket: http has no listing."""
        return not self.root.startswith(("http://", "https://"))

    @property
    def names(self) -> list[str]:
        """Every object below the root, sorted; SourceError for http."""
        if not self.can_list:
            detail = "cannot be listed over http; name a file, a datalist (.json) or a table (.csv)"
            raise SourceError("no-listing", self.root, detail)
        if self._names is None:
            listed = self._list()
            self._known = frozenset(listed)
            called = dict(zip(composed_names(listed), listed, strict=True))
            self._names = sorted(called)
            self._called = {name: key for name, key in called.items() if name != key}
        return self._names

    def _list(self) -> list[str]:
        import obstore

        store, prefix = locate(self.root)
        skip = len(prefix) + 1 if prefix else 0
        try:
            batches = store.list(prefix or None)
            names = sorted(o["path"][skip:] for batch in batches for o in batch)
        except (obstore.exceptions.BaseError, OSError) as error:
            detail = f"cannot be listed: {store_reason(error)}"
            raise SourceError("unreadable", self.root, detail) from error
        return outside_corpora(names)

    def path(self, name: str) -> str:
        """Address of an entry."""
        if ADDRESS.match(name):
            return name
        return f"{self.root}/{self._called.get(name, name)}" if name else self.root

    def has(self, name: str) -> bool:
        """Whether the listing has the entry; True over http and for other addresses."""
        path = self.path(name)
        if not self.can_list or not path.startswith(self.root + "/"):
            return True
        return bool(self.names) and path[len(self.root) + 1 :] in self._known

    def read_text(self, name: str) -> str:
        """Text of a small object."""
        path = self.path(name)
        try:
            return read_remote_bytes(path, TEXT_BUDGET).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SourceError("not-text", path, "is not UTF-8 text") from error


class SubTree:
    """A folder of another tree as a tree of its own."""

    def __init__(self, tree: Tree, folder: str) -> None:
        self._tree, self._folder = tree, folder
        self.root = tree.path(folder)
        self.problems: list[Rejection] = []
        skip = len(folder) + 1
        self.names = [name[skip:] for name in tree.names if name.startswith(folder + "/")]

    def path(self, name: str) -> str:
        """Path or address of an entry."""
        if ADDRESS.match(name) or posixpath.isabs(name):
            return name
        return self._tree.path(f"{self._folder}/{name}" if name else self._folder)

    def has(self, name: str) -> bool:
        """Whether the entry is there."""
        return self._tree.has(self.path(name) if posixpath.isabs(name) else self._inner(name))

    def read_text(self, name: str) -> str:
        """Text of a small file."""
        return self._tree.read_text(self._inner(name))

    def _inner(self, name: str) -> str:
        return name if ADDRESS.match(name) else posixpath.normpath(f"{self._folder}/{name}")
