"""Where a corpus is written: a folder here, or any object store with the same few verbs."""

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from typing_extensions import Buffer

from mim3d.dataio.errors import CorpusError, StoreError
from mim3d.dataio.storage.block_file import write_file
from mim3d.dataio.storage.file_lock import sign, take_lock

LOCK = ".lock"
PARTIAL = ".partial"
DEAD_HOLDER_S = 5.0  # how long a dead holder's lock is waited for
UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EEXIST),
}
TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}
"""What a rename says where something stands already."""
TEMPORARY = re.compile(r"\..+\.\d+\.partial")


class Store(Protocol):
    """The verbs the converter needs; keys are relative, `/`-separated.

    What `put_folder` and `append` wrote is durable after `sync`, what `replace` wrote at once.
    Locally they are whole or not at all, on an object store object by object.
    """

    url: str

    def put_folder(self, folder: str, objects: Mapping[str, Iterable[Buffer]]) -> None:
        """Write all objects of a folder (keys relative to it), replacing what stood there.

        Each is given in parts, to be written one after the other; they are asked for once.
        """
        ...

    def replace(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write an object at once, instead of the one that stood there."""
        ...

    def append(self, key: str, data: bytes) -> None:
        """Add to the end of an object."""
        ...

    def sync(self) -> None:
        """Make durable what was written, by any process of this machine."""
        ...

    def get(self, key: str) -> bytes:
        """All bytes of an object; FileNotFoundError where it is absent."""
        ...

    def tail(self, key: str, nbytes: int) -> bytes:
        """The last bytes of an object."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        ...

    def walk(self, prefix: str = "") -> Iterator[str]:
        """Keys under a prefix (a folder), in any order."""
        ...

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of every object under a prefix (a folder), by key; none where there is none."""
        ...

    def folders(self) -> list[str]:
        """Names directly under the root that hold objects."""
        ...

    def delete(self, prefix: str) -> None:
        """Remove an object or everything under a folder; nothing where there is none."""
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Hold the store against a second writer; CorpusError naming the holder."""
        ...


class LocalStore:
    """A folder; what is written becomes visible by a rename."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self.url = str(root)

    def path(self, key: str) -> Path:
        """Place of a key; a key can never leave the root."""
        parts = key.split("/")
        if not key or any(part in ("", ".", "..") or "\\" in part for part in parts):
            raise StoreError(f"{self.root}: {key!r} is not a key inside the corpus")
        return self.root.joinpath(*parts)

    def put_folder(self, folder: str, objects: Mapping[str, Iterable[Buffer]]) -> None:
        """Write beside the place, then rename the whole folder into place.

        Paths are text here: small volumes feel what pathlib takes.
        """
        target = self.path(folder)
        partial = f"{target.parent}/.{target.name}.{os.getpid()}{PARTIAL}"
        try:
            for inner in _folders_of(objects):
                _make_folder(f"{partial}/{inner}" if inner else partial)
            for key, parts in objects.items():
                write_file(f"{partial}/{key}", parts)
            try:
                os.rename(partial, target)  # noqa: PTH104
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
                self.delete(folder)
                os.rename(partial, target)  # noqa: PTH104
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise store_error(target, error) from error

    def replace(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write in the root, fsync, rename: a reader sees the old or the new."""
        target = self.path(key)
        partial = self.root / f".{target.name}.{os.getpid()}{PARTIAL}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_synced(partial, parts)
            partial.replace(target)
            _sync_folder(target.parent)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise store_error(target, error) from error

    def append(self, key: str, data: bytes) -> None:
        """Append; a failed write leaves at most a line without its newline."""
        target = self.path(key)
        try:
            with target.open("ab") as file:
                file.write(data)
        except OSError as error:
            raise store_error(target, error) from error

    def sync(self) -> None:
        """One syncfs for many files: an fsync of each took nine tenths of a conversion's time."""
        sync_file_system(self.root)

    def get(self, key: str) -> bytes:
        """All bytes of an object."""
        return self.path(key).read_bytes()

    def tail(self, key: str, nbytes: int) -> bytes:
        """The last bytes of an object."""
        with self.path(key).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - nbytes, 0))
            return file.read()

    def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        return self.path(key).is_file()

    def walk(self, prefix: str = "") -> Iterator[str]:
        """Files under a folder, without following links."""
        base = self.path(prefix) if prefix else self.root
        for folder, _, names in os.walk(base):
            for name in names:
                yield (Path(folder) / name).relative_to(self.root).as_posix()

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of the files under a folder."""
        found: dict[str, int] = {}
        waiting = [(str(self.path(prefix)) if prefix else str(self.root), prefix)]
        while waiting:
            folder, key = waiting.pop()
            try:
                entries = list(os.scandir(folder))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in entries:
                inner = f"{key}/{entry.name}".lstrip("/")
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, inner))
                elif entry.is_file():
                    found[inner] = entry.stat().st_size
        return found

    def folders(self) -> list[str]:
        """Folders directly under the root."""
        if not self.root.is_dir():
            return []
        return sorted(
            entry.name for entry in os.scandir(self.root) if entry.is_dir(follow_symlinks=False)
        )

    def delete(self, prefix: str) -> None:
        """Remove a file, a link, or a folder with all in it."""
        target = self.path(prefix)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold `.lock`; the kernel lets go of it when the process dies, however it dies."""
        file = self.root / LOCK
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            held = file.open("a+")
        except OSError as error:
            raise store_error(file, error) from error
        with held:
            if holder := take_lock(held, DEAD_HOLDER_S):
                raise self._busy(holder)
            # The last holder may have removed the file between our open and our lock.
            if not file.exists() or not file.samefile(f"/dev/fd/{held.fileno()}"):
                raise self._busy("another process")
            sign(held)
            self._tidy()
            try:
                yield
            finally:
                with suppress(OSError):  # a lost worker's half-written folder is nobody's
                    self._tidy()
                file.unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Remove what a killed writer left under temporary names; only the lock's holder may."""
        for entry in os.scandir(self.root):
            if TEMPORARY.fullmatch(entry.name):
                self.delete(entry.name)

    def _busy(self, holder: str) -> CorpusError:
        return CorpusError(
            f"{self.root}: {holder} is writing to it; wait, or choose another destination"
        )


