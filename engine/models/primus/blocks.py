"""Primus's transformer block: rotary attention, gated MLP, layer scale, stochastic depth."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.primus.rotary import turn
from mim3d.engine.models.vit import SkippedBlock

NORM_EPS = 1e-5


class RotaryAttention(nn.Module):
    """Attention (b, n, d) -> (b, n, d) whose queries and keys are turned by their places.

    Keys have no bias. One product gives all three, as timm's fused layout has it.
    """

    def __init__(self, width: int, heads: int, inner_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width, NORM_EPS) if inner_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, turns: Tensor) -> Tensor:
        """Attend among all tokens; `turns` are `rotary.turns_of`."""
        b, n, d = tokens.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = functional.linear(tokens, self.qkv.weight, bias)
        qkv = qkv.view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        query, key = turn(query, turns), turn(key, turns)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(self.norm(mixed.transpose(1, 2).reshape(b, n, d)))


class GatedMlp(nn.Module):
    """SwiGLU with a norm inside (Shazeer 2020; Fang et al. 2023, EVA-02), (b, n, d) -> (b, n, d).

    `fc1` gives the gate and, after it, the value.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden)
        self.norm = nn.LayerNorm(hidden, NORM_EPS)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply to each token."""
        gate, value = self.fc1(tokens).chunk(2, dim=-1)
        return self.fc2(self.norm(functional.silu(gate) * value))


class PrimusBlock(SkippedBlock):
    """A pre-norm block of rotary attention and a gated MLP."""

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, NORM_EPS)
        self.attn = RotaryAttention(width, config.heads, config.inner_norm)
        self.norm2 = nn.LayerNorm(width, NORM_EPS)
        self.mlp = GatedMlp(width, int(width * config.mlp_ratio))
        self.scale1 = self.scale2 = None
        if config.layer_scale:
            self.scale1 = nn.Parameter(torch.full((width,), config.layer_scale))
            self.scale2 = nn.Parameter(torch.full((width,), config.layer_scale))

    def mix(self, tokens: Tensor, turns: Tensor) -> Tensor:
        """One round of attention and MLP, each with its residual; `turns` are `rotary.turns_of`."""
        tokens = tokens + self.kept(scaled(self.attn(self.norm1(tokens), turns), self.scale1))
        return tokens + self.kept(scaled(self.mlp(self.norm2(tokens)), self.scale2))


def scaled(branch: Tensor, scale: Tensor | None) -> Tensor:
    """A branch's output times its layer's own factors, where there are any."""
    return branch if scale is None else branch * scale
