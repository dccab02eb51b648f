"""The graph of a loader that has nothing left to do after reading, on the CPU."""

from typing import Any

import torch

from mim3d.dataio.dali_graph import Feed
from mim3d.dataio.graph_spec import GraphSpec


class DirectGraph:
    """Hands over what was read, without a copy; DALI would copy every crop once.

    For one view without rotation or zoom, whose flips and intensities are part of the reading.
    """

    def __init__(self, spec: GraphSpec, feed: Feed) -> None:
        if spec.parameters or spec.device_id is not None:
            raise ValueError(f"only a graph without operators on the CPU can be direct, not {spec}")
        self.spec, self._feed = spec, feed
        self._iteration = 0

    def run(self) -> list[torch.Tensor]:
        """Outputs of the next iteration: one image per view, then the label if any."""
        image, *label = (_tensor(each) for each in self._feed(self._iteration))
        if image.dtype == torch.uint16:
            image = image.view(torch.bfloat16)
        self._iteration += 1
        return [image] * self.spec.views + label

    def close(self) -> None:
        """Nothing to stop."""


def _tensor(array: Any) -> torch.Tensor:
    return array if isinstance(array, torch.Tensor) else torch.from_numpy(array)
