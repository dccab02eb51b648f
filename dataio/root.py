"""The corpus's root zarr.json: format version and recipe, sealed by a checksum."""

import json
from typing import Any

import google_crc32c

from mim3d.dataio.conversion import FORMAT, Conversion
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.store import Store

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
        raise CorpusError(f"{where}/zarr.json: fails its checksum; restore it or convert again")
    if format != FORMAT:
        raise CorpusError(f"{where}: corpus format {format}, this version reads {FORMAT}")
    return facts


def check_recipe(store: Store, conversion: Conversion) -> None:
    """CorpusError naming the options that differ from those the corpus was made with."""
    have = BEFORE | read_root(store.get("zarr.json"), store.url)["conversion"]
    want = json.loads(json.dumps(conversion.attributes()))
    differ = [key for key in want if have.get(key) != want[key]]
    if differ:
        told = ", ".join(f"{key} {have.get(key)!r}, now {want[key]!r}" for key in differ)
        raise CorpusError(
            f"{store.url}: was made with other options ({told}); "
            "use the same ones or another destination"
        )
