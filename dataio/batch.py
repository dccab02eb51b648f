"""What the loader hands over: tensors of one step, on the device, with where they came from."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Batch:
    """One rank's crops of one step.

    `image` (b, c, z, y, x) in the loader's dtype, normalised; `second_view` of the same shape for
    contrastive learning; `label` (b, z, y, x) uint8 or int16 aligned with `image`. `volume`
    (b,) rows of the chunk table, `start` (b, 3) first voxel of the crop, `sample` (b,) global
    sample index; these three are int64 on the CPU. `step` counts batches from 0.
    """

    image: Tensor
    second_view: Tensor | None
    label: Tensor | None
    volume: Tensor
    start: Tensor
    sample: Tensor
    step: int

    @property
    def n_crops(self) -> int:
        """Crops in the batch, whatever the number of views."""
        return len(self.sample)
