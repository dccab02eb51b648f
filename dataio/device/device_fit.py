"""Whether volumes can be kept on the device, in what form, and in how much of its memory."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mim3d.dataio.corpus.chunk_table import ChunkTable, label_arrays
from mim3d.dataio.device.holdings import VoxelPlaces, voxel_places
from mim3d.dataio.errors import CorpusWarning, Mim3dError

SHARE = 0.4
"""Of the device's free memory that a cache takes at most: the rest is the model's."""


def unlike(table: ChunkTable, volumes: np.ndarray, labels: Sequence[str] = ()) -> str:
    """In what the chosen volumes (rows of the table) or those of a label differ; empty where
    alike."""
    for name, rows in array_rows(table, volumes, labels).items():
        arrays = np.asarray(table.arrays)[rows]
        kinds = sorted(np.dtype(kind.decode()).name for kind in np.unique(arrays["dtype"]))
        if len(kinds) > 1:
            return f"{name} of {', '.join(kinds)}"
        for field in ("chunk", "channels"):
            found = np.unique(arrays[field].reshape(len(arrays), -1), axis=0)
            if len(found) > 1:
                return f"{name} with {field} {' and '.join(str(each.tolist()) for each in found)}"
    return ""


def makes_alike(differing: str) -> str:
    """What to do about what `unlike` found."""
    if differing.startswith("labels"):  # whose dtype is the smallest that holds their classes
        return "labels of classes 0 to 255 are alike: renumber them and convert anew"
    return "`mim3d convert` with one --dtype, into a new folder, makes them alike"


def array_rows(
    table: ChunkTable, volumes: np.ndarray, labels: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Rows of the table's arrays that chosen volumes have, and those of these labels."""
    groups = {"volumes": np.asarray(table.volumes["image"])[volumes].astype(np.int64)}
    for label in labels:
        rows = np.asarray(label_arrays(table, label))[volumes].astype(np.int64)
        groups[f"labels {label!r}"] = rows[rows >= 0]
    return groups


def stored_dtype(table: ChunkTable, volumes: np.ndarray) -> np.dtype | None:
    """The dtype in which all chosen volumes are stored; None where they differ."""
    rows = array_rows(table, volumes)["volumes"]
    kinds = np.unique(np.asarray(table.arrays)["dtype"][rows])
    return np.dtype(kinds[0].decode()) if len(kinds) == 1 else None


def fitting_cache(
    cache: str, table: ChunkTable, volumes: np.ndarray, labels: Sequence[str] = ()
) -> str:
    """The cache asked for, or the host's where the device's cannot take what was chosen.

    Which crops are drawn does not hang on it, so only speed changes; a CorpusWarning says so.
    """
    differing = unlike(table, volumes, labels) if cache == "device" else ""
    if not differing:
        return cache
    warnings.warn(
        f"{table.root}: {differing}: cache='device' needs all alike, so chunks are kept on the "
        f"host ({makes_alike(differing)})",
        CorpusWarning,
        stacklevel=3,
    )
    return "host"


@dataclass(frozen=True)
class DeviceRoom:
    """How much of the device's memory a cache may take: its budget, or less where less is free."""

    budget: int
    free: int | None = None
    """Bytes that nobody has; None where that is no limit."""

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.budget if self.free is None else min(self.budget, int(SHARE * self.free))

    def text(self) -> str:
        """Where the figure comes from."""
        if self.free is None or self.budget <= SHARE * self.free:
            return f"cache_bytes, {gigabytes(self.budget)}"
        return (
            f"{gigabytes(self.nbytes)}, {SHARE:.0%} of the {gigabytes(self.free)} that are free on "
            f"the device (cache_bytes {gigabytes(self.budget)})"
        )


@dataclass(frozen=True)
class Keeping:
    """What a device keeps: `places` where that is decoded voxels; a line says so, and why."""

    places: VoxelPlaces | None
    line: str


def keeping(
    keeps: str, table: ChunkTable, arrays: np.ndarray, room: DeviceRoom, device: str
) -> Keeping:
    """Choose for arrays (rows of the table's) that will be drawn from.

    Mim3dError where voxels are asked for that do not fit.
    """
    stored = int(np.asarray(table.arrays)["shard_bytes"][np.unique(arrays)].sum())
    places = None
    # Voxels take hardly less than what is stored: whatever is stored in more is not counted.
    if keeps == "voxels" or (keeps == "auto" and stored <= room.nbytes):
        places = voxel_places(table, arrays)
    if places is not None and places.nbytes <= room.nbytes:
        return Keeping(
            places,
            f"{device} keeps decoded voxels, {gigabytes(places.nbytes)} of at most {room.text()} "
            f"(device_keeps='chunks' would keep {gigabytes(stored)} compressed)",
        )
    if keeps == "voxels" and places is not None:
        raise Mim3dError(
            f"device_keeps='voxels' needs {gigabytes(places.nbytes)}, more than {room.text()}: "
            "take device_keeps='chunks', or more memory by cache_bytes or a larger device"
        )
    part = "all" if stored <= room.nbytes else f"{room.nbytes / max(stored, 1):.0%}"
    size = "" if places is None else f"; decoded they are {gigabytes(places.nbytes)}"
    return Keeping(
        None,
        f"{device} keeps compressed chunks, {part} of {gigabytes(stored)}, in at most "
        f"{room.text()}{size}",
    )


def gigabytes(nbytes: int) -> str:
    """For people."""
    return f"{nbytes / 1e9:.3g} GB"
