"""The head of a chunk table, of one file or of several, and the manifest that it was made of."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import google_crc32c
import numpy as np

from mim3d.dataio.corpus.channel_rows import CHANNELS
from mim3d.dataio.corpus.manifest import VolumeRecord, iter_manifest, latest, manifest_bytes
from mim3d.dataio.corpus.names import HEAD, MANIFEST, OWN, TABLE, own_file
from mim3d.dataio.corpus.replacing import REPLACING, parse_replacing
from mim3d.dataio.corpus.seen_files import SEEN, remedy_of_unfinished
from mim3d.dataio.corpus.table_file import read_file_head
from mim3d.dataio.corpus.table_rows import CHECKED, POINTS, READABLE_FORMATS
from mim3d.dataio.errors import CorpusError

REMEDY_OF_MANIFEST = (
    "run the same `mim3d convert` again, or the same `mim3d merge` where that made it, which makes "
    "anew what it told of"
)
REMEDY = "`mim3d verify {} --mend` makes it anew"
READ_BYTES = 1 << 22


def read_head(root: Path) -> dict:
    """The table's head, checked against the format and the manifest's size."""
    head = _file_head(root) if own_file(root, TABLE).is_file() else _json_head(root)
    if head["format"] not in READABLE_FORMATS:
        known = ", ".join(map(str, READABLE_FORMATS))
        raise CorpusError(
            f"{root}: its chunk table is of format {head['format']}, this version reads {known}; "
            f"{REMEDY.format(root)}"
        )
    size = manifest_size(root)
    if size < head["manifest_bytes"]:
        raise CorpusError(
            f"{own_file(root, MANIFEST)}: has {size} bytes, and had {head['manifest_bytes']} "
            f"when the chunk table was made; {REMEDY_OF_MANIFEST}"
        )
    return head


def manifest_size(root: Path) -> int:
    """Bytes of the manifest, 0 where there is none."""
    file = own_file(root, MANIFEST)
    return file.stat().st_size if file.is_file() else 0


def remedy_here(root: Path) -> str:
    """What completes a corpus of this machine that is half-made."""
    file = own_file(root, SEEN)
    return remedy_of_unfinished(file.read_bytes() if file.is_file() else b"")


def _file_head(root: Path) -> dict:
    try:
        return read_file_head(own_file(root, TABLE))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(own_file(root, TABLE), str(error)) from error


def _json_head(root: Path) -> dict:
    file = own_file(root, HEAD)
    if not file.is_file():
        raise CorpusError(
            f"{root}: the chunk table is missing ({TABLE}): a conversion or a merge did not "
            f"finish; {remedy_here(root)} to complete it"
        )
    try:
        head = json.loads(file.read_bytes())
        body = {key: value for key, value in head.items() if key != "self_crc32c"}
        intact = head["self_crc32c"] == head_crc(body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact, head = False, {}
    if not intact:
        raise damaged(file, "damaged")
    return head


def known_records(root: Path, text: bytes) -> list[VolumeRecord]:
    """The records that the table knows, of a manifest that may have grown since.

    CorpusError where it is not the manifest that the table was made of.
    """
    head, file = read_head(root), own_file(root, MANIFEST)
    known = text[: head["manifest_bytes"]]
    if sha256(known).hexdigest() == head["manifest_sha256"]:
        return latest(iter_manifest(known, str(file)))
    # The new table stands, and the conversion ended before the manifest was put in order.
    records = sorted(latest(iter_manifest(text, str(file))), key=lambda r: r.id)
    if sha256(manifest_bytes(records)).hexdigest() == head["manifest_sha256"]:
        return records
    raise CorpusError(
        f"{file}: damaged: not the manifest that the chunk table was made of; {REMEDY_OF_MANIFEST}"
    )


def whole_records(root: Path) -> list[VolumeRecord]:
    """The records of a corpus that is complete; CorpusError where a conversion or a merge did not
    finish, or is adding to it."""
    file = own_file(root, MANIFEST)
    text = file.read_bytes() if file.is_file() else b""
    records = known_records(root, text)
    if len(text) != read_head(root)["manifest_bytes"]:
        listed = sorted(latest(iter_manifest(text, str(file))), key=lambda r: r.id)
        if listed != sorted(records, key=lambda r: r.id):
            raise CorpusError(
                f"{root}: a conversion or a merge did not finish, or is under way; "
                f"{remedy_here(root)} to complete it"
            )
    return records


def replaced_in(root: Path) -> frozenset[str] | None:
    """Volumes that a conversion is replacing, or was when it was interrupted."""
    file = own_file(root, REPLACING)
    return parse_replacing(file.read_bytes()) if file.is_file() else frozenset()


def checked_first(format: int) -> tuple[str, ...]:
    """Files with a checksum in chunks.json that opening compares."""
    return (*CHECKED, CHANNELS) if format >= 4 else CHECKED


def checked_later(format: int) -> tuple[str, ...]:
    """Files with a checksum in chunks.json that opening does not look at."""
    return (POINTS,) if format >= 3 else ()


def head_crc(body: dict) -> str:
    """Checksum of chunks.json's own fields."""
    return f"{google_crc32c.value(json.dumps(body, sort_keys=True).encode()):08x}"


def crc_of(file: Path) -> str:
    """crc32c of a file; an unreadable one is a CorpusError with the remedy."""
    crc = 0
    try:
        with file.open("rb", buffering=0) as opened:
            while block := opened.read(READ_BYTES):
                crc = google_crc32c.extend(crc, block)
    except OSError as error:
        raise CorpusError(
            f"{file}: cannot be read ({error.strerror}); {REMEDY.format(file.parent)}"
        ) from error
    return f"{crc:08x}"


def damaged(file: Path | str, what: str) -> CorpusError:
    """The error for a table's file that is not what was written."""
    corpus = str(file).rsplit("/", 1)[0].removesuffix(f"/{OWN}")
    return CorpusError(f"{file}: {what}; {REMEDY.format(corpus)}")


def mapped(file: Path, dtypes: Sequence[np.dtype] = (), length: int | None = None) -> np.ndarray:
    """A .npy file as memory map, of one of `dtypes` and of `length` where these are told."""
    try:
        content = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's parser of headers raises whatever Python's own does
        raise damaged(file, f"cannot be mapped ({error})") from error
    end = getattr(content, "offset", 0) + content.nbytes
    if content.ndim != 1 or end != file.stat().st_size:
        raise damaged(file, f"its header speaks of {content.shape} entries, {end} bytes in all")
    if dtypes and content.dtype not in dtypes:
        raise damaged(file, f"holds {content.dtype}, not {dtypes[0]}")
    if length is not None and content.shape != (length,):
        raise damaged(file, f"has {content.shape} entries, the arrays {length}")
    return content
