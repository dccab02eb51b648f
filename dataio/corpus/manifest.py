"""manifest.jsonl: one checksummed line per committed volume, the truth of what a corpus holds."""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c

from mim3d.dataio.corpus.names import MANIFEST, check_names, own_file
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.geometry import Affine, Triple

CRC_KEY = "crc32c"
GONE_KEY = "gone"


@dataclass(frozen=True)
class Intensity:
    """Statistics of finite real values, `slope * stored + intercept`; p005 is the 0.5th percentile.

    Minimum and maximum of a volume are over all its finite voxels; everything else, and all of the
    foreground, over a fixed lattice of at most 2^17 of them (so over all, in smaller volumes).
    `clipped_mean` and `clipped_std` are of the same voxels clipped to p005 .. p995, which no few
    extreme ones can move; None in corpora made before they were kept.
    """

    minimum: float
    maximum: float
    mean: float
    std: float
    p005: float
    p995: float
    clipped_mean: float | None = None
    clipped_std: float | None = None


@dataclass(frozen=True)
class ChannelRecord:
    """Statistics of one channel; fields as the volume's own, foreground by its own threshold."""

    intensity: Intensity
    foreground: Intensity
    foreground_rule: str
    foreground_threshold: float
    is_lost: bool = False
    """One value everywhere since it was stored as integers of one scale for all channels."""

    @property
    def is_constant(self) -> bool:
        """Whether it has one value everywhere, as a modality that is missing has."""
        return self.intensity.minimum == self.intensity.maximum


IGNORED = 255
MASK_OF_255 = "a mask of 0 and 255, which is stored as class 1"
"""What a volume's warnings say of a label in which 255 was taken for a class."""


@dataclass(frozen=True)
class LabelRecord:
    """One label array of a volume; `classes` maps class to voxel count, background included.

    `class_names` are the source's. Voxels of `ignore` are in no class, `n_ignored` of them.

    `shard_sha256` is the SHA-256 of the shard's checksums (`shard_writer.shard_digest`).
    """

    name: str
    dtype: str
    classes: dict[int, int]
    source: str
    source_hash: str
    shard_sha256: str
    shard_bytes: int
    class_names: dict[int, str] = field(default_factory=dict)
    ignore: int | None = None
    n_ignored: int = 0


@dataclass(frozen=True)
class ScaleRecord:
    """A coarser scale of an image: shape (z, y, x), and its shard as an image's own."""

    shape: Triple
    shard_sha256: str
    shard_bytes: int


