"""What `mim3d bench kernels` times: each operation, its variants, and the bytes it cannot avoid.

A variant is a closure over tensors on the device; loss variants include the gradient with respect
to the prediction. `needed_bytes` counts each byte that any implementation must read or write once.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mim3d.bench import kernel_recipes as recipes
from mim3d.kernels.assemble import assemble_crops
from mim3d.kernels.decoder_tokens import decoder_tokens
from mim3d.kernels.masked_loss import masked_voxel_loss
from mim3d.kernels.masking import PatchMasks, n_visible, patch_masks
from mim3d.kernels.patch_grid import Size, grid_shape
from mim3d.kernels.patch_rows import gather_patch_rows

OURS = "mim3d"
MASK_RATIO = 0.75
SEED = 0


@dataclass(frozen=True)
class Shape:
    """A batch of crops: b volumes of crop^3 voxels in patches of patch^3."""

    b: int
    crop: int
    patch: int

    @property
    def name(self) -> str:
        """For example "96^3 B64 p16"."""
        return f"{self.crop}^3 B{self.b} p{self.patch}"

    @property
    def crop_size(self) -> Size:
        """(z, y, x) voxels."""
        return self.crop, self.crop, self.crop

    @property
    def patch_size(self) -> Size:
        """(z, y, x) voxels."""
        return self.patch, self.patch, self.patch

    @property
    def n_patches(self) -> int:
        """Patches of a crop."""
        return (self.crop // self.patch) ** 3

    @property
    def voxels(self) -> int:
        """Voxels of the batch."""
        return self.b * self.crop**3


@dataclass(frozen=True)
class Case:
    """One operation on one shape: variants by name, `mim3d` among them."""

    operation: str
    shape: str
    needed_bytes: int
    variants: dict[str, Callable[[], object]] = field(default_factory=dict)


def cases(shape: Shape, device: str, compiled: bool) -> Iterator[Case]:
    """Every case of a shape, made one after the other so that memory is freed between them."""
    yield masks_case(shape, device, compiled)
    for dtype in (torch.int16, torch.float32):
        volume = random_volume(shape, dtype, device)
        masks = masks_of(shape, device)
        yield rows_case(shape, volume, masks, compiled, augmented=False)
        yield rows_case(shape, volume, masks, compiled, augmented=True)
        yield loss_case(shape, volume, masks, compiled)
        yield dense_loss_case(shape, volume, masks, compiled)
    yield tokens_case(shape, device, compiled)
    yield crops_case(shape, device, compiled)


def random_volume(shape: Shape, dtype: torch.dtype, device: str) -> Tensor:
    """Noise with an offset, like MR intensities; never zeros, which run faster than data."""
    noise = torch.randn(shape.b, 1, *shape.crop_size, device=device)
    return noise.mul_(200).add_(400).to(dtype)


def masks_of(shape: Shape, device: str) -> PatchMasks:
    """Masks at the paper's ratio."""
    sample = torch.arange(shape.b, device=device)
    return patch_masks(SEED, sample, shape.n_patches, n_visible(shape.n_patches, MASK_RATIO))


def compile_all(
    functions: Mapping[str, Callable[..., Any]], compiled: bool
) -> dict[str, Callable[..., Any]]:
    """`torch.compile` variants under "compiled NAME", where asked for."""
    if not compiled:
        return {}
    return {
        f"compiled {name}": torch.compile(function, fullgraph=True, dynamic=False)
        for name, function in functions.items()
    }


def masks_case(shape: Shape, device: str, compiled: bool) -> Case:
    """Masks of a batch; the bytes are the ids and flags written."""
    n, keep = shape.n_patches, n_visible(shape.n_patches, MASK_RATIO)
    sample = torch.arange(shape.b, device=device)
    variants: dict[str, Callable[[], object]] = {
        OURS: lambda: patch_masks(SEED, sample, n, keep),
        "MAE": lambda: recipes.mae_masks(shape.b, n, keep, device),
    }
    for name, function in compile_all({"MAE": recipes.mae_masks}, compiled).items():
        variants[name] = lambda function=function: function(shape.b, n, keep, device)
    return Case("masks", shape.name, shape.b * n * 9, variants)


def rows_case(
    shape: Shape, volume: Tensor, masks: PatchMasks, compiled: bool, augmented: bool
) -> Case:
    """Raw volume -> visible rows in bf16; needed: visible voxels in, rows out."""
    ids, patch, device = masks.visible_ids, shape.patch_size, volume.device
    extra: tuple[Tensor, ...] = ()
    options: dict[str, Any] = {}
    eager: Callable[..., Tensor] = recipes.mae_rows
    clean: Callable[..., Tensor] = recipes.clean_rows
    if augmented:
        scale, shift = torch.rand(shape.b, device=device) + 0.5, torch.rand(shape.b, device=device)
        flip = torch.rand(shape.b, 3, device=device) < 0.5
        extra, options = (scale, shift, flip), {"scale": scale, "shift": shift, "flip": flip}
        eager, clean = recipes.mae_rows_augmented, recipes.clean_rows_augmented
    out = torch.bfloat16
    variants: dict[str, Callable[[], object]] = {
        OURS: lambda: gather_patch_rows(volume, ids, patch, out_dtype=out, **options),
        "MAE": lambda: eager(volume, ids, patch, out, *extra),
        "clean": lambda: clean(volume, ids, patch, out, *extra),
    }
    for name, function in compile_all({"clean": clean}, compiled).items():
        variants[name] = lambda function=function: function(volume, ids, patch, out, *extra)
    needed = ids.numel() * shape.patch**3 * (volume.element_size() + 2)
    title = f"rows {name_of(volume)}{' flip intensity' if augmented else ''}"
    return Case(title, shape.name, needed, variants)


