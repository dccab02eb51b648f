"""A corpus as earlier versions left it: without statistics of each channel or of clipped voxels."""

from dataclasses import replace
from pathlib import Path

from mim3d.dataio.corpus.chunk_table import HEAD
from mim3d.dataio.corpus.manifest import MANIFEST, VolumeRecord, manifest_bytes, read_manifest
from mim3d.dataio.corpus.table_writer import table_objects
from mim3d.dataio.storage.store import open_store


def made_before_channels(root: Path, chunk: int = 16) -> Path:
    """Rewrite manifest and table of a corpus without what has been measured since."""
    records = [without_channels(record) for record in read_manifest(root)]
    text = manifest_bytes(records)
    (root / MANIFEST).write_bytes(text)
    (root / HEAD).unlink()
    (root / "chunks.channels.npy").unlink()
    objects = table_objects(open_store(str(root)), records, text, chunk, format=3)
    for name, parts in objects.items():
        (root / name).write_bytes(b"".join(map(bytes, parts)))
    return root


def without_channels(record: VolumeRecord) -> VolumeRecord:
    """The record without statistics of channels and of clipped voxels."""
    intensity, foreground = (
        replace(each, clipped_mean=None, clipped_std=None)
        for each in (record.intensity, record.foreground)
    )
    return replace(record, intensity=intensity, foreground=foreground, by_channel=())