@dataclass(frozen=True)
class VolumeRecord:
    """One committed volume.

    `shape` and `spacing_mm` are in array order (z, y, x); with `channels` > 1 the array is
    (c, z, y, x). `affine` maps the voxel index (x, y, z, 1) of the stored array to world mm (NIfTI
    order); `original_affine` and `original_shape` (x, y, z) are the source's before reorientation.
    Foreground is the voxels above `foreground_threshold`, a real value, by `foreground_rule`; its
    box is ((z0, y0, x0), (z1, y1, x1)), end exclusive. `frame` is the time index of a volume split
    from a 4D source of `n_frames`, or -1. `cast_max_error` is the largest change of a real value
    by a recorded change of dtype from `source_dtype`. `source_hash` are of the files as they are
    (XXH3, 128 bits, after "xxh3:"); `shard_sha256` is of the shard's checksums
    (`shard_writer.shard_digest`). Of several channels, `intensity`, `foreground` and its threshold
    are over all of them together, for a table at a glance; `by_channel` has those of each, and the
    box is around the foreground of any. With one channel, `by_channel` is empty.
    `subject_from` is the rule that named the subject ("told" where a person, a table or a layout
    states it) and `subject_doubt` why it may be wrong; `channel_names` are the source's. `n_values`
    is how many values an image of few integers holds (a label map among images?), else 0.
    `header_doubt` says what of the source's header disagrees. `layout` is how the folder is laid
    out (`corpus.arrays`), 1 in corpora made before there was another. `session` is when it was
    taken, where the source tells; `scales` are the coarser ones, for viewers, each half the one
    before.
    """

    id: str
    sources: tuple[str, ...]
    source_hash: tuple[str, ...]
    subject: str
    group: str
    split: str
    shape: Triple
    channels: int
    dtype: str
    slope: float
    intercept: float
    spacing_mm: tuple[float, float, float]
    affine: Affine
    original_orientation: str
    original_affine: Affine
    original_shape: Triple
    affine_from: str
    affine_code: int
    obliquity_deg: float
    intensity: Intensity
    foreground: Intensity
    foreground_rule: str
    foreground_threshold: float
    foreground_box: tuple[Triple, Triple]
    n_nan: int
    n_inf: int
    source_dtype: str
    cast_max_error: float
    labels: tuple[LabelRecord, ...]
    shard_sha256: str
    shard_bytes: int
    metadata_sha256: str
    frame: int = -1
    n_frames: int = 1
    warnings: tuple[str, ...] = ()
    by_channel: tuple[ChannelRecord, ...] = ()
    subject_from: str = ""
    subject_doubt: str = ""
    channel_names: tuple[str, ...] = ()
    n_values: int = 0
    header_doubt: str = ""
    layout: int = 1
    session: str = ""
    scales: tuple[ScaleRecord, ...] = ()

    @property
    def channel_records(self) -> tuple[ChannelRecord, ...]:
        """One per channel; none where they were not kept, as in older corpora of several."""
        if self.channels > 1:
            return self.by_channel
        return (
            ChannelRecord(
                self.intensity, self.foreground, self.foreground_rule, self.foreground_threshold
            ),
        )

    @property
    def is_pooled(self) -> bool:
        """Whether its channels have one mean and deviation for all, as in older corpora."""
        return not self.channel_records

    @property
    def constant_channels(self) -> list[int]:
        """Channels of one value everywhere, from 0: of several, modalities that are missing."""
        found = enumerate(self.channel_records)
        return [i for i, each in found if each.is_constant and not each.is_lost]

    @property
    def source_files(self) -> tuple[tuple[str, str], ...]:
        """Path and hash of each file that it was made of: images first, then labels."""
        labels = ((label.source, label.source_hash) for label in self.labels)
        return (*zip(self.sources, self.source_hash, strict=True), *labels)

    @property
    def source_paths(self) -> tuple[str, ...]:
        """Their paths."""
        return (*self.sources, *(label.source for label in self.labels))

    @property
    def array_shape(self) -> tuple[int, ...]:
        """Shape of the stored array: (z, y, x), or (c, z, y, x) of several channels."""
        return self.shape if self.channels == 1 else (self.channels, *self.shape)


@dataclass(frozen=True)
class Gone:
    """A line of a manifest that is being written: the volume told of before is no more."""

    id: str


