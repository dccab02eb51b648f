"""What `mim3d bench kernels` times: each operation, its variants, and the bytes it cannot avoid.

A variant is a closure over tensors on the device; loss variants include the gradient with respect
to the prediction. `needed_bytes` counts each byte that any implementation must read or write once.
An `Operation` names its variants beforehand, so that a run can be planned without any memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mim3d.bench.kernels import recipes
from mim3d.kernels.assemble import Shuffle, assemble_crops
from mim3d.kernels.decoder_tokens import decoder_tokens
from mim3d.kernels.masked_loss import masked_voxel_loss
from mim3d.kernels.masking import PatchMasks, n_visible, patch_masks
from mim3d.kernels.patch_grid import Size, grid_shape, row_width
from mim3d.kernels.patch_rows import gather_patch_rows

OURS = "mim3d"
COMPILED = "compiled "
MASK_RATIO = 0.75
SEED = 0
WIDTH = 768  # features of an embedded token, ViT-B
DECODER_WIDTH = 512
Variants = dict[str, Callable[[], object]]


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

    needed_bytes: int
    variants: Variants


@dataclass(frozen=True)
class Operation:
    """An operation, how to make its tensors, and the variants that will be there.

    `eager` and `compiled` name recipes; `waits` those that wait for the device, which no CUDA
    graph can capture.
    """

    name: str
    build: Callable[[Shape, str], Case]
    eager: tuple[str, ...]
    compiled: tuple[str, ...] = ()
    waits: tuple[str, ...] = ()

    def variants(self, compiled: bool) -> tuple[str, ...]:
        """Names in the order they are timed: ours, eager, compiled."""
        behind = tuple(COMPILED + name for name in self.compiled) if compiled else ()
        return (OURS, *self.eager, *behind)


def random_volume(shape: Shape, dtype: torch.dtype, device: str) -> Tensor:
    """Noise with an offset, like MR intensities; never zeros, which run faster than data."""
    noise = torch.randn(shape.b, 1, *shape.crop_size, device=device)
    return noise.mul_(200).add_(400).to(dtype)


def masks_of(shape: Shape, device: str) -> PatchMasks:
    """Masks at the paper's ratio."""
    sample = torch.arange(shape.b, device=device)
    return patch_masks(SEED, sample, shape.n_patches, n_visible(shape.n_patches, MASK_RATIO))


def compiled_forms(
    forms: Mapping[str, Callable[..., Any]], call: Callable[[Callable[..., Any]], Any]
) -> Variants:
    """`torch.compile` variants under "compiled NAME"; nothing is compiled before the first call."""
    made = {
        name: torch.compile(form, fullgraph=True, dynamic=False) for name, form in forms.items()
    }
    return {COMPILED + name: partial(call, form) for name, form in made.items()}


def masks_case(shape: Shape, device: str) -> Case:
    """Masks of a batch; the bytes are the ids and flags written."""
    n, keep = shape.n_patches, n_visible(shape.n_patches, MASK_RATIO)
    sample = torch.arange(shape.b, device=device)
    given = (shape.b, n, keep, device)
    variants: Variants = {
        OURS: lambda: patch_masks(SEED, sample, n, keep),
        "MAE": lambda: recipes.mae_masks(*given),
        "MIM-Med3D": lambda: recipes.medmim_masks(*given),
    }
    variants |= compiled_forms({"MAE": recipes.mae_masks}, lambda form: form(*given))
    return Case(shape.b * n * 9, variants)


def rows_case(shape: Shape, device: str, dtype: torch.dtype, augmented: bool) -> Case:
    """Raw volume -> visible rows in bf16; needed: visible voxels in, rows out."""
    volume, ids = random_volume(shape, dtype, device), masks_of(shape, device).visible_ids
    given: tuple[Any, ...] = (volume, ids, shape.patch_size, torch.bfloat16)
    options: dict[str, Any] = {}
    eager: Callable[..., Tensor] = recipes.plain_rows
    clean: Callable[..., Tensor] = recipes.clean_rows
    if augmented:
        scale, shift = torch.rand(shape.b, device=device) + 0.5, torch.rand(shape.b, device=device)
        flip = torch.rand(shape.b, 3, device=device) < 0.5
        given, options = (
            (*given, scale, shift, flip),
            {"scale": scale, "shift": shift, "flip": flip},
        )
        eager, clean = recipes.plain_rows_augmented, recipes.clean_rows_augmented
    variants: Variants = {
        OURS: lambda: gather_patch_rows(*given[:3], out_dtype=torch.bfloat16, **options),
        "patchify": lambda: eager(*given),
        "clean": lambda: clean(*given),
    }
    variants |= compiled_forms({"clean": clean}, lambda form: form(*given))
    return Case(ids.numel() * shape.patch**3 * (volume.element_size() + 2), variants)


