"""Artefacts that arise in k-space, of one crop: ghosts of what moves, and ringing beside edges.

Both leave the middle of k-space, and so the crop's mean, as it is. What a transform of a real image
is weighted by is made symmetric first, which gives the real part of what the plain weights give.
"""

import math

import torch
from torch import Tensor


def ghosting(image: Tensor, ghosts: int, axis: int, strength: float) -> Tensor:
    """Repeat the crop (c, z, y, x) `ghosts` times along spatial axis 0, 1 or 2.

    TorchIO 1.2's `Ghosting` with `restore=None`: of the shifted spectrum every `ghosts`-th plane is
    weighted by 1 - `strength`, and the plane in the middle is put back. Planes are of one axis, so
    a transform along that one is enough.
    """
    n = image.shape[axis + 1]
    weights = torch.ones(n, dtype=image.dtype, device=image.device)
    weights[::ghosts] = 1.0 - strength
    weights[n // 2] = 1.0
    spectrum = torch.fft.rfft(image.movedim(axis + 1, -1).contiguous())
    kept = _symmetric(torch.fft.ifftshift(weights), (0,))[: n // 2 + 1]
    return torch.fft.irfft(spectrum * kept, n).movedim(-1, axis + 1)


def truncated(image: Tensor, alpha: float) -> Tensor:
    """Leave out k-space beyond a ball, which rings beside edges (Gibbs), of a crop (c, z, y, x).

    MONAI 1.6's `GibbsNoise`: a ball of (1 - `alpha`) * sqrt(2) / 2 of the longest side about the
    middle of the shifted spectrum. The mean is kept in crops of very few voxels too.
    """
    size = image.shape[1:]
    radius = (1.0 - alpha) * max(size) * math.sqrt(2) / 2
    away = torch.zeros((), dtype=image.dtype, device=image.device)
    for axis, n in enumerate(size):
        shape = [1, 1, 1]
        shape[axis] = n
        steps = torch.arange(n, dtype=image.dtype, device=image.device) - (n - 1) / 2
        away = away + (steps**2).view(shape)
    mask = torch.fft.ifftshift((away.sqrt() <= radius).to(image.dtype))
    mask[0, 0, 0] = 1.0
    kept = _symmetric(mask, (0, 1, 2))[..., : size[2] // 2 + 1]
    return torch.fft.irfftn(torch.fft.rfftn(image, dim=(1, 2, 3)) * kept, size, dim=(1, 2, 3))


def _symmetric(weights: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The mean of weights at each frequency and at its negative, which a real image shares."""
    return (weights + weights.flip(axes).roll((1,) * len(axes), axes)) / 2
