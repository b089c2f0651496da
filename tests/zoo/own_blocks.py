"""Small models of blocks that no adapter covers."""

from collections.abc import Callable

import timm.layers
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

WIDTH, HEADS, DEPTH = 16, 2, 3


def heads_of(tokens: Tensor) -> Tensor:
    return tokens.unflatten(2, (HEADS, -1)).transpose(1, 2)


class Trunk(nn.Module):
    """A token for every pixel; blocks that take nothing else."""

    def __init__(self, make_block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 1)
        self.stack = nn.ModuleList(make_block() for _ in range(DEPTH))

    def tokens(self, image: Tensor) -> Tensor:
        return self.embed(image).flatten(2).mT

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.tokens(image)
        for block in self.stack:
            tokens = block(tokens)
        return tokens


class RotaryAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, angles: Tensor) -> Tensor:
        query, key, value = map(heads_of, self.qkv(hidden).chunk(3, -1))
        query, key = rotate(query, angles), rotate(key, angles)
        return self.out(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def rotate(rows: Tensor, angles: Tensor) -> Tensor:
    """Pairs of channels of (batch, heads, tokens, channels), by angles (batch or 1, tokens, channels / 2)."""
    angles = angles if angles.ndim == 2 else angles[:, None]
    first, second = rows.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class RotaryBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), RotaryAttention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, hidden: Tensor, angles: Tensor) -> tuple[Tensor, None]:
        hidden = hidden + self.attention(self.norm(hidden), angles)
        return hidden + self.mlp(hidden), None


class RotaryModel(Trunk):
    """Its angles have a batch dimension or none. They are equal within cells of 2 x 2."""

    def __init__(self, batched: bool) -> None:
        super().__init__(RotaryBlock)
        self.batched = batched

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.tokens(image)
        rows, columns = torch.meshgrid(*(torch.arange(size) // 2 for size in image.shape[-2:]), indexing="ij")
        angles = torch.stack([rows, columns, rows + columns, rows - columns], -1).flatten(0, 1) / 2
        for block in self.stack:
            tokens, _ = block(tokens, angles[None] if self.batched else angles)
        return tokens


class DiTBlock(nn.Module):
    """As in the original DiT repository: (x, c), adaptive layer norm with gates, timm's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.attn = timm.layers.Attention(WIDTH, HEADS, qkv_bias=True)
        self.mlp = timm.layers.Mlp(WIDTH, 32)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(c)[:, None].chunk(6, -1)
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift)
        return x + mlp_gate * self.mlp(self.norm2(x) * (1 + mlp_scale) + mlp_shift)


class DiT(Trunk):
    def __init__(self) -> None:
        super().__init__(DiTBlock)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        tokens = self.tokens(x)
        for block in self.stack:
            tokens = block(tokens, c)
        return tokens


class UViTBlock(nn.Module):
    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.skip_linear = nn.Linear(2 * WIDTH, WIDTH) if skip else None
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = timm.layers.Attention(WIDTH, HEADS), timm.layers.Mlp(WIDTH, 32)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, skip], -1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(nn.Module):
    """The time is a token in front, and later blocks take the tokens of earlier ones over a long skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.time = nn.Conv2d(3, WIDTH, 1), nn.Linear(1, WIDTH)
        self.in_blocks = nn.ModuleList(UViTBlock(False) for _ in range(2))
        self.mid_block = UViTBlock(False)
        self.out_blocks = nn.ModuleList(UViTBlock(True) for _ in range(2))

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        tokens = torch.cat([self.time(time[:, None])[:, None], self.embed(image).flatten(2).mT], 1)
        skips = []
        for block in self.in_blocks:
            tokens = block(tokens)
            skips.append(tokens)
        tokens = self.mid_block(tokens)
        for block in self.out_blocks:
            tokens = block(tokens, skips.pop())
        return tokens


class OwnSoftmax(nn.Module):
    """Attention that calls none of torch's attention functions."""

    def forward(self, tokens: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        query = heads_of(tokens)
        return ((query @ query.mT + bias).softmax(-1) @ query).transpose(1, 2).flatten(2)