def embed_case(shape: Shape, device: str) -> Case:
    """int16 volume -> visible tokens; needed: visible voxels and the weights in, tokens out."""
    volume, ids = random_volume(shape, torch.int16, device), masks_of(shape, device).visible_ids
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    patch, voxels = shape.patch_size, shape.patch**3
    weight = (torch.randn(WIDTH, row_width(1, patch), device=device) / shape.crop).to(dtype)
    bias = torch.randn(WIDTH, device=device).to(dtype)
    table = torch.randn(shape.n_patches, WIDTH, device=device).to(dtype)
    given = (volume, ids, patch, weight, bias, table)

    def ours() -> Tensor:
        rows = gather_patch_rows(volume, ids, patch, out_dtype=dtype)
        return torch.nn.functional.linear(rows, weight, bias) + table[ids]

    variants: Variants = {
        OURS: ours,
        "MAE": lambda: recipes.mae_embed(*given),
        "MIM-Med3D": lambda: recipes.medmim_embed(*given),
    }
    variants |= compiled_forms({"clean": recipes.clean_embed}, lambda form: form(*given))
    moved = ids.numel() * (voxels * volume.element_size() + WIDTH * dtype.itemsize)
    return Case(moved + weight.numel() * dtype.itemsize, variants)


def loss_case(shape: Shape, device: str, dtype: torch.dtype) -> Case:
    """Normalised L2 and its gradient; needed: masked voxels, predictions, gradients."""
    volume, masks = random_volume(shape, dtype, device), masks_of(shape, device)
    ids, patch = masks.masked_ids, shape.patch_size
    tokens = masked_tokens(shape, ids, dtype)
    every = torch.randn(shape.b, shape.n_patches, shape.patch**3, device=device).to(tokens.dtype)

    def ours(prediction: Tensor) -> Tensor:
        return masked_voxel_loss(prediction, volume, ids, patch, kind="l2", normalise_target=True)

    def call(form: Callable[..., Tensor]) -> object:
        return gradient(form, tokens, volume, ids, patch)

    mask = masks.masked.float()
    variants: Variants = {
        OURS: lambda: gradient(ours, tokens),
        "MAE": lambda: gradient(recipes.mae_loss, every, volume, mask, patch),
        "clean": lambda: call(recipes.clean_loss),
    }
    variants |= compiled_forms({"clean": recipes.clean_loss}, call)
    variants |= compiled_forms(
        {"MAE": recipes.mae_loss}, lambda form: gradient(form, every, volume, mask, patch)
    )
    return Case(loss_bytes(tokens, volume), variants)


def raw_loss_case(shape: Shape, device: str, dtype: torch.dtype) -> Case:
    """Raw L1 of masked tokens and its gradient; needed: masked voxels, predictions, gradients."""
    volume, ids = random_volume(shape, dtype, device), masks_of(shape, device).masked_ids
    tokens, patch = masked_tokens(shape, ids, dtype), shape.patch_size

    def call(form: Callable[..., Tensor]) -> object:
        return gradient(form, tokens, volume, ids, patch)

    variants: Variants = {
        OURS: lambda: call(masked_voxel_loss),
        "MIM-Med3D": lambda: call(recipes.medmim_loss),
        "clean": lambda: call(recipes.clean_raw_loss),
    }
    forms = {"clean": recipes.clean_raw_loss, "MIM-Med3D": recipes.medmim_loss}
    return Case(loss_bytes(tokens, volume), variants | compiled_forms(forms, call))


def dense_loss_case(shape: Shape, device: str, dtype: torch.dtype) -> Case:
    """Raw L2 on dense predictions; needed: masked voxels and predictions, the whole gradient."""
    volume, masks = random_volume(shape, dtype, device), masks_of(shape, device)
    grid, patch = grid_shape(shape.crop_size, shape.patch_size), shape.patch_size
    wide = torch.float32 if dtype == torch.float32 else torch.bfloat16
    prediction = torch.randn(volume.shape, device=device).to(wide).requires_grad_()
    kept, hidden = masks.visible_ids, masks.masked_ids

    def ours(prediction: Tensor) -> Tensor:
        return masked_voxel_loss(prediction, volume, hidden, patch, kind="l2")

    def call(form: Callable[..., Tensor]) -> object:
        return gradient(form, prediction, volume, kept, grid, patch)

    variants: Variants = {
        OURS: lambda: gradient(ours, prediction),
        "nnssl": lambda: call(recipes.nnssl_loss),
    }
    variants |= compiled_forms({"nnssl": recipes.nnssl_loss}, call)
    masked = hidden.numel() * shape.patch**3
    needed = masked * (volume.element_size() + wide.itemsize) + shape.voxels * wide.itemsize
    return Case(needed, variants)


