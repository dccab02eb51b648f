"""What the side lane is making, until the lane of whoever wants it takes it over."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mim3d.dataio.device.lanes import Lanes


@dataclass(frozen=True)
class Staged:
    """Tensors of the side lane, finished where it passes `mark`.

    Given up, they are let go of like any tensor: their memory is used again in the side lane's
    order.
    """

    lanes: Lanes
    tensors: tuple[Tensor, ...]
    mark: Any

    def take(self) -> tuple[Tensor, ...]:
        """The tensors, for use on the current lane from here on."""
        self.lanes.wait(self.mark)
        for tensor in self.tensors:
            self.lanes.hold(tensor)
        return self.tensors


def staged(lanes: Lanes, tensors: Sequence[Tensor]) -> Staged:
    """Tensors that the current lane, the side one, was given to make."""
    return Staged(lanes, tuple(tensors), lanes.record())
