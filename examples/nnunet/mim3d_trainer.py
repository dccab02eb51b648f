"""nnU-Net fine-tuning (its main branch after 2.8.1) from an encoder that mim3d pretrained.

    mim3d export RUN nnunet encoder.pth
    export nnUNet_extTrainer=.../examples/nnunet
    nnUNetv2_extract_fingerprint -d 4 && nnUNetv2_plan_experiment -d 4
    nnUNetv2_preprocess_like_nnssl -d 4 -n mim3d -pc encoder.pth -am like_pretrained
    nnUNetv2_train_pretrained 4 3d_fullres 0 -p ptPlans__mim3d____... -tr PretrainedTrainer_Mim3d

nnU-Net's Primus has gated MLPs and rotary positions; what mim3d pretrains is a plain pre-norm ViT.
The network below is Primus with its encoder built of the same `Eva` blocks without both. It needs
nothing of mim3d, so nnU-Net may live in an environment of its own.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.building_blocks.eva import Eva
from nnunetv2.training.nnUNetTrainer.pretraining.pretrainedTrainer import PretrainedTrainer_Primus
from torch import nn


class Mim3dPrimus(Primus):
    """Primus whose encoder is a plain pre-norm ViT; crops (b, c, z, y, x) to class scores."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        input_shape: Sequence[int],
        patch_embed_size: Sequence[int],
        embed_dim: int,
        eva_depth: int,
        eva_numheads: int,
        mlp_ratio: float,
        drop_path_rate: float = 0.0,
    ) -> None:
        shape, patch = tuple(input_shape), tuple(patch_embed_size)
        # Depth 1: the encoder that Primus would build is replaced below.
        super().__init__(
            input_channels, embed_dim, patch, num_classes, 1, eva_numheads, shape,
            use_rot_pos_emb=False,
        )  # fmt: skip
        self.eva = Eva(
            embed_dim,
            eva_depth,
            eva_numheads,
            mlp_ratio=mlp_ratio,
            swiglu_mlp=False,
            scale_mlp=False,
            use_rot_pos_emb=False,
            norm_layer=partial(nn.LayerNorm, eps=1e-5),
            ref_feat_shape=tuple(s // p for s, p in zip(shape, patch, strict=True)),
            drop_path_rate=drop_path_rate,
        )


class PretrainedTrainer_Mim3d(PretrainedTrainer_Primus):  # noqa: N801  nnU-Net's manner of names
    """nnU-Net's trainer for pretrained transformers, over the network above."""

    @staticmethod
    def build_network_architecture(
        plans_manager: Any = None,
        configuration_manager: Any = None,
        num_input_channels: int = 1,
        num_output_channels: int = 2,
        enable_deep_supervision: bool = False,
        *,
        arch_init_kwargs: dict[str, Any] | None = None,
        input_patch_size: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        """The network that the plans describe.

        Prediction gives the managers, the trainer's `initialize` their contents.
        """
        if configuration_manager is not None:
            arch_init_kwargs = configuration_manager.network_arch_init_kwargs
            input_patch_size = configuration_manager.patch_size
        if not arch_init_kwargs or input_patch_size is None:
            raise ValueError(
                "the plans do not tell the network: make them by nnUNetv2_preprocess_like_nnssl "
                "from a file of `mim3d export RUN nnunet`"
            )
        return Mim3dPrimus(
            num_input_channels, num_output_channels, input_patch_size, **arch_init_kwargs
        )
