"""Primus's tensors under the reference's names, and back; nothing is left over on either side.

ours                                    dynamic_network_architectures' Primus
patch_embed.weight (d, row)             down_projection.proj.weight (d, c, pz, py, px)
pos_embed (n, d), register_positions    eva.pos_embed (1, registers + n, d)
register_tokens (r, d)                  register_tokens (1, r, d)
blocks.0.attn.qkv, q_bias, v_bias       eva.blocks.0.attn.q_proj, k_proj, v_proj
blocks.0.mlp.fc1 (gate, then value)     eva.blocks.0.mlp.fc1_g, fc1_x
blocks.0.scale1, scale2                 eva.blocks.0.gamma_1, gamma_2
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mim3d.engine.errors import CheckpointError
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.vit import sincos_positions

STEM, ENCODER, DECODER = "down_projection", "eva", "up_projection"
KERNEL, POSITIONS = f"{STEM}.proj", f"{ENCODER}.pos_embed"
SPLIT = {"fc1": ("fc1_g", "fc1_x")}
SCALES = {"scale1": "gamma_1", "scale2": "gamma_2"}


def to_reference(state: Mapping[str, Tensor], config: PrimusConfig) -> dict[str, Tensor]:
    """A Primus3D's state as Primus has it: stem, `eva` and registers."""
    voxels = config.channels * config.patch_voxels
    kernel = state["patch_embed.weight"][:, :voxels]
    found = {
        f"{KERNEL}.weight": kernel.reshape(-1, config.channels, *config.patch_size),
        f"{KERNEL}.bias": state["patch_embed.bias"],
        POSITIONS: reference_positions(state, config),
    }
    if config.registers:
        found["register_tokens"] = state["register_tokens"][None]
    for name, tensor in state.items():
        if name.startswith("norm."):
            found[f"{ENCODER}.{name}"] = tensor
        elif name.startswith("blocks."):
            found |= block_to_reference(name, tensor)
    return {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}


def reference_positions(state: Mapping[str, Tensor], config: PrimusConfig) -> Tensor:
    """Registers' positions and the patches', (1, r + n, d); fixed ones are written out."""
    table = state.get("pos_embed")
    if table is None:
        table = sincos_positions(config.grid, config.width)
    if config.registers:
        table = torch.cat([state["register_positions"], table])
    return table[None]


def block_to_reference(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of a block under the reference's names."""
    _, number, part = name.split(".", 2)
    base = f"{ENCODER}.blocks.{number}."
    if part == "attn.qkv.weight":
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{base}attn.{key}_proj.weight": piece for key, piece in parts}
    if part in {"attn.q_bias", "attn.v_bias"}:
        return {f"{base}attn.{part[5]}_proj.bias": tensor}
    if part.startswith("mlp.fc1."):
        leaf = part.removeprefix("mlp.fc1.")
        parts = zip(SPLIT["fc1"], tensor.chunk(2), strict=True)
        return {f"{base}mlp.{key}.{leaf}": piece for key, piece in parts}
    return {f"{base}{SCALES.get(part, part)}": tensor}


def from_reference(
    given: Mapping[str, Tensor], config: PrimusConfig, place: object
) -> dict[str, Tensor]:
    """A Primus's tensors as the state of a Primus3D of the same shape.

    The decoder (`up_projection`) and the mask token stay behind. CheckpointError where a tensor is
    missing, foreign or of another shape.
    """
    left = {
        name: tensor
        for name, tensor in given.items()
        if not name.startswith(f"{DECODER}.") and name != "mask_token"
    }
    state = take_stem(left, config, place)
    table = taken(left, POSITIONS, place).reshape(-1, config.width)
    if config.registers:
        state["register_tokens"] = taken(left, "register_tokens", place)[0]
        state["register_positions"] = table[: config.registers]
    if config.position == "learned":
        state["pos_embed"] = table[config.registers :]
    for leaf in ("weight", "bias"):
        state[f"norm.{leaf}"] = taken(left, f"{ENCODER}.norm.{leaf}", place)
    for number in range(config.depth):
        state |= take_block(left, number, config, place)
    if left:
        raise CheckpointError(
            f"{place} holds {min(left)}, for which a Primus of vit.depth {config.depth} and "
            f"vit.registers {config.registers} has no place"
        )
    return state


def take_stem(left: dict[str, Tensor], config: PrimusConfig, place: object) -> dict[str, Tensor]:
    """The patch embedding as a linear layer over padded rows."""
    kernel = taken(left, f"{KERNEL}.weight", place)
    wanted = (config.width, config.channels, *config.patch_size)
    if tuple(kernel.shape) != wanted:
        raise CheckpointError(
            f"{place}: {KERNEL}.weight is {tuple(kernel.shape)}, and vit.width, vit.channels and "
            f"vit.patch_size make {wanted}"
        )
    rows = kernel.flatten(1)
    rows = torch.nn.functional.pad(rows, (0, config.row_width - rows.shape[1]))
    return {"patch_embed.weight": rows, "patch_embed.bias": taken(left, f"{KERNEL}.bias", place)}


def take_block(
    left: dict[str, Tensor], number: int, config: PrimusConfig, place: object
) -> dict[str, Tensor]:
    """One block's tensors under our names."""

    def take(name: str) -> Tensor:
        return taken(left, f"{ENCODER}.blocks.{number}.{name}", place)

    state = {
        "attn.qkv.weight": torch.cat([take(f"attn.{key}_proj.weight") for key in "qkv"]),
        "attn.q_bias": take("attn.q_proj.bias"),
        "attn.v_bias": take("attn.v_proj.bias"),
    }
    for leaf in ("weight", "bias"):
        state[f"mlp.fc1.{leaf}"] = torch.cat([take(f"mlp.{key}.{leaf}") for key in SPLIT["fc1"]])
        same = ("norm1", "norm2", "attn.proj", "mlp.norm", "mlp.fc2")
        for layer in (*same, "attn.norm") if config.inner_norm else same:
            state[f"{layer}.{leaf}"] = take(f"{layer}.{leaf}")
    if config.layer_scale:
        state |= {ours: take(theirs) for ours, theirs in SCALES.items()}
    return {f"blocks.{number}.{name}": tensor for name, tensor in state.items()}


def taken(left: dict[str, Tensor], name: str, place: object) -> Tensor:
    """A tensor, which is then gone from `left`."""
    if name not in left:
        raise CheckpointError(f"{place} has no {name}, which a Primus of this shape has")
    return left.pop(name)
