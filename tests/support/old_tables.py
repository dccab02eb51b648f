"""The chunk table in its older formats, and parts of the one file, for tests."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from mim3d.dataio.corpus.arrays import (
    WITH_OME_LABELS,
    expected_keys,
    is_shard,
    metadata_sha256,
    stored_arrays,
)
from mim3d.dataio.corpus.manifest import VolumeRecord, manifest_bytes, read_manifest
from mim3d.dataio.corpus.names import MANIFEST, OWN, OWN_METADATA, TABLE, own_file, own_folder
from mim3d.dataio.corpus.ome import json_bytes, label_group, labels_group
from mim3d.dataio.corpus.table_file import read_file_head
from mim3d.dataio.corpus.table_rows import ONE_FILE, SECTIONS
from mim3d.dataio.corpus.table_writer import table_objects
from mim3d.dataio.geometry import Grid
from mim3d.dataio.storage.store import open_store


def write_as_format(root: Path, format: int, chunk: int) -> None:
    """Put the table and the folders of a corpus as older versions wrote them in the place of its
    own."""
    write_as_layout_1(root)
    lay_flat(root)
    manifest = own_file(root, MANIFEST).read_bytes()
    store = open_store(str(root))
    for name, parts in table_objects(store, read_manifest(root), manifest, chunk, format).items():
        (root / name).write_bytes(b"".join(map(bytes, parts)))
    if format < ONE_FILE:
        own_file(root, TABLE).unlink()


def lay_flat(root: Path) -> None:
    """Put the corpus' own files into its root, as before format 3."""
    if own_folder(root) == root:
        return
    (root / OWN_METADATA).unlink()
    for file in (root / OWN).iterdir():
        file.rename(root / file.name)
    (root / OWN).rmdir()


def write_as_layout_1(root: Path) -> None:
    """Lay the folders of all volumes out as they were before chunk keys were parted by dots."""
    records = [as_layout_1(root, record) for record in read_manifest(root)]
    own_file(root, MANIFEST).write_bytes(manifest_bytes(records))


def as_layout_1(root: Path, record: VolumeRecord) -> VolumeRecord:
    """Move the shards of a volume, and put its NIfTI header into files; the record that says so."""
    record = with_ome_labels(root, record)
    older = replace(record, layout=1)
    for now, then in zip(stored_arrays(record), stored_arrays(older), strict=True):
        document = json.loads((root / now.path / "zarr.json").read_bytes())
        document["chunk_key_encoding"]["configuration"]["separator"] = "/"
        (root / now.path / "zarr.json").write_bytes(json_bytes(document))
        (root / then.shard_key).parent.mkdir(parents=True)
        (root / now.shard_key).rename(root / then.shard_key)
    group = json.loads((root / record.id / "zarr.json").read_bytes())
    nifti = group.pop("consolidated_metadata")["metadata"]["nifti"]
    header = base64.b64decode(nifti["fill_value"])
    nifti |= {"shape": [len(header)], "data_type": "uint8", "fill_value": 0}
    nifti["chunk_grid"]["configuration"]["chunk_shape"] = [len(header)]
    nifti["chunk_key_encoding"]["configuration"]["separator"] = "/"
    (root / record.id / "zarr.json").write_bytes(json_bytes(group))
    (root / record.id / "nifti/c").mkdir(parents=True)
    (root / record.id / "nifti/zarr.json").write_bytes(json_bytes(nifti))
    (root / record.id / "nifti/c/0").write_bytes(header)
    keys = [key for key in expected_keys(older) if not is_shard(key)]
    objects = {key: [(root / record.id / key).read_bytes()] for key in keys}
    return replace(older, metadata_sha256=metadata_sha256(objects))


def with_ome_labels(root: Path, record: VolumeRecord) -> VolumeRecord:
    """Lay the labels of a volume where OME-Zarr looks for them, as layout 2 has them."""
    older, folder = replace(record, layout=WITH_OME_LABELS), root / record.id
    grid = Grid(record.shape, np.array(record.affine))
    pairs = zip(stored_arrays(record)[1:], stored_arrays(older)[1:], strict=True)
    for label, (now, then) in zip(record.labels, pairs, strict=True):
        if now.path == then.path:
            continue
        (root / then.path).parent.mkdir(parents=True)
        (root / now.path).rename(root / then.path)
        document = json.loads((root / then.path / "zarr.json").read_bytes())
        extra = {"points": document["attributes"].pop("mim3d")["points"]}
        (root / then.path / "zarr.json").write_bytes(json_bytes(document))
        about = label_group(label.name, grid, sorted(label.classes), extra)
        (folder / "labels" / label.name / "zarr.json").write_bytes(about)
    group = json.loads((folder / "zarr.json").read_bytes())
    del group["attributes"]["ome"]["multiscales"][1:]
    (folder / "zarr.json").write_bytes(json_bytes(group))
    if record.labels:
        names = labels_group([label.name for label in record.labels])
        (folder / "labels/zarr.json").write_bytes(names)
    return older


def section(root: Path, name: str) -> tuple[int, int]:
    """Offset and bytes of an array within the one file; `head` is all before the arrays."""
    sections = read_file_head(own_file(root, TABLE))["sections"]
    if name == "head":
        return 0, min(each["offset"] for each in sections.values())
    return sections[name]["offset"], sections[name]["nbytes"]


def rewrite_section(root: Path, name: str, array: np.ndarray) -> None:
    """Put other values into the one file, under the checksum of those that stood there."""
    begin, nbytes = section(root, name)
    content = bytearray(own_file(root, TABLE).read_bytes())
    content[begin : begin + nbytes] = array.tobytes()
    own_file(root, TABLE).write_bytes(content)


def read_section(root: Path, name: str) -> np.ndarray:
    """The values of one array of the file, as the head says of which dtype."""
    begin, nbytes = section(root, name)
    descr = read_file_head(own_file(root, TABLE))["sections"][name]["dtype"]
    (dtype,) = [d for d in SECTIONS[name] if len(SECTIONS[name]) == 1 or d.str == descr]
    return np.frombuffer(own_file(root, TABLE).read_bytes()[begin : begin + nbytes], dtype).copy()