def tokens_case(shape: Shape, device: str) -> Case:
    """Decoder tokens, forward; needed: visible tokens in, all tokens out."""
    masks = masks_of(shape, device)
    keep = masks.visible_ids.shape[1]
    visible, mask_token, positions = (
        torch.randn(size, device=device).bfloat16()
        for size in (
            (shape.b, keep, DECODER_WIDTH),
            (DECODER_WIDTH,),
            (shape.n_patches, DECODER_WIDTH),
        )
    )
    restore = torch.cat([masks.visible_ids, masks.masked_ids], 1).argsort(1)
    given = (visible, mask_token, positions)
    ids = (masks.visible_ids, masks.masked_ids)
    variants: Variants = {
        OURS: lambda: decoder_tokens(*given, *ids),
        "MAE": lambda: recipes.mae_tokens(*given, restore),
        "MIM-Med3D": lambda: recipes.medmim_tokens(*given, *ids),
        "nnssl": lambda: recipes.nnssl_tokens(*given, masks.visible_ids),
        "clean": lambda: recipes.clean_tokens(*given, *ids),
    }
    variants |= compiled_forms({"clean": recipes.clean_tokens}, lambda form: form(*given, *ids))
    return Case(2 * shape.b * DECODER_WIDTH * (keep + shape.n_patches), variants)


def crops_case(shape: Shape, device: str, side: int = 16, shuffle: Shuffle = "bit") -> Case:
    """Shuffled int16 chunks of side^3 -> normalised bf16 crops at starts snapped to 16."""
    per_axis = (shape.crop + side - 17) // side + 1  # of the chunks that a crop may touch
    n = shape.b * per_axis**3
    chunks = torch.randint(0, 255, (n, 2 * side**3), dtype=torch.uint8, device=device)
    table = torch.randperm(n, device=device).view(shape.b, 1, per_axis, per_axis, per_axis)
    start = torch.randint(0, side // 16, (shape.b, 3), device=device)
    scale, shift = torch.rand(shape.b, device=device) + 0.5, torch.rand(shape.b, device=device)

    def crops(backend: str) -> Tensor:
        return assemble_crops(
            chunks, table, start, crop_size=shape.crop_size, chunk_size=(side,) * 3,
            dtype=torch.int16, shuffle=shuffle, start_unit=16, scale=scale, shift=shift,
            out_dtype=torch.bfloat16, backend=backend,
        )  # fmt: skip

    variants: Variants = {OURS: lambda: crops("auto"), "eager": lambda: crops("reference")}
    return Case(shape.voxels * 4, variants)


def masked_tokens(shape: Shape, ids: Tensor, volume_dtype: torch.dtype) -> Tensor:
    """Leaf predictions (b, m, p) of the hidden patches: bf16, or float32 beside float32."""
    dtype = torch.float32 if volume_dtype == torch.float32 else torch.bfloat16
    tokens = torch.randn(shape.b, ids.shape[1], shape.patch**3, device=ids.device)
    return tokens.to(dtype).requires_grad_()


def loss_bytes(tokens: Tensor, volume: Tensor) -> int:
    """Hidden voxels and predictions read once, gradients written once."""
    return tokens.numel() * (volume.element_size() + 2 * tokens.element_size())


def gradient(loss: Callable[..., Tensor], prediction: Tensor, *arguments: object) -> object:
    """The loss's gradient with respect to the prediction."""
    leaf = prediction.requires_grad_()
    return torch.autograd.grad(loss(leaf, *arguments), leaf)


def operations() -> list[Operation]:
    """Every operation, the loss and the gather before what matters less."""
    rows, loss, raw, dense = rows_case, loss_case, raw_loss_case, dense_loss_case
    int16, float32 = torch.int16, torch.float32
    found = []
    for dtype, name in ((int16, "int16"), (float32, "float32")):
        found += [
            Operation(
                f"loss {name}", partial(loss, dtype=dtype), ("MAE", "clean"), ("clean", "MAE")
            ),
            Operation(
                f"raw loss {name}", partial(raw, dtype=dtype), ("MIM-Med3D", "clean"),
                ("clean", "MIM-Med3D"),
            ),
            Operation(f"dense loss {name}", partial(dense, dtype=dtype), ("nnssl",), ("nnssl",)),
            Operation(
                f"rows {name}", partial(rows, dtype=dtype, augmented=False),
                ("patchify", "clean"), ("clean",),
            ),
        ]  # fmt: skip
    return [
        *found,
        Operation(
            "rows int16 flip intensity", partial(rows, dtype=int16, augmented=True),
            ("patchify", "clean"), ("clean",),
        ),
        Operation("embed int16", embed_case, ("MAE", "MIM-Med3D"), ("clean",)),
        Operation("masks", masks_case, ("MAE", "MIM-Med3D"), ("MAE",)),
        Operation(
            "decoder tokens", tokens_case, ("MAE", "MIM-Med3D", "nnssl", "clean"), ("clean",),
            waits=("nnssl",),
        ),
        Operation("assemble int16", crops_case, ("eager",)),
        Operation(
            "assemble int16, bytes in 32³", partial(crops_case, side=32, shuffle="byte"),
            ("eager",),
        ),
    ]  # fmt: skip
