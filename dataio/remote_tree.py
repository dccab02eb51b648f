"""A bucket's folder as a tree of source files; an http folder only by the names in its lists."""

from mim3d.dataio.errors import SourceError
from mim3d.dataio.quarantine import Rejection
from mim3d.dataio.remote import first_line, locate, read_remote_bytes
from mim3d.dataio.tree import ADDRESS, outside_corpora

TEXT_BUDGET = 1 << 28


class RemoteTree:
    """What layouts read of an address; `names` lists s3:// and gs:// once and is kept."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.problems: list[Rejection] = []
        self._names: list[str] | None = None
        self._known: frozenset[str] = frozenset()

    @property
    def can_list(self) -> bool:
        """Whether the address is a bucket: http has no listing."""
        return not self.root.startswith(("http://", "https://"))

    @property
    def names(self) -> list[str]:
        """Every object below the root, sorted; SourceError for http."""
        if not self.can_list:
            told = "cannot be listed over http; name a file, a datalist (.json) or a table (.csv)"
            raise SourceError("no-listing", self.root, told)
        if self._names is None:
            self._names = self._list()
            self._known = frozenset(self._names)
        return self._names

    def _list(self) -> list[str]:
        import obstore

        store, prefix = locate(self.root)
        skip = len(prefix) + 1 if prefix else 0
        try:
            batches = obstore.list(store, prefix or None)
            names = sorted(o["path"][skip:] for batch in batches for o in batch)
        except (obstore.exceptions.BaseError, OSError) as error:
            told = f"cannot be listed: {first_line(error)}"
            raise SourceError("unreadable", self.root, told) from error
        return outside_corpora(names)

    def path(self, name: str) -> str:
        """Address of an entry."""
        if ADDRESS.match(name):
            return name
        return f"{self.root}/{name}" if name else self.root

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
