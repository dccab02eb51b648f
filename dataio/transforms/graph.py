"""What the graph of a loader is built from, and which augmentation parameters it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mim3d.dataio.geometry import Triple
from mim3d.dataio.transforms.augment import Augmentation

BOXES = ("resized", "roi_start", "roi_end")
TURNS = ("turn_z", "turn_y", "turn_x", "matrix")
BLURS = ("blurred", "sigma")
CONTRASTS = ("gain", "bias")


@dataclass(frozen=True)
class GraphSpec:
    """What the graph is built from; two equal specs build equal graphs.

    `device_id` None runs on the CPU. With `augmentation.per_view` the graph flips and changes
    intensities; else that was done while reading and only zoom and rotation are left, applied to
    image and label alike. `label_dtype` is a numpy name, or None without labels. With
    `device_input` image and label arrive as tensors on the GPU.
    """

    batch: int
    channels: int
    crop_size: Triple
    views: int
    label_dtype: str | None
    augmentation: Augmentation
    device_id: int | None
    threads: int
    device_input: bool = False

    @property
    def is_direct(self) -> bool:
        """Whether nothing is left to do: no operator, and crops are read where they are wanted.

        Noise and artefacts come with the other changes on a CPU, afterwards by torch on a GPU.
        """
        kind = self.augmentation
        still = not kind.noise and not kind.artefacts.possible
        ready = self.device_input if self.device_id is not None else still
        return ready and not self.parameters

    @property
    def parameters(self) -> tuple[str, ...]:
        """Fields of ViewDraws that the graph takes for every view."""
        kind = self.augmentation
        return (
            *(BOXES[1:] if kind.per_view else BOXES if kind.zoom else ()),
            *(TURNS if kind.rotate else ()),
            *(BLURS if kind.blur else ()),
            *(CONTRASTS if kind.per_view else ()),
        )


Feed = Callable[[int], list[Any]]


class DirectGraph:
    """Hands over what was read, without a copy; DALI would copy every crop once.

    For one view without rotation or zoom, nor noise or artefacts on a CPU, whose flips and
    intensities are part of the reading: on the CPU, or decoded on the GPU, on the stream that is
    current when a batch is taken.
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
