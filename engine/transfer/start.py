"""Starting a run from weights that exist: what is taken, resized, left, and what stays fresh."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import SwinConfig, ViTConfig
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.resenc.config import ResEncConfig
from mim3d.engine.models.vit import resize_positions, sincos_positions
from mim3d.engine.transfer.given_weights import GivenWeights, open_weights
from mim3d.engine.transfer.key_layouts import CLASS_TOKENS, Translated, translate, unwrapped
from mim3d.engine.transfer.patch_embedding import other_channels, other_patch
from mim3d.engine.transfer.reference_networks import primus_state, resenc_tensors
from mim3d.engine.transfer.start_report import Start
from mim3d.kernels.patch_rows import row_width

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class StartRequest:
    """Weights to start from, and the encoder that they are for."""

    source: str
    """A run, a checkpoint or a file."""
    vit: ViTConfig
    swin: SwinConfig | None = None
    normalise: str = ""
    """Of the images that the encoder will get."""
    axes: Literal["auto", "xyz", "zyx"] = "auto"
    """Order of space in the weights."""
    channels: str = "auto"
    """What each channel is made of, see `patch_embedding.other_channels`."""
    resenc: ResEncConfig | None = None


def start_from(
    module: nn.Module, request: StartRequest, given: GivenWeights | None = None
) -> Start:
    """Copy what fits of the weights into a module whose `encoder` is the request's.

    Raises CheckpointError where nothing can be read, ConfigError where the encoder there is
    another one, with the options that make them the same. `given` are the weights where they are
    open already.
    """
    given = given or open_weights(request.source)
    refuse_broken(given)
    start = Start(request.source, str(given.place), given.sha256)
    refuse_other_kind(given, request)
    wanted = tensors_for(module, given, request, start)
    copy_fitting(module, wanted, start)
    refuse_misfit(module, wanted, start, request)
    before = given.card.get("normalise")
    if before and request.normalise and before != request.normalise:
        start.notes.append(
            f"they were trained with normalise {before}, this run has {request.normalise}: "
            f"--data.normalise {before} gives the intensities they know"
        )
    return start


def tensors_for(
    module: nn.Module, given: GivenWeights, request: StartRequest, start: Start
) -> dict[str, Tensor]:
    """The weights under the module's names, as the encoder asked for has them."""
    if request.resenc is not None:
        channels = request.vit.channels
        return resenc_tensors(module, given, channels, request.channels, start)
    if request.swin is not None:
        return swin_tensors(given, request, start)
    if isinstance(request.vit, PrimusConfig):
        return primus_tensors(given, request, request.vit, start)
    return vit_tensors(given, request, start)


def primus_tensors(
    given: GivenWeights, request: StartRequest, vit: PrimusConfig, start: Start
) -> dict[str, Tensor]:
    """Tensors of a Primus under the names of the pretext module."""
    state, card = primus_state(given, vit, start)
    shaped = replace(given, card=card)
    wanted = {f"encoder.{name}": tensor for name, tensor in state.items()}
    place_kernel(wanted, shaped, request, start)
    place_positions(wanted, shaped, Translated("mim3d", "", state, {}), vit, start)
    if start.layout == "nnssl":
        return wanted
    named = {unwrapped(name): tensor for name, tensor in given.tensors.items()}
    inside = {*named} & {*state}  # an encoder's file has no `encoder.` before its names
    return {**wanted, **{n: t for n, t in named.items() if n not in inside and n not in wanted}}


def refuse_broken(given: GivenWeights) -> None:
    """A ConfigError where a number of the weights is none: of a run that diverged."""
    for name, tensor in given.tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ConfigError(
                f"{given.place} holds NaN or infinities in {name}: give an earlier checkpoint of "
                "that run, or other weights"
            )


def refuse_other_kind(given: GivenWeights, request: StartRequest) -> None:
    """A ConfigError where a card tells of another encoder in ways that no shape shows."""
    card = given.card
    kind = kind_of(card.get("vit") or {}, card.get("swin"), card.get("resenc"))
    if "vit" in card and kind != kind_of(asdict(request.vit), request.swin, request.resenc):
        raise ConfigError(
            f"{given.place} holds a {kind} encoder: take a "
            f"{'btcv-swin' if kind == 'swin' else kind} recipe, or other weights"
        )
    if request.swin is not None or request.resenc is not None:
        return
    stored = card.get("vit") or {}
    heads = stored.get("heads", card.get("arguments", {}).get("num_heads", request.vit.heads))
    if heads != request.vit.heads:
        raise ConfigError(
            f"{given.place} has {heads} attention heads and vit.heads is {request.vit.heads}: the "
            f"shapes are the same, the function is not; set --vit.heads {heads}"
        )


def kind_of(vit: Mapping[str, Any], swin: object, resenc: object) -> str:
    """What kind of encoder plain values tell of; a Primus's have registers."""
    if swin or resenc:
        return "swin" if swin else "resenc"
    return "primus" if "registers" in vit else "vit"


def vit_tensors(given: GivenWeights, request: StartRequest, start: Start) -> dict[str, Tensor]:
    """Tensors of a ViT under the names of the pretext module."""
    found = translate(given.tensors, given.place)
    start.layout, start.notes = found.layout, list(found.notes)
    start.axes = axes_of(given.card, found, request, start)
    wanted = {f"encoder.{name}": tensor for name, tensor in found.tensors.items()}
    for name in CLASS_TOKENS:
        if wanted.pop(f"encoder.{name}", None) is not None:
            start.left.append(f"{name} (this encoder has none)")
    place_kernel(wanted, given, request, start)
    place_positions(wanted, given, found, request.vit, start)
    # The rest of a method is known by its names where it is one of ours.
    if found.layout == "mim3d" and found.prefix == "encoder.":
        return {**wanted, **found.others}
    start.left += sorted(found.others)
    return wanted


