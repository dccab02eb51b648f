"""A patch embedding taken over to other channels and other patches, keeping what it computes.

Channels: where all of an image's new channels are equal, the embedding is what it was. Patches: the
pseudo-inverse resize of FlexiViT (Beyer et al. 2023, section 3.4): a patch resized linearly gives
the token that it gave before, exactly where patches grow.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mim3d.dataio.geometry import Triple
from mim3d.engine.errors import ConfigError

MOST_RESIZE = 4
"""A patch's edge changes by this factor at most: beyond it little of a kernel is left."""


def other_channels(kernel: Tensor, channels: int, mapping: str) -> tuple[Tensor, str]:
    """A kernel (d, c, ...) for another number of channels, and what was done; empty for nothing.

    `mapping` is auto (as they are, or the mean for all) or a comma-separated choice for each of
    the new ones.
    """
    before = kernel.shape[1]
    if mapping != "auto":
        return mapped_channels(kernel, channels, mapping.split(","))
    if before == channels:
        return kernel, ""
    # Their sum stays what it was.
    mean = kernel.float().sum(1, keepdim=True) / channels
    repeat = [1, channels, *([1] * (kernel.ndim - 2))]
    how = "inflated to" if before == 1 else "averaged into"
    one = "1 channel" if before == 1 else f"{before} channels"
    return mean.repeat(repeat).to(kernel.dtype), f"{one} {how} {channels}"


def mapped_channels(kernel: Tensor, channels: int, choice: Sequence[str]) -> tuple[Tensor, str]:
    """The same with a channel of the weights for each of ours, or their mean for `-`."""
    before = kernel.shape[1]
    if len(choice) != channels or any(one != "-" and int(one) >= before for one in choice):
        raise ConfigError(
            f"init_channels {','.join(choice)} does not choose one of the weights' {before} "
            f"channels (0 to {before - 1}) or - for each of vit.channels {channels}"
        )
    mean = kernel.float().mean(1).to(kernel.dtype)
    parts = [mean if one == "-" else kernel[:, int(one)] for one in choice]
    chosen = ", ".join("mean" if one == "-" else one for one in choice)
    unchanged = list(choice) == [str(i) for i in range(before)]
    return torch.stack(parts, 1), "" if unchanged else f"channels {chosen} of {before}"


def other_patch(kernel: Tensor, patch: Triple) -> tuple[Tensor, str]:
    """A kernel (d, c, z, y, x) for another patch, and what was done; beyond a factor refused."""
    before = tuple(kernel.shape[2:])
    if before == patch:
        return kernel, ""
    for old, new in zip(before, patch, strict=True):
        if max(old, new) > MOST_RESIZE * min(old, new):
            raise ConfigError(
                f"the weights' patches are {before} and vit.patch_size is {patch}: beyond a factor "
                f"of {MOST_RESIZE} nothing of a kernel is left; set --vit.patch-size nearer"
            )
    resized = kernel.double()
    for axis, (old, new) in enumerate(zip(before, patch, strict=True), start=2):
        if old != new:
            matrix = pseudo_inverse(old, new)
            resized = torch.movedim(torch.movedim(resized, axis, -1) @ matrix.T, -1, axis)
    return resized.to(kernel.dtype), f"patch {before} to {patch}"


def pseudo_inverse(old: int, new: int) -> Tensor:
    """Matrix (new, old) that takes a kernel along one axis: pinv of the transposed resize."""
    eye = torch.eye(old, dtype=torch.float64)[:, None]
    resize = torch.nn.functional.interpolate(eye, size=new, mode="linear")[:, 0].T
    return torch.linalg.pinv(resize.T)
