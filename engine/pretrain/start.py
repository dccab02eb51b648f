"""Starting a run from weights that exist: what is taken, resized, left, and what stays fresh."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.vit import resize_positions, sincos_positions
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.pretrain.start_report import Start
from mim3d.engine.runs.given_weights import GivenWeights, open_weights
from mim3d.engine.runs.key_layouts import CLASS_TOKENS, Translated, translate, unwrapped

Grid = tuple[int, int, int]


def start_from(module: nn.Module, config: PretrainConfig) -> Start:
    """Copy what fits of `config.init` into a pretext module.

    Raises CheckpointError where nothing can be read, ConfigError where the encoder there is
    another one, with the options that make them the same.
    """
    given = open_weights(config.init)
    refuse_broken(given)
    start = Start(config.init, str(given.place), given.sha256)
    refuse_other_kind(given, config)
    if config.swin is None:
        wanted = vit_tensors(given, config, start)
    else:
        wanted = swin_tensors(given, start)
    copy_fitting(module, wanted, start)
    refuse_misfit(module, wanted, start, config)
    before = given.card.get("normalise")
    if before and before != config.data.loader.normalise:
        start.notes.append(
            f"they were trained with normalise {before}, this run has "
            f"{config.data.loader.normalise}: --data.normalise {before} gives the intensities they "
            "know"
        )
    return start


def refuse_broken(given: GivenWeights) -> None:
    """A ConfigError where a number of the weights is none: of a run that diverged."""
    for name, tensor in given.tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ConfigError(
                f"{given.place} holds NaN or infinities in {name}: give an earlier checkpoint of "
                "that run, or other weights"
            )


def refuse_other_kind(given: GivenWeights, config: PretrainConfig) -> None:
    """A ConfigError where a card tells of another encoder in ways that no shape shows."""
    card = given.card
    swin = bool(card.get("swin"))
    if "vit" in card and swin != (config.swin is not None):
        raise ConfigError(
            f"{given.place} holds a {'swin' if swin else 'vit'} encoder: take a "
            f"{'btcv-swin' if swin else 'vit'} recipe, or other weights"
        )
    if config.swin is not None:
        return
    stored = card.get("vit") or {}
    heads = stored.get("heads", card.get("arguments", {}).get("num_heads", config.vit.heads))
    if heads != config.vit.heads:
        raise ConfigError(
            f"{given.place} has {heads} attention heads and vit.heads is {config.vit.heads}: the "
            f"shapes are the same, the function is not; set --vit.heads {heads}"
        )


def vit_tensors(given: GivenWeights, config: PretrainConfig, start: Start) -> dict[str, Tensor]:
    """Tensors of a ViT under the names of the pretext module."""
    found = translate(given.tensors, given.place)
    start.layout, start.notes = found.layout, list(found.notes)
    start.axes = axes_of(given.card, found, config, start)
    wanted = {f"encoder.{name}": tensor for name, tensor in found.tensors.items()}
    for name in CLASS_TOKENS:
        if wanted.pop(f"encoder.{name}", None) is not None:
            start.left.append(f"{name} (this encoder has none)")
    place_kernel(wanted, given, config.vit, start)
    place_positions(wanted, given, found, config.vit, start)
    # The rest of a method is known by its names where it is one of ours.
    if found.layout == "mim3d" and found.prefix == "encoder.":
        return {**wanted, **found.others}
    start.left += sorted(found.others)
    return wanted


def axes_of(
    card: Mapping[str, Any], found: Translated, config: PretrainConfig, start: Start
) -> str:
    """Order of space in the weights: as told, by the option or a card, or the layout's usual."""
    if config.init_axes != "auto":
        return config.init_axes
    if "axes" in card:
        return str(card["axes"])
    if found.layout == "mim3d":
        return "zyx"
    axes = "xyz" if found.layout == "monai" else "zyx"
    other = "zyx" if axes == "xyz" else "xyz"
    start.notes.append(
        f"axes {axes} is what {found.layout} weights usually have; --init-axes {other} otherwise"
    )
    return axes


def place_kernel(
    wanted: dict[str, Tensor], given: GivenWeights, vit: ViTConfig, start: Start
) -> None:
    """The patch embedding as a linear layer over our rows, where channels and patch are ours."""
    name = "encoder.patch_embed.weight"
    kernel = wanted[name]
    if start.layout == "mim3d":
        stored = given.card.get("vit") or {}
        shape = (stored.get("channels"), *stored.get("patch_size", ()))
        fits = kernel.shape[1:] == (vit.row_width,) and (
            not stored or shape == (vit.channels, *vit.patch_size)
        )
        shape = shape if stored else f"{tuple(kernel.shape[1:])} in a row"
    else:
        theirs = vit.patch_size if start.axes == "zyx" else vit.patch_size[::-1]
        if kernel.ndim == 2 and kernel.shape[1] == vit.channels * vit.patch_voxels:
            # MONAI's perceptron: a patch's voxels in order, channels innermost.
            kernel = kernel.reshape(-1, *theirs, vit.channels).permute(0, 4, 1, 2, 3)
        shape = tuple(kernel.shape[1:])
        fits = shape == (vit.channels, *theirs)
        if fits:
            turned = kernel if start.axes == "zyx" else kernel.permute(0, 1, 4, 3, 2)
            rows = turned.reshape(len(kernel), -1)
            wanted[name] = nn.functional.pad(rows, (0, vit.row_width - rows.shape[1]))
    if not fits:
        del wanted[name]
        wanted.pop("encoder.patch_embed.bias", None)
        start.left.append(
            f"patch_embed (channels and patch {shape}, vit.channels and vit.patch_size are "
            f"{(vit.channels, *vit.patch_size)})"
        )


