"""Exceptions a user can cause; the command line prints them as one line and exits 2."""

from dataclasses import dataclass
from typing import Self


class Mim3dError(ValueError):
    """Base of every error whose message names the file or field, the values and the remedy."""


class SourceError(Mim3dError):
    """A source file cannot be trusted or converted.

    `code` is the machine-readable reason that also stands in quarantine.jsonl.
    """

    def __init__(self, code: str, path: str, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.code = code
        self.path = path
        self.detail = detail


class CorpusError(Mim3dError):
    """A corpus is missing, incomplete, stale or of another format version."""


class CorpusWarning(UserWarning):
    """A corpus can be read, and something about it is not as a finished conversion leaves it."""


class ChunkError(CorpusError):
    """A stored chunk fails its checksum or cannot be decoded; names volume, shard and chunk."""


@dataclass(frozen=True, order=True)
class Rejection:
    """One source left out: its path, a machine-readable code, and what is wrong and to do."""

    path: str
    code: str
    detail: str

    @classmethod
    def of(cls, error: SourceError) -> Self:
        """The rejection an error stands for."""
        return cls(error.path, error.code, error.detail)


class StoreError(Mim3dError):
    """The destination cannot take what is written (full, read-only, gone): the run must stop."""


class StoreRefusedError(StoreError):
    """A store says no (credentials, no such bucket): asking again changes nothing."""


def first_line(error: BaseException) -> str:
    """An error's first line, its kind where it says nothing; stacks of C++ code follow it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
