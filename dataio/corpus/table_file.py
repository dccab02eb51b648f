"""The chunk table's one file: a head in JSON under its checksum, then arrays, each under its own.

    0   magic "mim3dtab", bytes of the head (u32), crc32c of the head (u32)
    16  the head: JSON; `sections` has of each array its dtype, offset, bytes and crc32c
    ..  the arrays, little-endian, each beginning at a multiple of 64

One file, so that a new table takes the place of the old one at once, by a rename or a single put,
and is one request away in a bucket. It is mapped, not read: opening costs the head.
"""

import io
import json
import struct
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numpy as np
from typing_extensions import Buffer

from mim3d.dataio.corpus.names import TABLE, own_key
from mim3d.dataio.storage.store import Store

MAGIC = b"mim3dtab"
START = struct.Struct("<8sII")
ALIGNED = 64
MOST_HEAD = 1 << 26
CHECKED_BYTES = 1 << 22


class TableFileError(ValueError):
    """The file is not what was written; says what is wrong with it."""


def packed(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Buffer]:
    """The file of one-dimensional arrays, in parts; `facts` stand in the head beside `sections`."""
    contents = {name: np.ascontiguousarray(a).reshape(-1) for name, a in arrays.items()}
    sections: dict[str, Any] = {
        name: {
            "dtype": np.lib.format.dtype_to_descr(content.dtype),
            "nbytes": content.nbytes,
            "crc32c": crc_of_bytes(content.view(np.uint8)),
        }
        for name, content in contents.items()
    }
    head = placed(facts, sections)
    parts: list[Buffer] = [START.pack(MAGIC, len(head), google_crc32c.value(head)), head]
    at = START.size + len(head)
    for name, content in contents.items():
        gap = sections[name]["offset"] - at
        parts += [bytes(gap), content.view(np.uint8).data]
        at += gap + content.nbytes
    return parts


def placed(facts: Mapping[str, Any], sections: dict[str, Any]) -> bytes:
    """The head, when the offsets in it are those that its own length makes them."""
    room = 0
    while True:
        at = START.size + room
        for section in sections.values():
            at += -at % ALIGNED
            section["offset"] = at
            at += section["nbytes"]
        head = json.dumps({**facts, "sections": sections}).encode()
        if len(head) <= room:
            return head.ljust(room)
        room = len(head) + ALIGNED


def read_file_head(file: Path) -> dict[str, Any]:
    """The head alone; TableFileError where it is damaged, OSError where there is none."""
    with file.open("rb") as opened:
        return read_head_of(opened)


def read_head_of(opened: IO[bytes]) -> dict[str, Any]:
    """The same of an open file."""
    start = opened.read(START.size)
    if len(start) < START.size or start[:8] != MAGIC:
        raise TableFileError("is not a chunk table")
    _, nbytes, crc = START.unpack(start)
    head = opened.read(nbytes) if nbytes <= MOST_HEAD else b""
    if google_crc32c.value(head) != crc or len(head) != nbytes:
        raise TableFileError("its head fails its checksum")
    return json.loads(head)


def stored_head(store: Store) -> dict[str, Any]:
    """The head of a corpus's table in its store; empty where there is none that is intact."""
    try:
        return read_head_of(io.BytesIO(store.get(own_key(store, TABLE))))
    except (OSError, ValueError):
        return {}


def mapped_arrays(
    file: Path,
    head: Mapping[str, Any],
    dtypes: Mapping[str, Sequence[np.dtype]],
    optional: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """The arrays, mapped and read-only, each of one of the dtypes told for its name.

    TableFileError where one is missing that is not `optional`, of another dtype, or beyond the
    end of the file.
    """
    whole = np.memmap(file, np.uint8, mode="r")
    found = {}
    for name, allowed in dtypes.items():
        section = head["sections"].get(name)
        if section is None and name in optional:
            continue
        if section is None:
            raise TableFileError(f"has no {name}")
        known = [d for d in allowed if describes(section["dtype"], d)]
        if not known:
            raise TableFileError(f"its {name} are of {section['dtype']}, not {allowed[0]}")
        begin, nbytes = int(section["offset"]), int(section["nbytes"])
        if min(begin, nbytes) < 0 or begin + nbytes > len(whole) or nbytes % known[0].itemsize:
            raise TableFileError(f"its {name} end at {begin + nbytes}, the file at {len(whole)}")
        found[name] = np.asarray(whole[begin : begin + nbytes]).view(known[0])
    return found


def describes(descr: Any, dtype: np.dtype) -> bool:
    """Whether what stands in a head, as JSON keeps it, is this dtype."""
    return json.dumps(descr) == json.dumps(np.lib.format.dtype_to_descr(dtype))


def intact_section(head: Mapping[str, Any], name: str, content: np.ndarray) -> bool:
    """Whether an array passes its checksum; all of it is read."""
    return crc_of_bytes(content.view(np.uint8)) == head["sections"][name]["crc32c"]


def crcs_of_blocks(content: np.ndarray, block: int) -> np.ndarray:
    """crc32c (uint32) of each block of so many rows, the last one being shorter."""
    starts = range(0, len(content), block)
    crcs = (google_crc32c.value(content[i : i + block].view(np.uint8)) for i in starts)
    return np.fromiter(crcs, "<u4", len(starts))


def crc_of_bytes(content: np.ndarray) -> str:
    """crc32c of uint8 content, by blocks."""
    crc = 0
    for start in range(0, len(content), CHECKED_BYTES):
        crc = google_crc32c.extend(crc, content[start : start + CHECKED_BYTES])
    return f"{crc:08x}"
