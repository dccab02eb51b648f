"""What training asks of a model: a loss for a batch; baselines and pictures where it has them."""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from mim3d.dataio.loader.batch import Batch


def channel_name(name: str, channel: int) -> str:
    """Name of a figure that is of one channel of several."""
    return f"{name}_channel_{channel}"


class StepOutput(NamedTuple):
    """Loss of a micro-batch and what else was measured, all as 0-d tensors on the device.

    `loss` is this rank's part of the global mean: the sum over micro-batches and ranks is the
    loss of the global batch, so gradients are summed across ranks and never averaged.
    A tuple: FSDP finds the tensors in it.

    `counted` is for a loss that not all it could be of counts in (None: all of it does): this
    rank's part of the share that does. The loss is then the sum over what counts divided by the
    number of all, and so are the metrics; the mean over what counts is the sum of `loss` over that
    of `counted`, which no rank knows before all have drawn their crops. The step divides by it.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    counted: Tensor | None = None


class Objective(nn.Module, ABC):
    """What is trained: a pretext method, or a downstream task around its network."""

    @abstractmethod
    def forward(self, batch: Batch, share: float = 1.0, measure: bool = False) -> StepOutput:
        """Loss of a micro-batch, which is `share` of the global batch.

        `measure` adds what is compared with the loss, such as baselines.
        """

    def encoder_tokens(self, crops: Tensor) -> Tensor:
        """What the encoder makes of crops (b, c, z, y, x), with nothing hidden: (b, n, width)."""
        return self.get_submodule("encoder")(crops)


@runtime_checkable
class HasBaselines(Protocol):
    """A method that can tell what predictors without knowledge come to."""

    def baselines(self, batch: Batch) -> dict[str, Tensor]:
        """Their losses on a batch, 0-d on the device; divided as a StepOutput's metrics are."""
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """A method that can paint what was hidden from it."""

    def reconstruct(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Crops with hidden patches emptied and painted: two (b, c, z, y, x) float32 volumes."""
        ...
