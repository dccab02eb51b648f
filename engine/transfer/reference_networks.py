"""Weights of Primus and of the residual-encoder U-Net, ours or under the names that nnssl, nnU-Net
and dynamic_network_architectures give them, for an encoder of ours.

Where both are known, an encoder of other channels, patches or crops is fitted as any ViT is.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.models.masked import MaskedMethod
from mim3d.engine.models.primus.config import PRIMUS_SIZES, PrimusConfig
from mim3d.engine.models.primus.names import ENCODER, KERNEL, POSITIONS, STEM, from_reference
from mim3d.engine.models.resenc import names as unet
from mim3d.engine.runs.address import local_run
from mim3d.engine.transfer.given_weights import GivenWeights, open_weights
from mim3d.engine.transfer.key_layouts import unwrapped
from mim3d.engine.transfer.nnssl_plan import pretrained_crop
from mim3d.engine.transfer.patch_embedding import other_channels
from mim3d.engine.transfer.start_report import Start

FIRST_NORM = f"{ENCODER}.blocks.0.norm1.weight"
TURNED = (
    "nnssl's EvaMAE numbers tokens by y, z, x and its network by z, y, x: positions are taken as "
    "nnU-Net takes them, with the first two axes of a cube as they are"
)


def after(name: str, names: Iterable[str]) -> str | None:
    """What stands before a name in a file, or None where it is not there."""
    found = [whole.removesuffix(name) for whole in names if whole.endswith(name)]
    return min(found, key=len) if found else None


def primus_state(
    given: GivenWeights, wanted: PrimusConfig, start: Start
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A Primus's tensors under our names without `encoder.`, and a card that tells its shape.

    The patch embedding of the reference stays a convolution's kernel.
    """
    named = {unwrapped(name): tensor for name, tensor in given.tensors.items()}
    prefix = after(FIRST_NORM, named)
    if prefix is None:
        return own_state(named, given, start)
    part = {name[len(prefix) :]: t for name, t in named.items() if name.startswith(prefix)}
    kept = (f"{ENCODER}.", f"{STEM}.", "register_tokens")
    start.left += sorted(name for name in part if not name.startswith(kept))
    if any(name.startswith("decoder.blocks.") for name in part):
        start.notes.append(TURNED)
    part = {name: tensor for name, tensor in part.items() if name.startswith(kept)}
    there = shape_there(part, given, wanted)
    state = from_reference(part, there, given.place)
    state["patch_embed.weight"] = part[f"{KERNEL}.weight"]
    start.layout = "nnssl"
    plain = {"crop_size": there.crop_size, "patch_size": there.patch_size, "heads": there.heads}
    return state, {**given.card, "vit": {**plain, "channels": there.channels}}


