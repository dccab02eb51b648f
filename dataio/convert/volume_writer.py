"""One volume and its labels to one folder of the store, and the manifest record that commits it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import Buffer

from mim3d.dataio.chunks.codec import ChunkCodec, shard_metadata
from mim3d.dataio.chunks.pyramid import coarser, n_scales
from mim3d.dataio.chunks.shard_writer import ShardStream
from mim3d.dataio.convert.label import Label
from mim3d.dataio.convert.volume import Volume
from mim3d.dataio.convert.volume_ids import label_facts
from mim3d.dataio.corpus import ome
from mim3d.dataio.corpus.arrays import (
    described_at,
    label_path,
    metadata_sha256,
    separator,
    shard_key,
)
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import ChannelRecord, LabelRecord, ScaleRecord, VolumeRecord
from mim3d.dataio.corpus.ome import pack_points
from mim3d.dataio.geometry import Grid, axis_codes, obliquity_deg
from mim3d.dataio.nifti.file import NiftiFile
from mim3d.dataio.sources.source import Source

Objects = dict[str, Iterable[Buffer]]


class _Shards(NamedTuple):
    """What was written of a volume: its image, its labels, its coarser scales."""

    image: ShardStream
    labels: tuple[LabelRecord, ...]
    scales: tuple[ScaleRecord, ...]


def volume_objects(
    id: str,
    source: Source,
    files: Sequence[NiftiFile],
    volume: Volume,
    labels: Sequence[Label],
    conversion: Conversion,
) -> tuple[Objects, Callable[[], VolumeRecord]]:
    """The objects of a volume's folder (keys relative to it), and what makes its record.

    Shards are encoded while they are written; the record is made when they all were.
    """
    objects: Objects = {}
    shard = _image_objects(objects, id, volume, labels, conversion)
    scales = [
        _array_objects(objects, str(number), voxels, conversion)
        for number, voxels in enumerate(scales_of(volume, conversion), start=1)
    ]
    shards = [_label_objects(objects, label, volume.grid, conversion) for label in labels]
    if labels and conversion.ome_labels:
        objects["labels/zarr.json"] = (ome.labels_group([label.name for label in labels]),)
    _consolidate(objects, volume)

    def record() -> VolumeRecord:
        label_records = tuple(
            _label_record(label, each, label_facts(source, label.name, values).names)
            for label, each in zip(labels, shards, strict=True)
            for values in [conversion.values_of_label(label.name)]
        )
        notes = (note for label in labels for note in label.notes)
        written = _Shards(shard, label_records, tuple(map(_scale_record, scales)))
        metadata = metadata_sha256(objects)
        return _record(
            *(id, source, files, volume, written, metadata, conversion.layout),
            (*volume.warnings, *notes),
        )

    return objects, record


def _image_objects(
    objects: Objects,
    id: str,
    volume: Volume,
    labels: Sequence[Label],
    conversion: Conversion,
) -> ShardStream:
    values, grid, channels = volume.values, volume.grid, volume.channels
    extra = {"slope": values.slope, "intercept": values.intercept, "affine": grid.nested_affine}
    halvings = n_scales(grid.shape) if conversion.pyramid else 0
    beside = {} if conversion.ome_labels else _paths_of(labels, conversion)
    objects["zarr.json"] = (ome.image_group(id, grid, channels, extra, beside, halvings),)
    return _array_objects(objects, "0", values.voxels, conversion)


def _paths_of(labels: Sequence[Label], conversion: Conversion) -> dict[str, str]:
    return {label.name: label_path(label.name, conversion.layout) for label in labels}


def _consolidate(objects: Objects, volume: Volume) -> None:
    """Repeat the metadata of all that is in the group in its own zarr.json, with the NIfTI header
    as an array there alone."""
    values, grid = volume.values, volume.grid
    header = ome.nifti_header(
        *(grid, volume.channels, values.voxels.dtype.name),
        *(values.slope, values.intercept, volume.affine_code),
    )
    inside = {
        key.removesuffix("/zarr.json"): b"".join(map(bytes, parts))
        for key, parts in objects.items()
        if key.endswith("/zarr.json")
    }
    group = b"".join(map(bytes, objects["zarr.json"]))
    objects["zarr.json"] = (ome.consolidated(group, inside, header),)


def _label_objects(
    objects: Objects, label: Label, grid: Grid, conversion: Conversion
) -> ShardStream:
    path, classes = label_path(label.name, conversion.layout), sorted(label.classes)
    extra: dict[str, Any] = {"points": pack_points(label.points)}
    if not conversion.ome_labels:
        about = {"mim3d": extra | {"classes": classes}}
        return _array_objects(objects, path, label.voxels, conversion, about)
    objects[described_at(path)] = (ome.label_group(label.name, grid, classes, extra),)
    return _array_objects(objects, path, label.voxels, conversion)


def scales_of(volume: Volume, conversion: Conversion) -> Iterator[np.ndarray]:
    """Coarser scales of a volume, where they are wanted."""
    if conversion.pyramid:
        yield from coarser(volume.values.voxels)


def _scale_record(shard: ShardStream) -> ScaleRecord:
    z, y, x = shard.shape[-3:]
    return ScaleRecord((z, y, x), shard.sha256, shard.nbytes)


def _label_record(label: Label, shard: ShardStream, names: Mapping[int, str]) -> LabelRecord:
    return LabelRecord(
        label.name,
        label.voxels.dtype.name,
        dict(sorted(label.classes.items())),
        label.source,
        label.hash,
        shard.sha256,
        shard.nbytes,
        dict(sorted(names.items())),
        label.ignore,
        label.n_ignored,
    )


def _array_objects(
    objects: Objects,
    path: str,
    voxels: np.ndarray,
    conversion: Conversion,
    attributes: dict[str, Any] | None = None,
) -> ShardStream:
    """Metadata and shard of one array."""
    sides = (1,) * (voxels.ndim - 3) + (conversion.chunk,) * 3
    codec = ChunkCodec(conversion.codec, voxels.dtype.name, sides, conversion.shuffle)
    names = ("c", "z", "y", "x")[4 - voxels.ndim :]
    dots = separator(conversion.layout)
    document = shard_metadata(voxels.shape, codec, names, attributes or {}, dots)
    shard = ShardStream(voxels, codec)
    objects[f"{path}/zarr.json"] = (ome.json_bytes(document),)
    objects[shard_key(path, voxels.ndim, conversion.layout)] = shard
    return shard


def channel_names(source: Source, volume: Volume) -> tuple[str, ...]:
    """Names of the volume's channels, where the source names as many (or one for each frame)."""
    names = source.channel_names
    if len(names) == volume.channels:
        return names
    return (names[volume.frame],) if len(names) == volume.n_frames and volume.frame >= 0 else ()


