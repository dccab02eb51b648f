"""Primus's encoder: a ViT whose blocks know where tokens stand by turning queries and keys.

Native: no timm. Its weights are those of `Eva` and `PatchEmbed` in dynamic_network_architectures
0.4.4, see `names`. Rotary positions follow the patch numbers, so tokens may come in any order.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mim3d.engine.models.primus.blocks import NORM_EPS, PrimusBlock
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.primus.rotary import rotary_table, turns_of
from mim3d.engine.models.vit import ViT3D, set_drop_path

NEGATIVE_SLOPE = 1e-2
"""Of the leaky ReLU that the patch embedding's He initialisation reckons with (InitWeights_He)."""


class Primus3D(ViT3D):
    """Volume (b, c, z, y, x), or rows of some of its patches, to tokens (b, n, d)."""

    config: PrimusConfig
    rotary: Tensor

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__(config)
        table = rotary_table(config.grid, config.width // config.heads)
        self.register_buffer("rotary", table, persistent=False)
        self.register_tokens = self.register_positions = None
        if config.registers:
            self.register_tokens = nn.Parameter(torch.empty(config.registers, config.width))
            self.register_positions = nn.Parameter(torch.empty(config.registers, config.width))
        self.initialise()

    def make_blocks(self, config: PrimusConfig) -> nn.ModuleList:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The blocks, later ones skipped more often."""
        blocks = nn.ModuleList(PrimusBlock(config) for _ in range(config.depth))
        set_drop_path(blocks, config.drop_path)
        return blocks

    def make_norm(self, config: PrimusConfig) -> nn.LayerNorm:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The last norm."""
        return nn.LayerNorm(config.width, NORM_EPS)

    def initialise(self) -> None:
        """Weights as Primus and Eva draw them."""
        initialise_blocks(self.blocks)
        fan_in = self.config.channels * self.config.patch_voxels
        nn.init.normal_(
            self.patch_embed.weight, std=math.sqrt(2.0 / (1 + NEGATIVE_SLOPE**2) / fan_in)
        )
        with torch.no_grad():
            self.patch_embed.weight[:, fan_in:] = 0.0
        nn.init.zeros_(self.patch_embed.bias)
        if self.register_tokens is not None and self.register_positions is not None:
            nn.init.normal_(self.register_tokens, std=1e-6)
            nn.init.trunc_normal_(self.register_positions, std=0.02)

    def states_of(self, tokens: Tensor, ids: Tensor | None = None) -> Iterator[Tensor]:
        """Tokens (b, n, d) of patches `ids` (b, n) after every block, without the registers."""
        extra = self.config.registers
        turns = turns_of(self.rotary, ids, extra)
        if self.register_tokens is not None and self.register_positions is not None:
            prefix = (self.register_tokens + self.register_positions).to(tokens.dtype)
            tokens = torch.cat([prefix.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens, turns)
            yield tokens[:, extra:]


def initialise_blocks(blocks: nn.ModuleList) -> None:
    """Narrow normal weights, and later blocks' last layers smaller (Eva.fix_init_weight)."""
    for number, block in enumerate(blocks, start=1):
        for module in block.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert isinstance(block, PrimusBlock)
        with torch.no_grad():
            block.attn.proj.weight /= math.sqrt(2.0 * number)
            block.mlp.fc2.weight /= math.sqrt(2.0 * number)