def loss_case(shape: Shape, volume: Tensor, masks: PatchMasks, compiled: bool) -> Case:
    """Normalised L1 and its gradient; needed: masked voxels, predictions, gradients."""
    ids, patch = masks.masked_ids, shape.patch_size
    dtype = torch.float32 if volume.dtype == torch.float32 else torch.bfloat16
    width = shape.patch**3
    tokens = torch.randn(shape.b, ids.shape[1], width, device=volume.device).to(dtype)
    every = torch.randn(shape.b, shape.n_patches, width, device=volume.device).to(dtype)
    mask = masks.masked.float()

    def ours(prediction: Tensor, volume: Tensor, ids: Tensor, patch: Size) -> Tensor:
        return masked_voxel_loss(prediction, volume, ids, patch, normalise_target=True)

    variants = {
        OURS: with_gradient(ours, tokens, volume, ids, patch),
        "MAE": with_gradient(recipes.mae_loss, every, volume, mask, patch),
        "MIM-Med3D": with_gradient(recipes.medmim_loss, tokens, volume, ids, patch),
    }
    forms = {"clean": recipes.clean_loss, "MIM-Med3D": recipes.medmim_loss}
    for name, function in compile_all(forms, compiled).items():
        variants[name] = with_gradient(function, tokens, volume, ids, patch)
    needed = tokens.numel() * (volume.element_size() + 2 * tokens.element_size())
    return Case(f"loss {name_of(volume)}", shape.name, needed, variants)


def dense_loss_case(shape: Shape, volume: Tensor, masks: PatchMasks, compiled: bool) -> Case:
    """Raw L1 on dense predictions; needed: masked voxels and predictions, the whole gradient."""
    grid, patch = grid_shape(shape.crop_size, shape.patch_size), shape.patch_size
    dtype = torch.float32 if volume.dtype == torch.float32 else torch.bfloat16
    prediction = torch.randn(volume.shape, device=volume.device).to(dtype)
    mask, ids = masks.masked.float(), masks.masked_ids
    variants = {
        OURS: with_gradient(masked_voxel_loss, prediction, volume, ids, patch),
        "nnssl": with_gradient(recipes.nnssl_loss, prediction, volume, mask, grid, patch),
    }
    for name, function in compile_all({"nnssl": recipes.nnssl_loss}, compiled).items():
        variants[name] = with_gradient(function, prediction, volume, mask, grid, patch)
    masked = ids.numel() * shape.patch**3
    needed = masked * (volume.element_size() + dtype.itemsize) + shape.voxels * dtype.itemsize
    return Case(f"dense loss {name_of(volume)}", shape.name, needed, variants)


def tokens_case(shape: Shape, device: str, compiled: bool, width: int = 512) -> Case:
    """Decoder tokens, forward; needed: visible tokens in, all tokens out."""
    masks = masks_of(shape, device)
    keep = masks.visible_ids.shape[1]
    visible, mask_token, positions = (
        torch.randn(size, device=device).bfloat16()
        for size in ((shape.b, keep, width), (width,), (shape.n_patches, width))
    )
    restore = torch.cat([masks.visible_ids, masks.masked_ids], 1).argsort(1)
    given = (visible, mask_token, positions)
    ids = (masks.visible_ids, masks.masked_ids)
    variants: dict[str, Callable[[], object]] = {
        OURS: lambda: decoder_tokens(*given, *ids),
        "MAE": lambda: recipes.mae_tokens(*given, restore),
        "clean": lambda: recipes.clean_tokens(*given, *ids),
    }
    for name, function in compile_all({"clean": recipes.clean_tokens}, compiled).items():
        variants[name] = lambda function=function: function(*given, *ids)
    needed = 2 * shape.b * width * (keep + shape.n_patches)
    return Case("decoder tokens", shape.name, needed, variants)


def crops_case(shape: Shape, device: str, compiled: bool) -> Case:
    """Shuffled int16 chunks of 32^3 -> normalised bf16 crops at starts snapped to 16."""
    per_axis = shape.crop // 32 + 1
    n = shape.b * per_axis**3
    chunks = torch.randint(0, 255, (n, 2 * 32**3), dtype=torch.uint8, device=device)
    table = torch.randperm(n, device=device).view(shape.b, 1, per_axis, per_axis, per_axis)
    start = torch.randint(0, 2, (shape.b, 3), device=device)
    scale, shift = torch.rand(shape.b, device=device) + 0.5, torch.rand(shape.b, device=device)

    def crops(backend: str) -> Tensor:
        return assemble_crops(
            chunks, table, start, crop_size=shape.crop_size, chunk_size=(32, 32, 32),
            dtype=torch.int16, start_unit=16, scale=scale, shift=shift,
            out_dtype=torch.bfloat16, backend=backend,
        )  # fmt: skip

    variants: dict[str, Callable[[], object]] = {
        OURS: lambda: crops("auto"),
        "eager": lambda: crops("reference"),
    }
    return Case("assemble int16", shape.name, shape.voxels * 4, variants)


def with_gradient(
    loss: Callable[..., Tensor], prediction: Tensor, *arguments: object
) -> Callable[[], object]:
    """Closure: the loss and its gradient with respect to the prediction."""
    leaf = prediction.requires_grad_()
    return lambda: torch.autograd.grad(loss(leaf, *arguments), leaf)


def name_of(volume: Tensor) -> str:
    """Dtype in words."""
    return str(volume.dtype).removeprefix("torch.")