def sealed_line(fields: dict[str, Any]) -> str:
    """JSON of the fields in one line, with the crc32c of that JSON as last key."""
    body = json.dumps(fields, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return f'{body[:-1]},"{CRC_KEY}":"{google_crc32c.value(body.encode()):08x}"}}'


def open_line(line: str, where: str) -> dict[str, Any]:
    """Fields of a sealed line.

    Raises CorpusError naming `where` if the line is not what was written.
    """
    line = line.rstrip("\r\n")
    body, crc = line[: -len(_seal_of("00000000"))] + "}", line[-10:-2]
    intact = (
        line == body[:-1] + _seal_of(crc) and f"{google_crc32c.value(body.encode()):08x}" == crc
    )
    if not intact:
        raise CorpusError(
            f"{where}: this line fails its checksum; run the same `mim3d convert` again, or the "
            "same `mim3d merge` where that made it, which makes anew what the line told of"
        )
    return json.loads(body)


def _seal_of(crc: str) -> str:
    return f',"{CRC_KEY}":"{crc}"}}'


def record_line(record: VolumeRecord) -> str:
    """The manifest's line of a record, without the newline."""
    return sealed_line(_fields(record))


def gone_line(id: str) -> str:
    """The line that takes a volume out, without the newline."""
    return sealed_line({GONE_KEY: id})


def _fields(record: VolumeRecord) -> dict[str, Any]:
    """What asdict gives, without its deep copies, which took a fifth of a small volume's time."""
    fields = dict(vars(record))
    for name in ("intensity", "foreground"):
        fields[name] = vars(fields[name])
    fields["labels"] = [vars(label) for label in record.labels]
    fields["scales"] = [vars(scale) for scale in record.scales]
    fields["by_channel"] = [
        {**vars(each), "intensity": vars(each.intensity), "foreground": vars(each.foreground)}
        for each in record.by_channel
    ]
    return fields


def parse_entry(line: str, where: str = MANIFEST) -> VolumeRecord | Gone:
    """What a manifest's line tells; CorpusError if it fails its checksum, or if the names in it
    could lead out of the corpus."""
    fields = open_line(line, where)
    try:
        entry = Gone(fields[GONE_KEY]) if GONE_KEY in fields else _record(fields)
        labels = () if isinstance(entry, Gone) else entry.labels
        check_names([entry.id, *(label.name for label in labels)], where)
        return entry
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(
            f"{where}: not a volume record of this version ({error}); use the version of mim3d "
            "that wrote the corpus, or convert into a new one"
        ) from error


def _record(fields: dict[str, Any]) -> VolumeRecord:
    for name in ("sources", "source_hash", "shape", "spacing_mm", "original_shape", "warnings"):
        fields[name] = tuple(fields[name])
    fields["channel_names"] = tuple(fields.get("channel_names", ()))
    for name in ("affine", "original_affine", "foreground_box"):
        fields[name] = tuple(map(tuple, fields[name]))
    fields["intensity"] = Intensity(**fields["intensity"])
    fields["foreground"] = Intensity(**fields["foreground"])
    fields["labels"] = tuple(map(_label, fields["labels"]))
    fields["by_channel"] = tuple(map(_channel, fields.get("by_channel", ())))
    scales = fields.get("scales", ())
    fields["scales"] = tuple(
        ScaleRecord(tuple(each.pop("shape")), **each) for each in map(dict, scales)
    )
    return VolumeRecord(**fields)


def _channel(fields: dict[str, Any]) -> ChannelRecord:
    parts = {name: Intensity(**fields.pop(name)) for name in ("intensity", "foreground")}
    return ChannelRecord(**parts, **fields)


def _label(fields: dict[str, Any]) -> LabelRecord:
    classes = {int(number): count for number, count in fields.pop("classes").items()}
    names = {int(number): name for number, name in fields.pop("class_names", {}).items()}
    return LabelRecord(classes=classes, class_names=names, **fields)


def iter_manifest(text: bytes, where: str = MANIFEST) -> Iterator[VolumeRecord | Gone]:
    """What a manifest's lines tell; a last line without newline was never committed."""
    for line, place in _committed_lines(text, where):
        yield parse_entry(line, place)


def _committed_lines(text: bytes, where: str) -> Iterator[tuple[str, str]]:
    """Each whole line, and what errors call it."""
    end = text.rfind(b"\n") + 1
    for number, line in enumerate(text[:end].split(b"\n")[:-1], start=1):
        yield line.decode("utf-8", "replace"), f"{where}, line {number}"


def intact_records(
    text: bytes, where: str = MANIFEST
) -> tuple[list[VolumeRecord], list[CorpusError]]:
    """The records that stand, of the lines that pass their checksums, and what is wrong with each
    other line.

    A last line without newline was never committed and is neither.
    """
    records: list[VolumeRecord | Gone] = []
    damaged: list[CorpusError] = []
    for line, place in _committed_lines(text, where):
        try:
            records.append(parse_entry(line, place))
        except CorpusError as error:
            damaged.append(error)
    return latest(records), damaged


def gone_ids(text: bytes) -> set[str]:
    """Ids that the intact lines of a manifest tell to be no more."""
    found: set[str] = set()
    for line, _ in _committed_lines(text, MANIFEST):
        if f'"{GONE_KEY}":' in line[: len(GONE_KEY) + 4]:
            with suppress(CorpusError):
                found.add(str(open_line(line, MANIFEST)[GONE_KEY]))
    return found


def read_manifest(path: Path) -> list[VolumeRecord]:
    """Records of `manifest.jsonl`, or of the corpus folder that holds it."""
    file = own_file(path, MANIFEST) if path.is_dir() else path
    if not file.is_file():
        raise CorpusError(f"{file}: no such manifest; is this a corpus? (mim3d convert makes one)")
    return latest(iter_manifest(file.read_bytes(), str(file)))


def latest(entries: Iterable[VolumeRecord | Gone]) -> list[VolumeRecord]:
    """One record per id: while a conversion runs, a later line stands for an earlier one, or takes
    it out."""
    found: dict[str, VolumeRecord] = {}
    for entry in entries:
        if isinstance(entry, Gone):
            found.pop(entry.id, None)
        else:
            found[entry.id] = entry
    return list(found.values())


def manifest_bytes(records: Iterable[VolumeRecord]) -> bytes:
    """The finished manifest: sorted by id, so that it does not depend on the order of the work."""
    ordered = sorted(records, key=lambda record: record.id)
    return "".join(record_line(record) + "\n" for record in ordered).encode()