def store_error(target: Path, error: OSError) -> StoreError:
    """The error of a failed write, with its remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "make room and run the same command again; what is done is kept"
    else:
        remedy = "mend it and run the same command again; what is done is kept"
    return StoreError(f"{target}: cannot be written ({error.strerror}); {remedy}")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the system's errors of writing below a folder into a StoreError that names it."""
    try:
        yield
    except OSError as error:
        elsewhere = error.filename and not Path(str(error.filename)).is_relative_to(folder)
        if error.errno not in UNWRITABLE or (elsewhere and error.errno != errno.ENOTDIR):
            raise
        why = f"{error.filename or folder}: cannot be written ({error.strerror})"
        raise StoreError(f"{why}; make room there, or name another folder") from error


def sync_file_system(folder: Path) -> None:
    """Flush the file system that holds `folder`; all of them where there is no syncfs."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise store_error(folder, OSError(code, os.strerror(code)))
    finally:
        os.close(descriptor)


def _make_folder(path: str) -> None:
    """Make a folder, and the corpus above it where that is not there."""
    try:
        os.mkdir(path)  # noqa: PTH102
    except FileNotFoundError:
        os.makedirs(path)  # noqa: PTH103


def _folders_of(keys: Iterable[str]) -> list[str]:
    """Every folder above the keys, outermost first; the first is the root of all."""
    found = {""}
    for key in keys:
        parts = key.split("/")[:-1]
        found.update("/".join(parts[: n + 1]) for n in range(len(parts)))
    return sorted(found)


def _write_synced(file: Path, parts: Sequence[Buffer]) -> None:
    with file.open("wb") as out:
        out.writelines(parts)
        out.flush()
        os.fsync(out.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_store(destination: str | Path) -> Store:
    """The store of a folder or of an s3://, gs:// or file address."""
    if "://" in str(destination):
        from mim3d.dataio.storage.object_store import RemoteStore

        return RemoteStore(str(destination))
    return LocalStore(destination)
