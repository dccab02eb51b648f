"""The corpus's root zarr.json: format version and recipe, sealed by a checksum."""

import json
import re
from importlib.metadata import version
from typing import Any

import google_crc32c

from mim3d.dataio.corpus.conversion import FORMAT, Conversion
from mim3d.dataio.corpus.ome import json_bytes
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.storage.store import Store

FEW_BYTES = 2
BEFORE = {"shuffle": "byte"}
"""What corpora were made with whose recipe does not name it."""


def root_document(conversion: Conversion, version: str) -> dict[str, Any]:
    """zarr.json of the root group."""
    facts = {"format": FORMAT, "written_by": version, "conversion": conversion.attributes()}
    return sealed_document(facts)


def sealed_document(facts: dict[str, Any]) -> dict[str, Any]:
    """zarr.json of a root with these facts, under their checksum."""
    attributes = {"mim3d": facts, "crc32c": _seal(facts)}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _seal(facts: dict[str, Any]) -> str:
    return f"{google_crc32c.value(json.dumps(facts, sort_keys=True).encode()):08x}"


def read_root(text: bytes, where: str) -> dict[str, Any]:
    """The root's facts (format, written_by, conversion).

    CorpusError if it is no corpus of ours, of another format, or damaged.
    """
    try:
        attributes = json.loads(text)["attributes"]
        facts, seal = attributes["mim3d"], attributes["crc32c"]
        format = facts["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{where}: not a corpus of mim3d (its zarr.json says so)") from error
    if seal != _seal(facts):
        raise CorpusError(
            f"{where}/zarr.json: fails its checksum; run the same `mim3d convert` again, which "
            "mends it"
        )
    if format != FORMAT:
        raise CorpusError(f"{where}: corpus format {format}, this version reads {FORMAT}")
    return facts


def check_recipe(store: Store, conversion: Conversion) -> None:
    """CorpusError naming the options that differ from those the corpus was made with.

    A damaged zarr.json that was of these options is written anew.
    """
    text = store.get("zarr.json")
    try:
        facts = read_root(text, store.url)
    except CorpusError:
        whole = undamaged_root(text, conversion)
        if whole is None:
            raise
        facts = read_root(whole, store.url)
    have = BEFORE | facts["conversion"]
    want = json.loads(json.dumps(conversion.attributes()))
    differ = [key for key in want if have.get(key) != want[key]]
    if differ:
        told = ", ".join(f"{key} {have.get(key)!r}, now {want[key]!r}" for key in differ)
        raise CorpusError(
            f"{store.url}: was made with other options ({told}); "
            "use the same ones or another destination"
        )
    if text != (whole := json_bytes(sealed_document(facts))):
        store.replace("zarr.json", [whole])


def undamaged_root(text: bytes, conversion: Conversion) -> bytes | None:
    """What a damaged zarr.json was, if it was of this recipe: its checksum is still in it, or all
    but a few bytes are the same. None where neither tells."""
    told = re.findall(rb'"written_by": *"([^"]{1,40})"', text)
    for name in (version("mim3d"), *(word.decode("utf-8", "replace") for word in told)):
        document = root_document(conversion, name)
        whole = json_bytes(document)
        gaps = sum(a != b for a, b in zip(whole, text, strict=False)) + abs(len(whole) - len(text))
        if document["attributes"]["crc32c"].encode() in text or gaps <= FEW_BYTES:
            return whole
    return None
