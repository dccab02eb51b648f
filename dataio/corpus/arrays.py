"""The arrays of a volume, every object of its folder, and whether these are what was written.

Layout 1 has a shard five folders deep, ID/0/c/0/0/0, and the NIfTI header as an array of its own
beside: 12 files and folders a volume, 22 with a label. Layout 2 parts chunk keys by dots, as in
ID/0/c.0.0.0, and keeps the header in the group's zarr.json: 5, and 7 more with a label, which is
the least where OME-Zarr finds it, at labels/NAME. Layout 3 has it beside the image, at
ID/labels.NAME, as a further multiscale image of the same group: 3 for each label. A corpus may
hold all of them: a record tells its own.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from typing_extensions import Buffer

from mim3d.dataio.chunks.shard_writer import checked_digest, chunk_index, n_chunks
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.storage.store import Store

INDEX_ENTRY, INDEX_CRC = 16, 4  # bytes of a shard's index: an entry per chunk, its checksum
WITH_OME_LABELS, NEWEST = 2, 3
SHARD = re.compile(r"((labels/[^/]+/)?[0-9]+|labels\.[^/]+)/c[./][0-9./]+")
FILES_OF_A_CORPUS = 6
"""At the root, with itself."""
FILES_OF_A_SCALE = 3
FILES = {WITH_OME_LABELS: (5, 2, 5), NEWEST: (5, 0, 3)}
"""Files and folders of a volume, of all its labels, and of each."""


def shard_key(path: str, n_axes: int, layout: int) -> str:
    """Key of the one shard of an array at `path`."""
    if layout == 1:
        return f"{path}/c" + "/0" * n_axes
    return f"{path}/c" + ".0" * n_axes


def label_path(name: str, layout: int) -> str:
    """Path of a label's array within its volume."""
    return f"labels.{name}" if layout >= NEWEST else f"labels/{name}/0"


def described_at(path: str) -> str:
    """Key of the zarr.json that has the points of a label's array: its OME group's, or its own."""
    return f"{path.removesuffix('/0')}/zarr.json"


def separator(layout: int) -> str:
    """What parts the numbers of a chunk's key, as zarr.json says."""
    return "/" if layout == 1 else "."


def is_shard(key: str) -> bool:
    """Whether a key of a volume's folder is that of an array's shard."""
    return SHARD.fullmatch(key) is not None


def header_keys(layout: int) -> list[str]:
    """Objects of the NIfTI header, where it has its own."""
    return ["nifti/zarr.json", "nifti/c/0"] if layout == 1 else []


def n_files(n_labels: int, layout: int, n_scales: int = 0) -> int:
    """Files and folders of a new volume with so many coarser scales."""
    volume, labels, label = FILES[layout]
    return volume + FILES_OF_A_SCALE * n_scales + (labels + label * n_labels if n_labels else 0)


@dataclass(frozen=True)
class ArrayRecord:
    """One array of a volume as its record describes it."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str
    nbytes: int
    layout: int

    @property
    def shard_key(self) -> str:
        """Key of its one shard."""
        return shard_key(self.path, len(self.shape), self.layout)

    def sides(self, chunk: int) -> tuple[int, ...]:
        """Shape of its inner chunks, `chunk` being their side."""
        return (1,) * (len(self.shape) - 3) + (chunk,) * 3

    def n_chunks(self, chunk: int) -> int:
        """Inner chunks in all."""
        return n_chunks(self.shape, self.sides(chunk))


def stored_arrays(record: VolumeRecord) -> list[ArrayRecord]:
    """The image, the labels and the coarser scales of a record."""
    image = ArrayRecord(
        f"{record.id}/0",
        record.array_shape,
        record.dtype,
        record.shard_sha256,
        record.shard_bytes,
        record.layout,
    )
    labels = [
        ArrayRecord(
            f"{record.id}/{label_path(a.name, record.layout)}",
            *(record.shape, a.dtype, a.shard_sha256, a.shard_bytes, record.layout),
        )
        for a in record.labels
    ]
    scales = [
        ArrayRecord(
            *(f"{record.id}/{number}", (*record.array_shape[:-3], *scale.shape), record.dtype),
            *(scale.shard_sha256, scale.shard_bytes, record.layout),
        )
        for number, scale in enumerate(record.scales, start=1)
    ]
    return [image, *labels, *scales]


def expected_keys(record: VolumeRecord) -> list[str]:
    """Every object of a volume's folder, relative to it."""
    arrays = [array.path.removeprefix(f"{record.id}/") for array in stored_arrays(record)]
    shards = [array.shard_key.removeprefix(f"{record.id}/") for array in stored_arrays(record)]
    keys = ["zarr.json", *header_keys(record.layout), *shards]
    keys += [f"{path}/zarr.json" for path in arrays]
    if record.labels and record.layout < NEWEST:
        keys += ["labels/zarr.json", *(f"labels/{a.name}/zarr.json" for a in record.labels)]
    return keys