def axes_of(card: Mapping[str, Any], found: Translated, request: StartRequest, start: Start) -> str:
    """Order of space in the weights: as told, by the option or a card, or the layout's usual."""
    if request.axes != "auto":
        return request.axes
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
    wanted: dict[str, Tensor], given: GivenWeights, request: StartRequest, start: Start
) -> None:
    """The patch embedding as a linear layer over our rows, for our channels and patch."""
    name, vit = "encoder.patch_embed.weight", request.vit
    kernel = whole_kernel(wanted[name], given, vit, start)
    if kernel is None:
        shape = tuple(wanted.pop(name).shape[1:])
        wanted.pop("encoder.patch_embed.bias", None)
        start.left.append(
            f"patch_embed (rows of {shape} numbers whose channels and patch are not told, "
            f"vit.channels and vit.patch_size are {(vit.channels, *vit.patch_size)})"
        )
        return
    kernel, channels = other_channels(kernel, vit.channels, request.channels)
    kernel, patch = other_patch(kernel, vit.patch_size)
    start.resized += [f"patch_embed ({how})" for how in (channels, patch) if how]
    rows = kernel.reshape(len(kernel), -1)
    wanted[name] = nn.functional.pad(rows, (0, vit.row_width - rows.shape[1]))


def whole_kernel(
    kernel: Tensor, given: GivenWeights, vit: ViTConfig, start: Start
) -> Tensor | None:
    """A patch embedding as a convolution's kernel (d, c, z, y, x); None where nothing tells how."""
    if kernel.ndim == 5:
        return kernel if start.axes == "zyx" else kernel.permute(0, 1, 4, 3, 2)
    if start.layout == "mim3d":
        stored = given.card.get("vit") or {}
        patch = tuple(stored.get("patch_size", vit.patch_size))
        channels = int(stored.get("channels", vit.channels))
        used = channels * math.prod(patch)
        if kernel.shape[1] != row_width(channels, patch):
            return None
        return kernel[:, :used].reshape(-1, channels, *patch)
    channels, rest = divmod(kernel.shape[1], vit.patch_voxels)
    if rest:
        return None
    # MONAI's perceptron: a patch's voxels in order, channels innermost.
    theirs = vit.patch_size if start.axes == "zyx" else vit.patch_size[::-1]
    kernel = kernel.reshape(-1, *theirs, channels).permute(0, 4, 1, 2, 3)
    return kernel if start.axes == "zyx" else kernel.permute(0, 1, 4, 3, 2)


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
    edge = cube_edge(count)
    for grid in (by_card, vit.grid, (edge, edge, edge)):
        if len(grid) == 3 and grid[0] * grid[1] * grid[2] == count:
            return grid
    return None


def cube_edge(count: int) -> int:
    """Edge of a cube of so many, 0 where they are none."""
    edge = round(count ** (1 / 3))
    return edge if edge**3 == count else 0


def swin_tensors(given: GivenWeights, request: StartRequest, start: Start) -> dict[str, Tensor]:
    """Tensors of a Swin encoder of ours or of MONAI's SwinUNETR, under the module's names."""
    named = {unwrapped(name): tensor for name, tensor in given.tensors.items()}
    if any(name.startswith("encoder.swin.") for name in named):
        return with_channels(named, request, start)
    ours: dict[str, Tensor] = {}
    for name, tensor in named.items():
        _, found, rest = f".{name}".partition(".swin." if "swin." in name else ".swinViT.")
        if found:
            ours[f"encoder.swin.{rest}"] = tensor
        else:
            start.left.append(name)
    start.layout = "mim3d" if any("swin." in name for name in named) else "monai"
    return with_channels(ours, request, start)


def with_channels(
    tensors: dict[str, Tensor], request: StartRequest, start: Start
) -> dict[str, Tensor]:
    """A Swin encoder's tensors for our channels."""
    name = "encoder.swin.patch_embed.proj.weight"
    if name in tensors:
        kernel, how = other_channels(tensors[name], request.vit.channels, request.channels)
        tensors = {**tensors, name: kernel}
        start.resized += [f"patch_embed ({how})"] * bool(how)
    return tensors


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
    module: nn.Module, wanted: Mapping[str, Tensor], start: Start, request: StartRequest
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
        f"{remedy_of(request, wanted)}"
    )


def remedy_of(request: StartRequest, wanted: Mapping[str, Tensor]) -> str:
    """What makes our encoder the one that these tensors are of."""
    if request.resenc is not None:
        return "set --resenc.features and --resenc.blocks to those of its run"
    if request.swin is not None:
        return "take the swin recipe it has, or other weights"
    return shape_in(wanted)


def shape_in(wanted: Mapping[str, Tensor]) -> str:
    """The options that make our ViT as wide and deep as these tensors."""
    width = wanted["encoder.blocks.0.norm1.weight"].shape[0]
    blocks = {name.split(".")[2] for name in wanted if name.startswith("encoder.blocks.")}
    hidden = wanted.get("encoder.blocks.0.mlp.fc1.weight")
    hidden = wanted.get("encoder.blocks.0.mlp.norm.weight", hidden)  # a gated MLP's fc1 has twice
    ratio = "" if hidden is None else f" --vit.mlp-ratio {hidden.shape[0] / width:g}"
    return f"set --vit.width {width} --vit.depth {len(blocks)}{ratio}"
