"""An encoder as a checkpoint with adaptation plan, as nnU-Net fine-tunes from.

A Primus of a published size and a U-Net are loaded by stock nnU-Net (pretrained trainers of its
main branch; a U-Net with its decoder by `-pretrained_weights` of 2.8.1 too).

nnU-Net's Primus cannot hold our plain ViT: its blocks are fixed to a gated MLP with an inner norm
and to rotary positions. The `Eva` class that Primus is made of can, with both turned off:
`examples/nnunet/mim3d_trainer.py` has the network and the trainer, which nnU-Net finds by its
variable nnUNet_extTrainer. The plan's format is nnssl's (adaptation_plan.py), of plain types, so
that `torch.load(weights_only=True)` reads it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.primus import names as primus_names
from mim3d.engine.models.primus.config import PRIMUS_SIZES, PrimusConfig
from mim3d.engine.models.resenc import names as unet_names
from mim3d.engine.models.resenc.config import ResEncConfig
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.runs.encoder_file import load_encoder, load_resenc
from mim3d.engine.runs.tensor_files import save_pickled

NETWORK, TRAINER = "Mim3dPrimus", "PretrainedTrainer_Mim3d"
PRIMUS_KEYS = {
    "key_to_encoder": primus_names.ENCODER,
    "key_to_stem": primus_names.STEM,
    "keys_to_in_proj": [primus_names.KERNEL],
    "key_to_lpe": primus_names.POSITIONS,
}
UNET_KEYS = {
    "key_to_encoder": unet_names.STAGES,
    "key_to_stem": unet_names.STEM,
    "keys_to_in_proj": list(unet_names.IN_PROJ),
    "key_to_lpe": None,
}
BLOCK_NAMES = {
    "norm1.": "norm1.",
    "norm2.": "norm2.",
    "attn.proj.": "attn.proj.",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
}


def write_nnunet(
    run: str | Path,
    card: dict[str, Any],
    target: Path,
    decoder: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Write the checkpoint to `target` (.pth); returns what its card tells beside provenance.

    `decoder` is a U-Net's, which goes with its encoder.
    """
    stock = {"primus": primus_form, "resenc": resenc_form}.get(card["kind"])
    if stock is not None:
        weights, plan, described = stock(run, card, decoder)
        save_checkpoint(target, weights, plan, card)
        return {**described, "tensors": len(weights)}
    encoder = load_encoder(run)
    require_decodable(run, encoder.config)
    weights = eva_weights(encoder)
    plan = adaptation_plan(encoder.config, str(card.get("method", "mim3d")))
    save_checkpoint(target, weights, plan, card)
    return {
        "loads_into": f"{NETWORK} of examples/nnunet/mim3d_trainer.py",
        "arguments": plan["architecture_plans"]["arch_kwargs"],
        "trainer": TRAINER,
        "expected_missing": ["up_projection*", "mask_token"],
        "tensors": len(weights),
    }


def save_checkpoint(
    target: Path, weights: dict[str, Tensor], plan: dict[str, Any], card: dict[str, Any]
) -> None:
    """Write what nnU-Net's loaders ask for."""
    content = {
        "network_weights": weights,
        "nnssl_adaptation_plan": plan,
        "trainer_name": f"mim3d-{card.get('method', 'unknown')}",
        "citations": [],
    }
    save_pickled(content, target)


def require_decodable(run: str | Path, vit: ViTConfig) -> None:
    """A ConfigError where Primus's decoder, which doubles the grid each stage, has no way back."""
    if any(size & (size - 1) for size in vit.patch_size):
        raise ConfigError(
            f"{run} has vit.patch_size {vit.patch_size}; the decoder of nnU-Net's Primus doubles "
            "its grid at each stage, so patches must be powers of two. Export as safetensors"
        )


def eva_weights(encoder: ViT3D) -> dict[str, Tensor]:
    """State of Primus's stem and `Eva` (plain MLP, no rotary positions) with the same function.

    Eva's keys have no bias. Ours adds the same number to all scores of a query, which the softmax
    takes away again, so it is left out.
    """
    state = {
        "down_projection.proj.weight": patch_kernel(encoder).clone(),
        "down_projection.proj.bias": encoder.patch_embed.bias.detach().clone(),
        "eva.pos_embed": encoder.positions().detach().clone()[None],
    }
    for name, tensor in encoder.state_dict().items():
        if name.startswith("norm."):
            state[f"eva.{name}"] = tensor.clone()
        elif name.startswith("blocks."):
            state |= block_tensors(name, tensor)
    return state


def patch_kernel(encoder: ViT3D) -> Tensor:
    """The patch embedding as a convolution's kernel (d, c, pz, py, px), without row padding."""
    config = encoder.config
    used = encoder.patch_embed.weight.detach()[:, : config.channels * config.patch_voxels]
    return used.reshape(config.width, config.channels, *config.patch_size)