def metadata_sha256(objects: Mapping[str, Iterable[Buffer]]) -> str:
    """Hash of everything in a volume's folder but the shards, names included."""
    digest = hashlib.sha256()
    for key in sorted(key for key in objects if not is_shard(key)):
        content = b"".join(objects[key])
        digest.update(f"{key}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def missized(record: VolumeRecord, sizes: Mapping[str, int]) -> str:
    """What a listing (key -> bytes) shows to be wrong with a volume; empty where nothing is."""
    shards = {array.shard_key: array.nbytes for array in stored_arrays(record)}
    for key in (f"{record.id}/{name}" for name in expected_keys(record)):
        if key not in sizes:
            return f"{key} is missing"
        if sizes[key] != shards.get(key, sizes[key]):
            return f"{key} has {sizes[key]} bytes, {shards[key]} were written"
    return ""


def damage(store: Store, record: VolumeRecord, chunk: int, *, thorough: bool = False) -> str:
    """What is wrong with a volume's folder; empty where nothing is found.

    Looked at are presence and sizes of its objects, the hash of its metadata and the shards'
    indexes; chunks only where this is to be `thorough`, as that reads everything.
    """
    if wrong := missized(record, store.sizes(record.id)):
        return wrong
    keys = [key for key in expected_keys(record) if not is_shard(key)]
    if metadata_sha256({key: [store.get(f"{record.id}/{key}")] for key in keys}) != (
        record.metadata_sha256
    ):
        return f"{record.id}: its zarr.json files or NIfTI header are not what was written"
    for array in stored_arrays(record):
        count = array.n_chunks(chunk)
        try:
            if not thorough:
                tail = store.tail(array.shard_key, count * INDEX_ENTRY + INDEX_CRC)
                if not follow_each_other(chunk_index(tail, count), array.nbytes):
                    return f"{array.shard_key}: its chunks do not follow each other"
            elif checked_digest(store.get(array.shard_key), count) != array.sha256:
                return f"{array.shard_key}: its content is not what was written"
        except ValueError as error:
            return f"{array.shard_key}: {error}"
    return ""


def has_nothing_else(store: Store, folder: str, record: VolumeRecord, chunk: int) -> bool:
    """Whether every shard of a volume's folder is one of the record's, or is damaged; of a record
    that is foreseen, without hashes, whether it has a shard of that name."""
    arrays = {array.shard_key: array for array in stored_arrays(replace(record, id=folder))}
    for key in filter(lambda key: is_shard(key.removeprefix(f"{folder}/")), store.sizes(folder)):
        if key not in arrays:
            return False
        array = arrays[key]
        try:
            shape = tuple(json.loads(store.get(f"{array.path}/zarr.json"))["shape"])
        except (OSError, ValueError, KeyError, TypeError):
            shape = array.shape
        try:
            count = n_chunks(shape, array.sides(chunk))
            digest = checked_digest(store.get(key), count)
        except (ValueError, TypeError):
            continue
        if array.sha256 and digest not in ("", array.sha256):
            return False
    return True


def follow_each_other(index: np.ndarray, nbytes: int) -> bool:
    """Whether the chunks of an index (n, 2) lie one behind the other in a shard of `nbytes`."""
    offsets, sizes = index.astype(np.int64).T
    begins = np.cumsum(sizes) - sizes
    stored = sizes > 0
    ends = int(sizes.sum()) + len(index) * INDEX_ENTRY + INDEX_CRC
    return bool((offsets[stored] == begins[stored]).all()) and ends == nbytes
