"""Whether volumes can be kept on the device: one batched decoding needs them alike."""

import warnings
from dataclasses import replace

import numpy as np

from mim3d.dataio.corpus.chunk_table import ChunkTable, label_arrays
from mim3d.dataio.errors import CorpusWarning
from mim3d.dataio.loader.config import LoaderConfig


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


def fitting_cache(config: LoaderConfig, table: ChunkTable, volumes: np.ndarray) -> LoaderConfig:
    """The configuration, with the host's cache where the device's cannot take what was chosen.

    Which crops are drawn does not hang on it, so only speed changes; a CorpusWarning says so.
    """
    if config.cache != "device":
        return config
    differing = unlike(table, volumes, config.label)
    if not differing:
        return config
    warnings.warn(
        f"{table.root}: {differing}: cache='device' needs all alike, so chunks are kept on the "
        "host (`mim3d convert` with one --dtype, into a new folder, makes them alike)",
        CorpusWarning,
        stacklevel=3,
    )
    return replace(config, cache="host")