def block_tensors(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of a block under Eva's names; qkv falls into its parts."""
    _, number, part = name.split(".", 2)
    prefix = f"eva.blocks.{number}"
    if part == "attn.qkv.weight":
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{prefix}.attn.{key}_proj.weight": piece.clone() for key, piece in parts}
    if part == "attn.qkv.bias":
        query, _, value = tensor.chunk(3)
        return {
            f"{prefix}.attn.q_proj.bias": query.clone(),
            f"{prefix}.attn.v_proj.bias": value.clone(),
        }
    for ours, theirs in BLOCK_NAMES.items():
        if part.startswith(ours):
            return {f"{prefix}.{theirs}{part.removeprefix(ours)}": tensor.clone()}
    raise ConfigError(f"{name} has no place in nnU-Net's Eva: export as safetensors")


def adaptation_plan(
    vit: ViTConfig,
    method: str,
    architecture: dict[str, Any] | None = None,
    keys: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What nnU-Net asks of a checkpoint: architecture, pretraining crop, and where weights lie.

    Without `architecture` and `keys` those of a plain ViT.

    The spacing is left open, as a corpus keeps each volume's own: nnU-Net then takes the
    fine-tuning dataset's. Its axes are z, y, x as ours are.
    """
    crop = list(vit.crop_size)
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "mim3d_noresample",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": "noresample",
        "normalization_schemes": ["ZScoreNormalization"] * vit.channels,
        "use_mask_for_norm": [False] * vit.channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_mask": "resample_data_or_seg_to_shape",
        "resampling_fn_mask_kwargs": {**resampling, "order": 1},
        "spacing": None,
        "patch_size": crop,
    }
    pretrain = {
        "dataset_name": "mim3d",
        "plans_name": f"mim3d_{method}",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "image_reader_writer": "NibabelIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"noresample": configuration},
        "experiment_planner_used": "mim3d",
    }
    return {
        "architecture_plans": architecture
        or {
            "arch_class_name": NETWORK,
            "arch_kwargs": network_arguments(vit),
            "arch_kwargs_requiring_import": [],
        },
        "pretrain_plan": pretrain,
        "pretrain_num_input_channels": vit.channels,
        "recommended_downstream_patchsize": crop,
        **(keys or PRIMUS_KEYS),
    }


def network_arguments(vit: ViTConfig) -> dict[str, Any]:
    """What builds the network, beside the fine-tuning dataset's channels, classes and crop."""
    return {
        "patch_embed_size": list(vit.patch_size),
        "embed_dim": vit.width,
        "eva_depth": vit.depth,
        "eva_numheads": vit.heads,
        "mlp_ratio": vit.mlp_ratio,
    }


Form = tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]
"""Weights, adaptation plan, and what the card tells of the network that loads them."""


def primus_form(
    run: str | Path, card: dict[str, Any], decoder: Mapping[str, Tensor] | None = None
) -> Form:
    """A Primus as nnU-Net's own, which it builds by the letter of its size."""
    encoder = load_encoder(run)
    config = encoder.config
    assert isinstance(config, PrimusConfig)
    if config.size_name is None:
        sizes = ", ".join(
            f"{name} {width} x {depth}, {heads} heads"
            for name, (width, depth, heads) in PRIMUS_SIZES.items()
        )
        raise ConfigError(
            f"{run} holds a Primus of vit.width {config.width}, vit.depth {config.depth}, "
            f"{config.registers} registers and patches {config.patch_size}; nnU-Net builds the "
            f"published ones only ({sizes}; patches of 8, no registers). Export as safetensors"
        )
    name = f"Primus{config.size_name}"
    weights = primus_names.to_reference(encoder.state_dict(), config)
    architecture = named_architecture(name)
    plan = adaptation_plan(config, str(card.get("method", "mim3d")), architecture)
    return weights, plan, {"loads_into": name, "trainer": "PretrainedTrainer_Primus",
                           "expected_missing": ["up_projection*", "mask_token"]}  # fmt: skip


def resenc_form(
    run: str | Path, card: dict[str, Any], decoder: Mapping[str, Tensor] | None = None
) -> Form:
    """A U-Net as nnU-Net's ResidualEncoderUNet; with its decoder where that is given."""
    encoder = load_resenc(run)
    config, vit = encoder.config, encoder.vit_config
    weights = unet_names.to_reference(encoder.state_dict(), decoder)
    architecture = (
        named_architecture("ResEncL") if config.is_published_l else unet_architecture(config)
    )
    plan = adaptation_plan(vit, str(card.get("method", "mim3d")), architecture, UNET_KEYS)
    missing = ["decoder*"] if decoder is None else []
    return weights, plan, {"loads_into": architecture["arch_class_name"],
                           "trainer": "PretrainedTrainer", "expected_missing": missing}  # fmt: skip


def named_architecture(name: str) -> dict[str, Any]:
    """An architecture that nnU-Net builds by name alone."""
    return {"arch_class_name": name, "arch_kwargs": None, "arch_kwargs_requiring_import": None}


def unet_architecture(config: ResEncConfig) -> dict[str, Any]:
    """nnssl's DynamicArchitecturePlans of a U-Net, classes by their full names."""
    stages = config.stages
    arguments = {
        "n_stages": stages,
        "features_per_stage": list(config.features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_blocks_per_stage": list(config.blocks),
        "n_conv_per_stage_decoder": [config.decoder_convs] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "arch_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": arguments,
        "arch_kwargs_requiring_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
