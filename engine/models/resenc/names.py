"""The U-Net's tensors under the reference's names, and back; nothing is left over on either side.

ResidualEncoderUNet of dynamic_network_architectures registers a convolution and its norm twice
(`conv` and `all_modules.0`, `norm` and `all_modules.1`) and the encoder once more inside the
decoder. All of these aliases are written, and on the way back they must agree.

    ours                                 theirs, under `encoder.` or `decoder.`
    stem                                 stem.convs.0
    stages.1.blocks.0.conv1, conv2       stages.1.blocks.0.conv1, conv2
    stages.1.blocks.0.skip               stages.1.blocks.0.skip.1 (0 where nothing is averaged)
    levels.0.up                          transpconvs.0
    levels.0.convs.0                     stages.0.convs.0
    seg_layers.0                         seg_layers.0
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mim3d.engine.errors import CheckpointError

ALIASES = ((".conv.", ".all_modules.0."), (".norm.", ".all_modules.1."))
INSIDE = "decoder.encoder."
STAGES, STEM = "encoder.stages", "encoder.stem"
IN_PROJ = (f"{STEM}.convs.0.conv", f"{STEM}.convs.0.all_modules.0")


def reference_name(name: str) -> str:
    """The reference's name for a tensor named as in {encoder: ..., decoder: ...} of ours."""
    name = re.sub(r"^encoder\.stem\.", "encoder.stem.convs.0.", name)
    name = re.sub(r"^(encoder\.stages\.0\.blocks\.0\.skip)\.", r"\1.0.", name)
    name = re.sub(r"^(encoder\.stages\.\d+\.blocks\.\d+\.skip)\.(conv|norm)", r"\1.1.\2", name)
    name = re.sub(r"^decoder\.levels\.(\d+)\.up\.", r"decoder.transpconvs.\1.", name)
    return re.sub(r"^decoder\.levels\.(\d+)\.convs\.", r"decoder.stages.\1.convs.", name)


def aliases(name: str) -> list[str]:
    """All names that the reference has for a tensor, the plainest first."""
    found = [name]
    for plain, other in ALIASES:
        if plain in name:
            found.append(name.replace(plain, other))
    if name.startswith("encoder."):
        found += [INSIDE + each.removeprefix("encoder.") for each in found]
    return found


def to_reference(
    encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The states of a ResEncEncoder and, if given, a ResEncDecoder as the reference's.

    Without a decoder the encoder stands alone, not inside one as well.
    """
    found: dict[str, Tensor] = {}
    parts = {"encoder": encoder, "decoder": decoder or {}}
    for part, state in parts.items():
        for name, tensor in state.items():
            kept = tensor.detach().clone().contiguous()
            for alias in aliases(reference_name(f"{part}.{name}")):
                if decoder is not None or not alias.startswith(INSIDE):
                    found[alias] = kept
    return found


def from_reference(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], place: object
) -> dict[str, Tensor]:
    """The reference's tensors under our names, for a state `wanted` of ours.

    `wanted` is named encoder.* and decoder.*. CheckpointError where a tensor is missing, foreign,
    of another shape, or where two names of one tensor differ. A decoder that is not wanted stays
    behind.
    """
    left, found = dict(given), {}
    for name, own in wanted.items():
        theirs = [alias for alias in aliases(reference_name(name)) if alias in left]
        if not theirs:
            raise CheckpointError(f"{place} has no {reference_name(name)}, which this U-Net has")
        first, *others = (left.pop(alias) for alias in theirs)
        if any(not torch.equal(first, other) for other in others):
            raise CheckpointError(
                f"{place}: {theirs[0]} and {theirs[1]} differ, and are one tensor"
            )
        if first.shape != own.shape:
            raise CheckpointError(
                f"{place}: {theirs[0]} is {tuple(first.shape)} there and {tuple(own.shape)} here; "
                "resenc.features and vit.channels decide"
            )
        found[name] = first
    whole = any(name.startswith("decoder.") for name in wanted)
    foreign = [name for name in left if whole or not name.startswith("decoder.")]
    if foreign:
        raise CheckpointError(
            f"{place} holds {min(foreign)}, for which a U-Net of these resenc.blocks has no place"
        )
    return found
