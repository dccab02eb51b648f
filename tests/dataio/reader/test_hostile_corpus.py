"""A corpus made to lead its reader elsewhere is refused before a byte of it is followed."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from old_tables import write_as_format

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.corpus import chunk_table
from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.corpus.manifest import manifest_bytes, read_manifest
from mim3d.dataio.corpus.names import MANIFEST, TABLE, check_names, check_packed_names, own_file
from mim3d.dataio.corpus.table_file import mapped_arrays, packed, read_file_head
from mim3d.dataio.corpus.table_rows import SECTIONS
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.commands.cli import main

NAMES = ["../pwned", "/etc", "a/b", "..", ".", "", "a\\b", "a\0b", "ä", ".hidden", "-rf", "a" * 200]


@pytest.fixture
def corpus(tmp_path) -> Path:
    volume = anatomy_like((20, 24, 28), 0)
    return corpus_of(tmp_path / "in" / "c.zarr", [volume], [(volume > 500).astype("u1")])


def with_names(corpus: Path, id: str, label: str, old: bool = False) -> None:
    """Manifest and table that name a volume and its label so, all checksums right."""
    (record,) = read_manifest(corpus)
    labels = tuple(replace(a, name=label) for a in record.labels)
    text = manifest_bytes([replace(record, id=id, labels=labels)])
    head = read_file_head(own_file(corpus, TABLE))
    arrays = {
        name: a.copy() for name, a in mapped_arrays(own_file(corpus, TABLE), head, SECTIONS).items()
    }
    blob = np.frombuffer(id.encode(), np.uint8)
    arrays |= {"ids": blob, "ids_offsets": np.array([0, len(blob)], "<u8")}
    facts = {name: value for name, value in head.items() if name != "sections"}
    facts |= {"label_names": [label], "manifest_bytes": len(text)}
    facts["manifest_sha256"] = chunk_table_sha(text)
    own_file(corpus, TABLE).write_bytes(b"".join(map(bytes, packed(facts, arrays))))
    own_file(corpus, MANIFEST).write_bytes(text)


def chunk_table_sha(text: bytes) -> str:
    from hashlib import sha256

    return sha256(text).hexdigest()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["id", "label"])
def test_opening_refuses_a_name_that_leads_out(corpus, tmp_path, name, where, capsys):
    shutil.copytree(corpus / "v0000", tmp_path / "in" / "pwned")
    names = (name, "seg") if where == "id" else ("v0000", name)
    with_names(corpus, *names)
    before = sorted(tmp_path.rglob("*"))
    for ask in (lambda c: c.table, lambda c: c.records):
        with pytest.raises(CorpusError, match="get the corpus again from somebody you trust"):
            ask(Corpus.open(corpus))
    for words in (["export-nifti", str(corpus), str(tmp_path / "out" / "deep")],
                  ["inspect", str(corpus), "--out", str(tmp_path / "pictures")],
                  ["remove", str(corpus), "--volume", name or "x"],
                  ["verify", str(corpus), "--mend"]):  # fmt: skip
        assert main(words) in (2, 3), words
    assert "Traceback" not in capsys.readouterr().err
    made = set(tmp_path.rglob("*")) - set(before)
    assert all(path.is_relative_to(corpus) or path.is_dir() for path in made)


def test_older_tables_are_asked_too(corpus):
    with_names(corpus, "v0000", "seg")
    write_as_format(corpus, 3, 16)
    ids = corpus / "chunks.ids.npy"
    np.save(ids, np.frombuffer(b"../v0", np.uint8))
    head = (corpus / "chunks.json").read_text()
    import json

    facts = {k: v for k, v in json.loads(head).items() if k != "self_crc32c"}
    facts["crc32c"]["chunks.ids.npy"] = chunk_table.crc_of(ids)
    from mim3d.dataio.corpus.table_head import head_crc

    (corpus / "chunks.json").write_text(json.dumps(facts | {"self_crc32c": head_crc(facts)}))
    with pytest.raises(CorpusError, match=r"'\.\./v0' is not the name"):
        ChunkTable.open(corpus)


ROWS = [
    ("arrays", "first_chunk", 7), ("arrays", "n_chunks", 1 << 20), ("arrays", "volume", 5),
    ("arrays", "label", 4), ("arrays", "channels", 3), ("volumes", "image", 9),
    ("volumes", "subject", 9), ("arrays", "shape", 1 << 30), ("arrays", "chunk", 0),
]  # fmt: skip


@pytest.mark.parametrize(("section", "field", "value"), ROWS)
def test_rows_that_point_at_nothing_are_refused(corpus, section, field, value):
    head = read_file_head(own_file(corpus, TABLE))
    arrays = {
        name: a.copy() for name, a in mapped_arrays(own_file(corpus, TABLE), head, SECTIONS).items()
    }
    arrays[section][field][0] = value
    facts = {name: value for name, value in head.items() if name != "sections"}
    own_file(corpus, TABLE).write_bytes(b"".join(map(bytes, packed(facts, arrays))))
    with pytest.raises(CorpusError, match="--mend"):
        ChunkTable.open(corpus)
    assert main(["verify", str(corpus), "--mend"]) == 0
    assert ChunkTable.open(corpus).n_volumes == 1


@given(
    st.lists(st.one_of(st.sampled_from(NAMES), st.text(alphabet="ab.-_/", max_size=5)), max_size=6)
)
def test_the_fast_check_is_the_plain_one(names):
    def refused(check) -> bool:
        try:
            check()
        except CorpusError:
            return True
        return False

    encoded = [name.encode() for name in names]
    offsets = np.cumsum([0, *map(len, encoded)]).astype("<u8")
    blob = np.frombuffer(b"".join(encoded), np.uint8)
    assert refused(lambda: check_names(names, "x")) == refused(
        lambda: check_packed_names(blob, offsets, "x")
    )
