"""What a corpus holds, as figures and as tables for a terminal."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from rich.table import Table

from mim3d.dataio.corpus.manifest import VolumeRecord

MIB = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class ClassShare:
    """One class of one label over the corpus, with the name that the sources gave it."""

    label: str
    cls: int
    n_volumes: int
    n_voxels: int
    name: str = ""


def raw_bytes(record: VolumeRecord) -> int:
    """Bytes of a volume's arrays before compression, labels included."""
    voxels = int(np.prod(record.shape))
    image = voxels * record.channels * np.dtype(record.dtype).itemsize
    return image + sum(voxels * np.dtype(label.dtype).itemsize for label in record.labels)


def stored_bytes(record: VolumeRecord) -> int:
    """Bytes of a volume's shards, labels included."""
    return record.shard_bytes + sum(label.shard_bytes for label in record.labels)


@dataclass(frozen=True)
class Summary:
    """Figures of a corpus; spans are (smallest, median, largest) over volumes, axes z, y, x."""

    n_volumes: int
    n_subjects: int
    n_voxels: int
    raw_bytes: int
    stored_bytes: int
    splits: Mapping[str, int]
    groups: int
    dtypes: Mapping[str, int]
    orientations: Mapping[str, int]
    channels: Mapping[int, int]
    shape_span: Sequence[Sequence[float]]
    spacing_span: Sequence[Sequence[float]]
    intensity_span: tuple[float, float]
    classes: Sequence[ClassShare]
    n_with_warnings: int
    n_lacking: int
    """Volumes with a channel of one value everywhere: a modality that is missing."""
    modalities: Mapping[str, int] = field(default_factory=dict)
    """Volumes by the names of their channels, where the sources told them."""


def summarise(records: Sequence[VolumeRecord]) -> Summary:
    """Add the manifest up; voxels are those of images, bytes include labels."""
    voxels = [int(np.prod(r.array_shape)) for r in records]
    return Summary(
        n_volumes=len(records),
        n_subjects=len({r.subject or r.id for r in records}),
        n_voxels=sum(voxels),
        raw_bytes=sum(raw_bytes(r) for r in records),
        stored_bytes=sum(stored_bytes(r) for r in records),
        splits=occurrences(r.split or "untold" for r in records),
        groups=len({r.group for r in records if r.group}),
        dtypes=occurrences(r.dtype for r in records),
        orientations=occurrences(r.original_orientation for r in records),
        channels=occurrences(r.channels for r in records),
        shape_span=spans([r.shape for r in records]),
        spacing_span=spans([r.spacing_mm for r in records]),
        intensity_span=(
            min((r.intensity.minimum for r in records), default=0.0),
            max((r.intensity.maximum for r in records), default=0.0),
        ),
        classes=class_shares(records),
        n_with_warnings=sum(bool(r.warnings) for r in records),
        modalities=occurrences(", ".join(r.channel_names) for r in records if r.channel_names),
        n_lacking=sum(r.channels > 1 and bool(r.constant_channels) for r in records),
    )


def occurrences(items: Iterable[T]) -> dict[T, int]:
    """Occurrences of each item, most frequent first."""
    return dict(Counter(items).most_common())


def spans(rows: Sequence[Sequence[float]]) -> list[tuple[float, float, float]]:
    """(smallest, median, largest) of each column."""
    if not rows:
        return []
    table = np.asarray(rows, float)
    low, middle, high = table.min(axis=0), np.median(table, axis=0), table.max(axis=0)
    return [(float(a), float(b), float(c)) for a, b, c in zip(low, middle, high, strict=True)]


def class_shares(records: Sequence[VolumeRecord]) -> list[ClassShare]:
    """Every class of every label but the background, by label name and class."""
    volumes: Counter[tuple[str, int]] = Counter()
    voxels: Counter[tuple[str, int]] = Counter()
    names: dict[tuple[str, int], str] = {}
    for record in records:
        for label in record.labels:
            names |= {(label.name, cls): name for cls, name in label.class_names.items()}
            for cls, count in label.classes.items():
                if cls != 0 and count:
                    volumes[label.name, cls] += 1
                    voxels[label.name, cls] += count
    return [
        ClassShare(*key, volumes[key], voxels[key], names.get(key, "")) for key in sorted(volumes)
    ]