def _record(
    id: str,
    source: Source,
    files: Sequence[NiftiFile],
    volume: Volume,
    written: _Shards,
    metadata: str,
    layout: int,
    warnings: tuple[str, ...],
) -> VolumeRecord:
    header, values, found = files[0].header, volume.values, volume.statistics
    return VolumeRecord(
        id=id,
        sources=source.images,
        source_hash=tuple(file.hash for file in files),
        subject=source.subject or source.id,
        group=source.group,
        split=source.split,
        shape=volume.grid.shape,
        channels=volume.channels,
        dtype=values.voxels.dtype.name,
        slope=values.slope,
        intercept=values.intercept,
        spacing_mm=volume.grid.spacing_mm,
        affine=volume.grid.nested_affine,
        original_orientation=axis_codes(header.affine),
        original_affine=volume.file_grid.nested_affine,
        original_shape=header.shape,
        affine_from=header.affine_from,
        affine_code=header.affine_code,
        obliquity_deg=round(obliquity_deg(header.affine), 4),
        intensity=found.whole,
        foreground=found.foreground,
        foreground_rule=found.rule,
        foreground_threshold=found.threshold,
        foreground_box=volume.box,
        n_nan=values.n_nan,
        n_inf=values.n_inf,
        source_dtype=header.dtype.name,
        cast_max_error=values.max_error,
        labels=written.labels,
        shard_sha256=written.image.sha256,
        shard_bytes=written.image.nbytes,
        metadata_sha256=metadata,
        frame=volume.frame,
        n_frames=volume.n_frames,
        warnings=warnings,
        by_channel=tuple(
            ChannelRecord(each.whole, each.foreground, each.rule, each.threshold, i in volume.lost)
            for i, each in enumerate(volume.measures.by_channel)
        ),
        subject_from=source.subject_from,
        subject_doubt=source.doubt,
        channel_names=channel_names(source, volume),
        n_values=volume.n_values,
        header_doubt=header.doubt,
        layout=layout,
        session=source.session,
        scales=written.scales,
    )
