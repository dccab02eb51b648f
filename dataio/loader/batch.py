"""What the loader hands over: tensors of one step, on the device, with where they came from."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.geometry import Triple
from mim3d.dataio.loader.crop_spec import CropJob
from mim3d.dataio.loader.sampler import Samples
from mim3d.dataio.reader.voxel_weights import VoxelWeights
from mim3d.dataio.transforms.artefacts import Artefacts
from mim3d.dataio.transforms.augment import ViewDraws
from mim3d.dataio.transforms.counter_random import uniform
from mim3d.dataio.transforms.crop_artefacts import n_draws, with_artefacts

IntensityChange = Callable[[Tensor, np.ndarray], Tensor]
"""See Augmentation.intensity."""


@dataclass
class Batch:
    """One rank's crops of one step.

    `image` (b, c, z, y, x) in the loader's dtype, normalised; `second_view` of the same shape for
    contrastive learning; `label` (b, z, y, x) uint8 or int16 aligned with `image`. `volume`
    (b,) rows of the chunk table, `start` (b, 3) first voxel of the crop, `sample` (b,) global
    sample index; these three are int64 on the CPU. `step` counts batches from 0. `weight`
    (b, 1, z, y, x) uint8 is 1 where a voxel counts and 0 where it is ignored; None: all count.
    """

    image: Tensor
    second_view: Tensor | None
    label: Tensor | None
    volume: Tensor
    start: Tensor
    sample: Tensor
    step: int
    weight: Tensor | None = None

    @property
    def n_crops(self) -> int:
        """Crops in the batch, whatever the number of views."""
        return len(self.sample)


def add_noise(image: Tensor, draws: ViewDraws) -> None:
    """Add each sample's own Gaussian noise in place, to a view on a GPU.

    DALI's own noise is from a generator with a state; that of a seed is the same after a resume.
    """
    for i in np.flatnonzero(draws.noise_std):
        seed = int(draws.noise_seed[i] >> np.uint64(1))
        generator = torch.Generator(image.device).manual_seed(seed)
        noise = torch.randn(
            image.shape[1:],
            generator=generator,
            device=image.device,
            dtype=image.dtype,  # not torch's default, which a program may change
        )
        image[i].add_(noise, alpha=float(draws.noise_std[i]))


def add_artefacts(image: Tensor, seeds: np.ndarray, kind: Artefacts) -> None:
    """Give each crop of a view (b, c, z, y, x) float32 its artefacts, in place.

    `seeds` (b,) uint64 are the samples', from which alone they are drawn.
    """
    u = uniform(0, np.arange(n_draws(image.shape[1]))[:, None], seeds)
    for i, crop in enumerate(image):
        # A copy: how a transform rounds may depend on where its memory begins.
        found = with_artefacts(whole := crop.clone(), kind, u[:, i])
        if found is not whole:
            crop.copy_(found)


def finish(
    image: Tensor, seeds: np.ndarray, dtype: str, intensity: IntensityChange | None = None
) -> Tensor:
    """Have a plugin change a view, if any, and cast it; `seeds` (b,) are the samples'."""
    if intensity is not None:
        image = changed(image, seeds, intensity)
    return image if dtype == "float32" else image.to(getattr(torch, dtype))


def changed(image: Tensor, seeds: np.ndarray, intensity: IntensityChange) -> Tensor:
    """A view after a plugin's change; a Mim3dError where that gives something else."""
    shape = image.shape
    found = intensity(image, seeds)
    if not isinstance(found, Tensor) or found.shape != shape or found.dtype != torch.float32:
        kind = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found)
        raise Mim3dError(
            f"the augmentation's intensity gave {kind} of a view of torch.float32 {tuple(shape)}: "
            "it must return a tensor of the same shape and type"
        )
    return found


def label_or_weight(
    job: CropJob, samples: Samples, flips: np.ndarray, label: Tensor | None, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """A batch's label, and its weights, which came in the label's place or come from the crops'."""
    if job.weights_by_place is not None:
        return label, weights_by_place(job.weights_by_place, samples, flips, job.crop_size, device)
    if job.weights is not None and label is not None:
        return None, label[:, None]
    return label, None


def weights_by_place(
    weights: VoxelWeights, samples: Samples, flips: np.ndarray, size: Triple, device: torch.device
) -> Tensor:
    """Weights of crops that no more than their place decides; of those that all lie in their
    volumes, in no memory."""
    places = samples.volume.tolist(), samples.start.tolist(), flips.tolist()
    parts = [weights.part_of(*place, size) for place in zip(*places, strict=True)]
    whole = tuple(slice(0, n) for n in size)
    if all(part == whole for part in parts):
        return torch.ones((), dtype=torch.uint8, device=device).expand(len(parts), 1, *size)
    weight = torch.zeros((len(parts), 1, *size), dtype=torch.uint8, device=device)
    for i, part in enumerate(parts):
        weight[(i, 0, *part)] = 1
    return weight