def summary_table(summary: Summary, quarantined: Mapping[str, int]) -> Table:
    """The corpus in a dozen rows."""
    table = Table(title="corpus", show_header=False, title_justify="left")
    rows = {
        "volumes": f"{summary.n_volumes} of {summary.n_subjects} subjects",
        "voxels": f"{summary.n_voxels / 1e6:,.1f} million",
        "size": f"{summary.stored_bytes / MIB:,.1f} MiB stored, {size_in_words(summary)}",
        "shape z, y, x": ", ".join(span(s, ".0f") for s in summary.shape_span),
        "spacing z, y, x": ", ".join(span(s, ".3g") for s in summary.spacing_span) + " mm",
        "intensity": "{:.4g} to {:.4g}".format(*summary.intensity_span),
        "dtype": counts_in_words(summary.dtypes),
        "channels": counts_in_words(summary.channels)
        + (f"; {summary.n_lacking} volumes lack one" if summary.n_lacking else ""),
        "modalities": counts_in_words(summary.modalities) if summary.modalities else "untold",
        "stored from": counts_in_words(summary.orientations),
        "splits": counts_in_words(summary.splits),
        "warnings": f"{summary.n_with_warnings} volumes" if summary.n_with_warnings else "none",
        "quarantined": counts_in_words(quarantined) if quarantined else "none",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def size_in_words(summary: Summary) -> str:
    """`1.90x smaller than raw`, `1.05x larger than raw`."""
    small, large = sorted((summary.stored_bytes, summary.raw_bytes))
    ratio = f"{large / max(small, 1):.2f}x"
    if ratio == "1.00x":
        return "as large as raw"
    return f"{ratio} {'smaller' if small == summary.stored_bytes else 'larger'} than raw"


def class_table(summary: Summary, limit: int) -> Table:
    """Classes: in how many volumes, and what share of all voxels; at most `limit` of them."""
    left_off = len(summary.classes) - limit
    more = f" (first {limit} of {len(summary.classes)})" if left_off > 0 else ""
    table = Table(title=f"labelled classes{more}", title_justify="left")
    for column in ("label", "class", "name", "volumes", "voxels", "share of the corpus"):
        table.add_column(column, justify="left" if column in ("label", "name") else "right")
    for c in summary.classes[:limit]:
        share = 100.0 * c.n_voxels / max(summary.n_voxels, 1)
        voxels = f"{c.n_voxels:,}"
        row = (c.label, str(c.cls), c.name, str(c.n_volumes), voxels, f"{share:.3g} %")
        table.add_row(*row)
    return table


def volume_table(records: Sequence[VolumeRecord], limit: int) -> Table:
    """One row per volume, at most `limit`."""
    shown = records[:limit]
    title = f"volumes (first {len(shown)} of {len(records)})" if len(shown) < len(records) else ""
    table = Table(title=title or "volumes", title_justify="left")
    whole = ("id", "subject")  # which `remove` asks for
    for column in (*whole, "shape", "mm", "dtype", "from", "0.5 % .. 99.5 %", "classes", "MiB"):
        justify = "right" if column == "MiB" else "left"
        table.add_column(
            column, justify=justify, overflow="fold" if column in whole else "ellipsis"
        )
    for r in shown:
        classes = {c for label in r.labels for c, n in label.classes.items() if c and n}
        names = ", ".join(map(str, sorted(classes)[:6])) + (" ..." if len(classes) > 6 else "")
        table.add_row(
            r.id,
            r.subject,
            "x".join(map(str, r.array_shape)),
            "x".join(f"{mm:.3g}" for mm in r.spacing_mm),
            r.dtype,
            r.original_orientation,
            f"{r.intensity.p005:.4g} .. {r.intensity.p995:.4g}",
            names or "-",
            f"{stored_bytes(r) / MIB:.2f}",
        )
    return table


def span(values: Sequence[float], form: str) -> str:
    """`32` where all agree, else `32..44..48` (smallest, median, largest)."""
    low, middle, high = (format(v, form) for v in values)
    return low if low == high else f"{low}..{middle}..{high}"


def counts_in_words(counts: Mapping, most: int = 8) -> str:
    """`int16 40, uint8 20`, with an ellipsis after `most`."""
    parts = [f"{key} {n}" for key, n in list(counts.items())[:most]]
    return ", ".join(parts) + (", ..." if len(counts) > most else "")
