"""The corpus's root zarr.json: format version and recipe, sealed by a checksum."""

import json
import re
from importlib.metadata import version
from typing import Any

import google_crc32c

from mim3d.dataio.corpus.conversion import FORMAT, READABLE_FORMATS, Conversion
from mim3d.dataio.corpus.names import OWN_METADATA, is_flat, own_array
from mim3d.dataio.corpus.ome import json_bytes
from mim3d.dataio.corpus.table_file import stored_head
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.storage.store import Store

FEW_BYTES = 2
BEFORE = {
    **{"shuffle": "byte", "believe": "auto", "units": "header"},
    **{"ome_labels": False, "label_values": [], "pyramid": False},
}
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
        raise DamagedRootError(
            f"{where}: not a corpus of mim3d (its zarr.json says so); if it was one, `mim3d verify "
            f"{where} --mend` or the same `mim3d convert` mends it"
        ) from error
    if seal != _seal(facts):
        raise DamagedRootError(
            f"{where}/zarr.json: fails its checksum; run the same `mim3d convert` again, or "
            f"`mim3d verify {where} --mend`: either mends it"
        )
    if format not in READABLE_FORMATS:
        raise CorpusError(
            f"{where}: corpus format {format}, this version reads "
            f"{' and '.join(map(str, READABLE_FORMATS))}; install the version of "
            f"mim3d that wrote it ({facts.get('written_by')})"
        )
    return facts


class DamagedRootError(CorpusError):
    """A root's zarr.json is not what was written."""


def root_facts(store: Store) -> dict[str, Any] | None:
    """The root's facts, of its zarr.json or, where that is damaged or gone, of the chunk table,
    which repeats them; None where neither tells. CorpusError for another format."""
    try:
        return read_root(store.get("zarr.json"), store.url)
    except (DamagedRootError, FileNotFoundError):
        pass
    return stored_head(store).get("root")


def recipe_of(store: Store) -> Conversion:
    """The recipe a corpus was made by; CorpusError where nothing tells it any more."""
    facts = root_facts(store)
    if facts is None:
        raise DamagedRootError(
            f"{store.url}: neither zarr.json nor the chunk table tells how it was made; run the "
            "same `mim3d convert` again, which mends them"
        )
    return conversion_of(facts, store.url)


def conversion_of(facts: dict[str, Any], where: str) -> Conversion:
    """The recipe in a root's facts; CorpusError for options this version does not know."""
    given = BEFORE | facts["conversion"]
    try:
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in given.items()
        }
        return Conversion(**fields)
    except TypeError as error:
        raise CorpusError(
            f"{where}: was made with options this version does not know ({error}); install "
            f"the version of mim3d that wrote it ({facts.get('written_by')})"
        ) from error


def mend_root(store: Store) -> None:
    """Write zarr.json anew where it is not what was written and the facts are known."""
    facts = root_facts(store)
    whole = None if facts is None else json_bytes(sealed_document(facts))
    if whole is not None and (not store.exists("zarr.json") or store.get("zarr.json") != whole):
        store.replace("zarr.json", [whole])


def mend_own_folder(store: Store) -> None:
    """Write the metadata of the folder of the corpus' own files where it is not what it was."""
    whole = json_bytes(own_array())
    flat = is_flat(store.exists)
    if not flat and (not store.exists(OWN_METADATA) or store.get(OWN_METADATA) != whole):
        store.replace(OWN_METADATA, [whole])


def check_recipe(store: Store, conversion: Conversion) -> None:
    """CorpusError naming the options that differ from those the corpus was made with.

    A damaged zarr.json that was of these options is written anew.
    """
    mend_root(store)
    text = store.get("zarr.json")
    try:
        facts = read_root(text, store.url)
    except DamagedRootError:
        whole = undamaged_root(text, conversion)
        if whole is None:
            raise
        facts = read_root(whole, store.url)
    refuse_other_options(store.url, facts, conversion)
    if text != (whole := json_bytes(sealed_document(facts | {"format": FORMAT}))):
        # The format too: what is written from now on is for versions that know of it.
        store.replace("zarr.json", [whole])


def check_options(store: Store, conversion: Conversion) -> None:
    """The same, and nothing is written."""
    facts = root_facts(store)
    if facts is None:
        text = store.get("zarr.json")
        facts = read_root(undamaged_root(text, conversion) or text, store.url)
    refuse_other_options(store.url, facts, conversion)


def refuse_other_options(corpus: str, facts: dict[str, Any], conversion: Conversion) -> None:
    """CorpusError naming the options in a corpus's facts that are others now."""
    have = BEFORE | facts["conversion"]
    want = json.loads(json.dumps(conversion.attributes()))
    differ = [key for key in want if have.get(key) != want[key]]
    if differ:
        changes = ", ".join(f"{key} {have.get(key)!r}, now {want[key]!r}" for key in differ)
        raise CorpusError(
            f"{corpus}: was made with other options ({changes}); "
            "use the same ones or another destination"
        )


def undamaged_root(text: bytes, conversion: Conversion) -> bytes | None:
    """What a damaged zarr.json was, if it was of this recipe: its checksum is still in it, or all
    but a few bytes are the same. None where neither tells."""
    writers = re.findall(rb'"written_by": *"([^"]{1,40})"', text)
    for name in (version("mim3d"), *(word.decode("utf-8", "replace") for word in writers)):
        document = root_document(conversion, name)
        whole = json_bytes(document)
        gaps = sum(a != b for a, b in zip(whole, text, strict=False)) + abs(len(whole) - len(text))
        if document["attributes"]["crc32c"].encode() in text or gaps <= FEW_BYTES:
            return whole
    return None