def place_positions(
    wanted: dict[str, Tensor],
    given: GivenWeights,
    found: Translated,
    vit: ViTConfig,
    start: Start,
) -> None:
    """Positions on our grid, resized where it is another one; fixed ones are held against ours."""
    name = "encoder.pos_embed"
    table = wanted.pop(name, None)
    if table is None:
        if vit.position == "learned" and (given.card.get("vit") or {}).get("position") == "sincos":
            wanted[name] = sincos_positions(vit.grid, vit.width)
            start.resized.append("pos_embed (from fixed sine-cosine positions)")
        return
    table = table.reshape(-1, table.shape[-1])[found.extra_tokens :]
    grid = grid_of(len(table), given.card, vit, start.axes)
    if grid is None:
        start.left.append(f"pos_embed ({len(table)} positions, no cube and not {vit.grid})")
        return
    if start.axes == "xyz":
        table = table.reshape(*grid[::-1], -1).permute(2, 1, 0, 3).flatten(0, 2)
    if vit.position == "learned":
        wanted[name] = resize_positions(table, grid, vit.grid)
        if grid != vit.grid:
            start.resized.append(f"pos_embed ({grid} to {vit.grid})")
        return
    fixed = sincos_positions(grid, table.shape[-1])
    if torch.allclose(fixed, table.float(), atol=1e-5):
        start.notes.append("its positions are the fixed sine-cosine ones that this encoder has")
    else:
        start.left.append("pos_embed (vit.position is sincos; --vit.position learned takes it)")


def grid_of(count: int, card: Mapping[str, Any], vit: ViTConfig, axes: str) -> Grid | None:
    """The patch grid (z, y, x) of so many positions, by the card, or the likeliest."""
    stored = card.get("vit") or {}
    if stored:
        sizes = zip(stored["crop_size"], stored["patch_size"], strict=True)
    else:
        image = card.get("arguments", {}).get("img_size", ())
        image = image if axes == "zyx" else image[::-1]
        sizes = zip(image, vit.patch_size, strict=False)
    by_card = tuple(crop // patch for crop, patch in sizes)
    edge = round(count ** (1 / 3))
    for grid in (by_card, vit.grid, (edge, edge, edge)):
        if len(grid) == 3 and grid[0] * grid[1] * grid[2] == count:
            return grid
    return None


def swin_tensors(given: GivenWeights, start: Start) -> dict[str, Tensor]:
    """Tensors of a Swin encoder of ours or of MONAI's SwinUNETR, under the module's names."""
    named = {unwrapped(name): tensor for name, tensor in given.tensors.items()}
    if any(name.startswith("encoder.swin.") for name in named):
        return named
    ours: dict[str, Tensor] = {}
    for name, tensor in named.items():
        _, found, rest = f".{name}".partition(".swin." if "swin." in name else ".swinViT.")
        if found:
            ours[f"encoder.swin.{rest}"] = tensor
        else:
            start.left.append(name)
    start.layout = "mim3d" if any("swin." in name for name in named) else "monai"
    return ours


def copy_fitting(module: nn.Module, wanted: Mapping[str, Tensor], start: Start) -> None:
    """Copy tensors whose name and shape are the module's; tell of all others."""
    own = module.state_dict()
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name not in own:
                start.left.append(f"{name} (not in this model)")
            elif own[name].shape != tensor.shape:
                start.left.append(f"{name} ({tuple(tensor.shape)}, {tuple(own[name].shape)} here)")
            else:
                own[name].copy_(tensor)
                start.taken.append(name)
    start.fresh += [name for name in own if name not in start.taken]


def refuse_misfit(
    module: nn.Module, wanted: Mapping[str, Tensor], start: Start, config: PretrainConfig
) -> None:
    """A ConfigError where nothing fits, or a block does not: half an encoder knows nothing."""
    own = module.state_dict()
    wrong = [
        f"{name} is {tuple(tensor.shape)} there and {tuple(own[name].shape)} here"
        for name, tensor in wanted.items()
        if name.startswith("encoder.") and name in own and own[name].shape != tensor.shape
    ]
    if not wrong and any(name.startswith("encoder.") for name in start.taken):
        return
    raise ConfigError(
        f"{start.place} does not fit: {wrong[0] if wrong else 'no name of its encoder is known'}; "
        f"{'take the swin recipe it has, or other weights' if config.swin else shape_in(wanted)}"
    )


def shape_in(wanted: Mapping[str, Tensor]) -> str:
    """The options that make our ViT as wide and deep as these tensors."""
    width = wanted["encoder.blocks.0.norm1.weight"].shape[0]
    blocks = {name.split(".")[2] for name in wanted if name.startswith("encoder.blocks.")}
    hidden = wanted.get("encoder.blocks.0.mlp.fc1.weight")
    ratio = "" if hidden is None else f" --vit.mlp-ratio {hidden.shape[0] / width:g}"
    return f"set --vit.width {width} --vit.depth {len(blocks)}{ratio}"
