"""Artefacts of intensity and resolution, of one crop: bias field, gamma, thick slices.

Formulas are those of TorchIO 1.2. It takes images of intensities from 0; crops are normalised, so
what is proportional to intensity is measured from each channel's darkest voxel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ORDER = 3
"""Of the bias field's polynomial."""
TERMS = [
    (i, j, k)
    for i in range(ORDER + 1)
    for j in range(ORDER + 1 - i)
    for k in range(ORDER + 1 - i - j)
]
"""Powers along z, y, x of each coefficient, in TorchIO's order."""


def bias_field(size: Sequence[int], coefficients: Sequence[float], like: Tensor) -> Tensor:
    """Field (z, y, x) of a scanner's coil: exp of a polynomial over -1..1 along each axis.

    TorchIO's `BiasField` of order 3 (Van Leemput et al. 1999): one coefficient for each of TERMS.
    """
    powers = []
    for n in size:
        steps = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
        steps = steps / max((n - 1) / 2, 1e-9)
        powers.append(torch.stack([steps**order for order in range(ORDER + 1)]))
    along_z, along_y, along_x = powers
    weights = torch.zeros(ORDER + 1, ORDER + 1, ORDER + 1, dtype=torch.float64)
    for term, coefficient in zip(TERMS, coefficients, strict=True):
        weights[term] = coefficient
    planes = torch.einsum("ijk,jy,kx->iyx", weights, along_y, along_x).to(like.dtype)
    field = torch.zeros(*size, dtype=like.dtype, device=like.device)
    powers_z = moved(along_z.to(like.dtype), like)
    for power, plane in zip(powers_z, moved(planes, like), strict=True):
        field.addcmul_(power[:, None, None], plane[None])
    return field.exp_()


def multiplied(image: Tensor, field: Tensor) -> Tensor:
    """A crop (c, z, y, x) times a field (z, y, x), measured from each channel's darkest voxel."""
    darkest = image.amin((1, 2, 3), keepdim=True)
    return (image - darkest) * field + darkest


def powered(image: Tensor, gammas: Sequence[float]) -> Tensor:
    """Each channel of a crop to a power, within its own range: TorchIO's `Gamma` of 0..1."""
    low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    span = high - low
    share = ((image - low) / torch.where(span > 0, span, 1.0)).clamp_(0, 1)
    exponents = moved(torch.tensor(gammas, dtype=image.dtype), image)
    return share ** exponents[:, None, None, None] * span + low


def low_resolution(image: Tensor, axis: int, factor: float) -> Tensor:
    """A crop (c, z, y, x) taken at every `factor`-th voxel along spatial axis 0, 1 or 2, and
    stretched again.

    TorchIO's `RandomAnisotropy`: floor(n / factor) nearest voxels about the middle, then linear
    between them. Beyond the outermost they are repeated; TorchIO has 0 there.
    """
    n = image.shape[axis + 1]
    taken = max(1, int(n / factor))
    middle, low = (n - 1) / 2, (taken - 1) / 2
    steps = (torch.arange(taken, dtype=torch.float64) - low) * factor + middle
    places = (steps + 0.5).floor().long().clamp_(0, n - 1)
    thick = image.index_select(axis + 1, moved(places, image))
    back = ((torch.arange(n, dtype=torch.float64) - middle) / factor + low).clamp_(0, taken - 1)
    first = back.floor().long()
    share = moved((back - first).to(image.dtype), image)
    second = (first + 1).clamp_(max=taken - 1)
    shape = [1, 1, 1, 1]
    shape[axis + 1] = n
    near, far = (thick.index_select(axis + 1, moved(ends, image)) for ends in (first, second))
    return torch.lerp(near, far, share.view(shape))


def moved(made: Tensor, like: Tensor) -> Tensor:
    """What the host made, on the device of `like`: queued there, so that the host need not wait."""
    if like.device.type == "cpu":
        return made
    return made.pin_memory().to(like.device, non_blocking=True)
