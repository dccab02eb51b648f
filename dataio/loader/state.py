"""Where a loader is, as a few integers, and whether such a state belongs to this loader."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import google_crc32c
import numpy as np

from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.loader.config import LoaderConfig

STATE_FORMAT = 1


@dataclass(frozen=True)
class RunOrder:
    """What decides which sample comes when; a state may only go to a loader of the same.

    `order` stands for all that is no small number: the volumes by id, their weighting and, where
    nodes have splits, the rotation and the global batch these are cut from.
    """

    seed: int
    volumes: int
    nodes: int
    order: int

    def state(self, sample: int, step: int) -> dict[str, int]:
        """The state of a loader whose next batch begins at the global index `sample`."""
        return {"format": STATE_FORMAT, "sample": sample, "step": step, **vars(self)}

    def place(self, state: Mapping[str, int]) -> tuple[int, int]:
        """Sample and step of a state; Mim3dError where it is none, or of another run."""
        given = self._numbers(state)
        for name, mine in self.state(0, 0).items():
            if name in ("sample", "step") or given[name] == mine:
                continue
            if name == "order":
                raise Mim3dError(
                    f"the loader's state is of another order of samples (order={given[name]}, this "
                    f"loader {mine}): resume with the subjects, label, weighting and nodes of the "
                    "run (and its shares), and with nodes its node_rotation and global batch"
                )
            raise Mim3dError(
                f"the loader's state has {name}={given[name]}, this loader {mine}: "
                "resume with the corpus, subjects and seed of the run"
            )
        if given["sample"] < 0 or given["step"] < 0:
            raise Mim3dError(
                f"the loader's state has sample={given['sample']} and step={given['step']}: "
                "neither can be negative; it is damaged"
            )
        return given["sample"], given["step"]

    def _numbers(self, state: Mapping[str, int]) -> dict[str, int]:
        given: dict[str, int] = {}
        for name in self.state(0, 0):
            try:
                # States saved before there were nodes, or an order.
                given[name] = operator.index({"nodes": 1, "order": self.order, **state}[name])
            except (KeyError, TypeError):
                raise Mim3dError(
                    f"this is no state of a loader: it has no whole number {name!r}; give what "
                    "`state_dict()` returned"
                ) from None
        return given


def run_order(table: ChunkTable, config: LoaderConfig, volumes: np.ndarray, world: int) -> RunOrder:
    """The order of a run over `volumes` (ascending table rows) by `world` ranks."""
    parts = [config.weighting]
    parts += [f"shares {' '.join(config.shares)}"] if config.shares else []
    if config.nodes > 1:
        parts += [f"{config.node_rotation!r}", f"{world * config.micro_batch}"]
    chosen = np.zeros(table.n_volumes, bool)
    chosen[volumes] = True
    lengths = np.diff(np.asarray(table.ids.offsets).astype("<i8"))
    ids = np.asarray(table.ids.blob)[np.repeat(chosen, lengths)]
    crc = google_crc32c.value(" ".join(parts).encode())
    for part in (lengths[chosen], ids):
        crc = google_crc32c.extend(crc, part.tobytes())
    return RunOrder(int(config.seed), len(volumes), int(config.nodes), crc)
