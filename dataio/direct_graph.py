"""The graph of a loader that has nothing left to do once crops are where they are wanted."""

from collections.abc import Callable
from typing import Any

import torch

from mim3d.dataio.graph_spec import GraphSpec

Feed = Callable[[int], list[Any]]


class DirectGraph:
    """Hands over what was read, without a copy; DALI would copy every crop once.

    For one view without rotation or zoom, whose flips and intensities are part of the reading: on
    the CPU, or decoded on the GPU, on the stream that is current when a batch is taken.
    """

    def __init__(self, spec: GraphSpec, feed: Feed) -> None:
        if not spec.is_direct:
            raise ValueError(
                f"a graph is direct without operators where crops need not move, not {spec}"
            )
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
