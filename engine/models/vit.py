"""The 3D vision transformer that every method trains: pre-norm blocks over patch rows."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from mim3d.engine.arithmetic.recompute import Recomputed
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import ViTConfig
from mim3d.kernels.patch_rows import gather_patch_rows


class Attention(nn.Module):
    """Multi-head self-attention (b, n, d) -> (b, n, d) by `scaled_dot_product_attention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend among all tokens."""
        b, n, d = tokens.shape
        qkv = self.qkv(tokens).view(b, n, 3, self.heads, d // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    """Two linear layers with GELU between, (b, n, d) -> (b, n, d)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply to each token."""
        return self.fc2(functional.gelu(self.fc1(tokens)))


class SkippedBlock(Recomputed):
    """A block of residual branches (b, n, d), left out for some samples while training."""

    drop_path = 0.0
    """How often a sample skips a branch while training."""

    @property
    def draws(self) -> bool:
        """Who skips is drawn."""
        return self.drop_path > 0.0

    def kept(self, branch: Tensor) -> Tensor:
        """A branch's output, left out for some samples.

        Those that stay are scaled up, so that the mean is kept (Huang et al. 2016).
        """
        if not self.drop_path or not self.training or not torch.is_grad_enabled():
            return branch
        stays = branch.new_empty(len(branch), 1, 1).bernoulli_(1.0 - self.drop_path)
        return branch * (stays / (1.0 - self.drop_path))


class Block(SkippedBlock):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def mix(self, tokens: Tensor) -> Tensor:
        """One round of attention and MLP, each with its residual."""
        tokens = tokens + self.kept(self.attn(self.norm1(tokens)))
        return tokens + self.kept(self.mlp(self.norm2(tokens)))


def set_drop_path(blocks: nn.ModuleList, rate: float) -> None:
    """Skip branches: never in the first block, at `rate` in the last, evenly between."""
    for number, block in enumerate(blocks):
        assert isinstance(block, SkippedBlock)
        block.drop_path = rate * number / max(len(blocks) - 1, 1)


class ViT3D(nn.Module):
    """Volume (b, c, z, y, x), or rows of some of its patches, to tokens (b, n, d)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = nn.Linear(config.row_width, config.width)
        self.register_buffer("sincos", None, persistent=False)
        self.pos_embed: nn.Parameter | None = None
        if config.position == "sincos":
            self.sincos = sincos_positions(config.grid, config.width)
        else:
            self.pos_embed = nn.Parameter(torch.zeros(config.n_patches, config.width))
        self.blocks = self.make_blocks(config)
        self.norm = self.make_norm(config)
        self.apply(initialise_linear)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def make_blocks(self, config: ViTConfig) -> nn.ModuleList:
        """The blocks that tokens go through."""
        return nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )

    def make_norm(self, config: ViTConfig) -> nn.LayerNorm:
        """The norm behind them."""
        return nn.LayerNorm(config.width)

    def positions(self) -> Tensor:
        """Positions of all patches, (n, d)."""
        table = self.sincos if self.pos_embed is None else self.pos_embed
        assert table is not None
        return table

    def embed(self, rows: Tensor, ids: Tensor | None = None) -> Tensor:
        """Tokens (b, n, d) of patch rows (b, n, k); `ids` (b, n) are their patch numbers.

        Without `ids` the rows are all patches in order.
        """
        weight = self.patch_embed.weight
        tokens = self.patch_embed(rows.to(weight.dtype))
        table = self.positions().to(tokens.dtype)
        return tokens + (table if ids is None else table[ids])

    def encode(self, tokens: Tensor, ids: Tensor | None = None) -> Tensor:
        """Blocks and the last norm over embedded tokens; `ids` are for blocks that ask where."""
        for state in self.states_of(tokens, ids):
            tokens = state
        return self.norm(tokens)

    def states_of(self, tokens: Tensor, ids: Tensor | None = None) -> Iterator[Tensor]:
        """Tokens (b, n, d) after every block, one after the other, not normed."""
        for block in self.blocks:
            tokens = block(tokens)
            yield tokens

    def forward_rows(self, rows: Tensor, ids: Tensor | None = None) -> Tensor:
        """Encode the given patches only: rows (b, v, k) and their numbers -> (b, v, d)."""
        return self.encode(self.embed(rows, ids), ids)

    def forward(self, volume: Tensor) -> Tensor:
        """Encode every patch of a volume (b, c, z, y, x): (b, n, d)."""
        return self.forward_rows(self.all_rows(volume))

    def hidden_states(self, volume: Tensor) -> list[Tensor]:
        """Tokens (b, n, d) after every block, not normed; the skips of a UNETR decoder."""
        return list(self.states_of(self.embed(self.all_rows(volume))))

    def all_rows(self, volume: Tensor) -> Tensor:
        """Rows (b, n, k) of every patch, in C order of the patch grid."""
        if tuple(volume.shape[1:]) != (self.config.channels, *self.config.crop_size):
            raise ConfigError(
                f"a volume of shape {tuple(volume.shape)} was given to an encoder for "
                f"(b, {self.config.channels}, {', '.join(map(str, self.config.crop_size))})"
            )
        ids = torch.arange(self.config.n_patches, device=volume.device)
        ids = ids.expand(volume.shape[0], -1)
        dtype = self.patch_embed.weight.dtype
        return gather_patch_rows(volume, ids, self.config.patch_size, out_dtype=dtype)


def initialise_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases, as MAE has them (He et al. 2022, appendix A)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sincos_positions(grid: tuple[int, int, int], width: int, base: float = 10_000.0) -> Tensor:
    """Positions (n, width) float32 of the patches of a `grid` (z, y, x), in C order.

    Each axis has `width // 6` frequencies, a sine and a cosine of each (Vaswani et al. 2017,
    section 3.5, once per axis); where 6 does not divide `width` the last columns are zero.
    """
    n_frequencies = width // 6
    if n_frequencies < 1:
        raise ValueError(f"sin-cos positions need a width of at least 6, got {width}")
    rates = torch.exp(-math.log(base) * torch.arange(n_frequencies) / n_frequencies)
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    angles = torch.stack(axes, dim=-1).reshape(-1, 3, 1) * rates
    table = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return torch.nn.functional.pad(table, (0, width - table.shape[1]))


def resize_positions(table: Tensor, old: tuple[int, int, int], new: tuple[int, int, int]) -> Tensor:
    """Trilinearly resize learned positions (n_old, d) of grid `old` to grid `new`: (n_new, d)."""
    if old == new:
        return table
    volume = table.reshape(1, *old, -1).permute(0, 4, 1, 2, 3)
    resized = torch.nn.functional.interpolate(
        volume.float(), size=new, mode="trilinear", align_corners=False
    )
    return resized.flatten(2)[0].T.to(table.dtype)
