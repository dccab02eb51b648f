"""quarantine.jsonl: every source that was not converted, with a code and a reason in words."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from mim3d.dataio.corpus.manifest import open_line, sealed_line
from mim3d.dataio.corpus.names import own_key
from mim3d.dataio.errors import CorpusError, Rejection
from mim3d.dataio.storage.store import open_store

QUARANTINE = "quarantine.jsonl"


def quarantine_bytes(rejections: Iterable[Rejection]) -> bytes:
    """The finished file: sorted, without repetitions, each line with its checksum."""
    lines = (sealed_line(asdict(item)) + "\n" for item in sorted(set(rejections)))
    return "".join(lines).encode()


def quarantine_place(corpus: str | Path) -> str:
    """Where a corpus, a folder or an address, lists what was left out."""
    return f"{corpus}/{own_key(open_store(corpus), QUARANTINE)}"


def parse_quarantine(text: bytes, where: str = QUARANTINE) -> list[Rejection]:
    """Rejections of the file's bytes; CorpusError if a line is not what was written."""
    lines = text.decode("utf-8", "replace").split("\n")
    if lines.pop():
        raise CorpusError(f"{where}: ends within a line")
    return [
        Rejection(**open_line(line, f"{where}, line {number}"))
        for number, line in enumerate(lines, start=1)
    ]


def intact_rejections(text: bytes) -> list[Rejection]:
    """Rejections of the lines that pass their checksums."""
    found = []
    for line in text.decode("utf-8", "replace").split("\n"):
        try:
            found.append(Rejection(**open_line(line, QUARANTINE)))
        except (CorpusError, TypeError):
            continue
    return found
