"""The arrays of a volume and their keys, as its record tells."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from typing_extensions import Buffer

from mim3d.dataio.corpus.manifest import VolumeRecord


@dataclass(frozen=True)
class StoredArray:
    """One array of a volume as its record describes it."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str

    @property
    def shard_key(self) -> str:
        """Key of its one shard."""
        return f"{self.path}/c" + "/0" * len(self.shape)


def stored_arrays(record: VolumeRecord) -> list[StoredArray]:
    """The image and the labels of a record."""
    image = StoredArray(f"{record.id}/0", record.array_shape, record.dtype, record.shard_sha256)
    labels = [
        StoredArray(f"{record.id}/labels/{a.name}/0", record.shape, a.dtype, a.shard_sha256)
        for a in record.labels
    ]
    return [image, *labels]


def is_shard(key: str) -> bool:
    """Whether a key of a volume's folder is that of an array's shard."""
    return key.startswith(("0/c/", "labels/")) and "/0/c/" in f"/{key}"


def metadata_sha256(objects: Mapping[str, Iterable[Buffer]]) -> str:
    """Hash of everything in a volume's folder but the shards, names included."""
    digest = hashlib.sha256()
    for key in sorted(key for key in objects if not is_shard(key)):
        content = b"".join(objects[key])
        digest.update(f"{key}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
