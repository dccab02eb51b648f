"""A corpus as earlier versions left it: without statistics of each channel or of clipped voxels."""

from dataclasses import replace
from pathlib import Path

from old_tables import write_as_format

from mim3d.dataio.corpus.manifest import VolumeRecord, manifest_bytes, read_manifest
from mim3d.dataio.corpus.names import MANIFEST, own_file


def made_before_channels(root: Path, chunk: int = 16) -> Path:
    """Rewrite manifest and table of a corpus without what has been measured since."""
    records = [without_channels(record) for record in read_manifest(root)]
    text = manifest_bytes(records)
    own_file(root, MANIFEST).write_bytes(text)
    write_as_format(root, 3, chunk)
    return root


def without_channels(record: VolumeRecord) -> VolumeRecord:
    """The record without statistics of channels and of clipped voxels."""
    intensity, foreground = (
        replace(each, clipped_mean=None, clipped_std=None)
        for each in (record.intensity, record.foreground)
    )
    return replace(record, intensity=intensity, foreground=foreground, by_channel=())
