"""Whether volumes can be kept on the device: one batched decoding needs them alike."""

import warnings

import numpy as np

from mim3d.dataio.corpus.chunk_table import ChunkTable, label_arrays
from mim3d.dataio.errors import CorpusWarning


def unlike(table: ChunkTable, volumes: np.ndarray, label: str | None = None) -> str:
    """In what the chosen volumes (rows of the table) or their labels differ; empty where alike."""
    images = np.asarray(table.volumes["image"])[volumes].astype(np.int64)
    groups = {"volumes": images}
    if label is not None:
        groups["labels"] = np.asarray(label_arrays(table, label))[volumes].astype(np.int64)
    for name, rows in groups.items():
        arrays = np.asarray(table.arrays)[rows]
        kinds = sorted({str(kind.decode()) for kind in arrays["dtype"]})
        if len(kinds) > 1:
            return f"{name} of {', '.join(kinds)}"
        for field in ("chunk", "channels"):
            found = np.unique(arrays[field].reshape(len(arrays), -1), axis=0)
            if len(found) > 1:
                return f"{name} with {field} {' and '.join(str(each.tolist()) for each in found)}"
    return ""


def fitting_cache(
    cache: str, table: ChunkTable, volumes: np.ndarray, label: str | None = None
) -> str:
    """The cache asked for, or the host's where the device's cannot take what was chosen.

    Which crops are drawn does not hang on it, so only speed changes; a CorpusWarning says so.
    """
    differing = unlike(table, volumes, label) if cache == "device" else ""
    if not differing:
        return cache
    warnings.warn(
        f"{table.root}: {differing}: cache='device' needs all alike, so chunks are kept on the "
        "host (`mim3d convert` with one --dtype, into a new folder, makes them alike)",
        CorpusWarning,
        stacklevel=3,
    )
    return "host"
