"""What the loader hands over: tensors of one step, on the device, with where they came from."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mim3d.dataio.loader.augment import ViewDraws


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


def finish(image: torch.Tensor, draws: ViewDraws | None, dtype: str) -> torch.Tensor:
    """Add each sample's own Gaussian noise in place, unless it has it (draws None), and cast.

    DALI draws noise from a generator with a state, ten times slower on a CPU; a generator seeded
    per sample is the same after a resume.
    """
    for i in [] if draws is None else np.flatnonzero(draws.noise_std):
        assert draws is not None
        seed = int(draws.noise_seed[i] >> np.uint64(1))
        generator = torch.Generator(image.device).manual_seed(seed)
        noise = torch.randn(
            image.shape[1:],
            generator=generator,
            device=image.device,
            dtype=image.dtype,  # not torch's default, which a program may change
        )
        image[i].add_(noise, alpha=float(draws.noise_std[i]))
    return image if dtype == "float32" else image.to(getattr(torch, dtype))