def own_state(
    named: Mapping[str, Tensor], given: GivenWeights, start: Start
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The same of a run of ours, its whole method or its encoder alone."""
    prefix = after("blocks.0.attn.q_bias", [n for n in named if "decoder" not in n])
    if prefix is None:
        raise CheckpointError(
            f"{given.place} holds no Primus (neither {FIRST_NORM} nor blocks.0.attn.q_bias): take "
            "a vit recipe for a plain transformer's weights"
        )
    part = {name[len(prefix) :]: t for name, t in named.items() if name.startswith(prefix)}
    return part, dict(given.card)


def shape_there(
    part: Mapping[str, Tensor], given: GivenWeights, wanted: PrimusConfig
) -> PrimusConfig:
    """The configuration of the Primus in a file; a ConfigError where no fitting makes it ours."""
    kernel, table = part.get(f"{KERNEL}.weight"), part.get(POSITIONS)
    if kernel is None or table is None:
        raise CheckpointError(
            f"{given.place} has {ENCODER}.blocks and no {KERNEL}.weight or {POSITIONS}: give a "
            "file of the whole network"
        )
    blocks = {name.split(".")[2] for name in part if name.startswith(f"{ENCODER}.blocks.")}
    width, depth = part[FIRST_NORM].numel(), len(blocks)
    hidden = part[f"{ENCODER}.blocks.0.mlp.fc2.weight"].shape[1]
    if (width, depth) != (wanted.width, wanted.depth) or hidden != int(width * wanted.mlp_ratio):
        raise ConfigError(
            f"{given.place} holds a Primus of another shape: set --vit.width {width} --vit.depth "
            f"{depth} --vit.mlp-ratio {hidden / width:.6g}"
        )
    refuse_other_heads(given, wanted)
    z, y, x = kernel.shape[2:]
    registers = part["register_tokens"].shape[1] if "register_tokens" in part else 0
    inner = f"{ENCODER}.blocks.0.attn.norm.weight" in part
    scaled = f"{ENCODER}.blocks.0.gamma_1" in part
    crop = crop_there(table.shape[1] - registers, (z, y, x), given, wanted)
    return replace(
        wanted,
        crop_size=crop,
        patch_size=(z, y, x),
        channels=kernel.shape[1],
        registers=registers,
        inner_norm=inner,
        layer_scale=(wanted.layer_scale or 0.1) if scaled else 0.0,
        position="learned",
    )


def refuse_other_heads(given: GivenWeights, wanted: PrimusConfig) -> None:
    """A ConfigError where the plan names a size of other heads: no shape shows them."""
    plan = given.card.get("nnssl") or {}
    name = str((plan.get("architecture_plans") or {}).get("arch_class_name", ""))
    size = PRIMUS_SIZES.get(name.removeprefix("Primus"))
    if size and size[2] != wanted.heads:
        raise ConfigError(
            f"{given.place} is a {name} of {size[2]} attention heads and vit.heads is "
            f"{wanted.heads}: set --vit.heads {size[2]}"
        )


def crop_there(
    count: int, patch: tuple[int, int, int], given: GivenWeights, wanted: PrimusConfig
) -> tuple[int, int, int]:
    """Voxels of the crop whose patches have so many positions: as told, as ours, or a cube."""
    edge = round(count ** (1 / 3))
    pretrained = pretrained_crop(given.card)
    grids = [
        tuple(c // p for c, p in zip(pretrained, patch, strict=False)),
        wanted.grid,
        (edge,) * 3,
    ]
    for grid in grids:
        if len(grid) == 3 and math.prod(grid) == count:
            z, y, x = (cells * size for cells, size in zip(grid, patch, strict=True))
            return z, y, x
    raise ConfigError(
        f"{given.place} has {count} positions, no cube and not {wanted.grid} of vit.crop_size: set "
        "--vit.crop-size to that of its pretraining"
    )


def resenc_tensors(
    module: nn.Module, given: GivenWeights, channels: int, choice: str, start: Start
) -> dict[str, Tensor]:
    """A U-Net's tensors under the names of `module`: its encoder's, and a pretext's decoder's."""
    named = {unwrapped(name): tensor for name, tensor in given.tensors.items()}
    own = {f"encoder.{n}": t for n, t in module.get_submodule("encoder").state_dict().items()}
    prefix = after("encoder.stem.convs.0.conv.weight", [n for n in named if unet.INSIDE not in n])
    if prefix is None:
        bare = "stem.conv.weight" in named
        found = {f"encoder.{n}": t for n, t in named.items()} if bare else dict(named)
        stems = ["encoder.stem.conv.weight"]
    else:
        found = {n[len(prefix) :]: t for n, t in named.items() if n.startswith(prefix)}
        stems = [name for name in found if name.endswith(STEM_KERNELS)]
    if stems[0] not in found:
        raise CheckpointError(
            f"{given.place} holds no residual-encoder U-Net (no encoder.stem): take the recipe of "
            "the encoder it has"
        )
    how = ""
    for name in stems:
        found[name], how = other_channels(found[name], channels, choice)
    start.resized += [f"stem ({how})"] * bool(how)
    if prefix is None:
        return found
    start.layout = "nnssl"
    if isinstance(module, MaskedMethod):
        decoder = {
            f"decoder.{n}": t for n, t in module.get_submodule("decoder").state_dict().items()
        }
        theirs = {n: found.get(unet.reference_name(n)) for n in decoder}
        if all(t is not None and t.shape == decoder[n].shape for n, t in theirs.items()):
            own |= decoder
    whole = any(name.startswith("decoder.") for name in own)
    known = ("encoder.", "decoder.") if whole else ("encoder.",)
    start.left += sorted(name for name in found if not name.startswith((*known, unet.INSIDE)))
    part = {name: t for name, t in found.items() if name.startswith(known)}
    return unet.from_reference(part, own, given.place)


STEM_KERNELS = tuple(f"{name}.weight" for name in unet.IN_PROJ)


def unet_decoder(run: str | Path) -> dict[str, Tensor] | None:
    """The decoder that a run pretrained with its U-Net, or None where it is not kept."""
    if not local_run(run).is_dir():
        return None
    tensors = open_weights(run).tensors
    inside = "decoder."
    found = {n.removeprefix(inside): t for n, t in tensors.items() if n.startswith(inside)}
    return found or None
