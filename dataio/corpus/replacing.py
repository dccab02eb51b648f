"""replacing.jsonl: volumes that a conversion is putting others in the place of, while it does.

A volume's folder is exchanged before the chunk table that knows the new one stands. Its id is
noted here before, and the note is dropped once the new table is there: so whoever has the old
table, or opens it after an interruption, knows which of its volumes are no longer those it tells
of, and reads the others.
"""

from collections.abc import Iterable

from mim3d.dataio.corpus.manifest import open_line, sealed_line
from mim3d.dataio.corpus.names import own_key
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.storage.store import Store

REPLACING = "replacing.jsonl"


def note_replacing(store: Store, ids: Iterable[str]) -> None:
    """Note volumes that are about to be replaced or removed."""
    lines = "".join(sealed_line({"id": id}) + "\n" for id in ids)
    store.append(own_key(store, REPLACING), lines.encode())


def parse_replacing(text: bytes) -> frozenset[str] | None:
    """Ids of a note; None where a line of it is damaged, so that it may be any."""
    try:
        lines = [line for line in text.decode("utf-8", "replace").split("\n") if line]
        return frozenset(str(open_line(line, REPLACING)["id"]) for line in lines)
    except (CorpusError, KeyError):
        return None
