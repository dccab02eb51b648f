"""Exceptions a user can cause; the command line prints them as one line and exits 2."""


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


class ChunkError(CorpusError):
    """A stored chunk fails its checksum or cannot be decoded; names volume, shard and chunk."""
