"""Small models of blocks that no adapter knows, and where their tokens are: one `MergeSite` for each block.

Their positions are those of 2 x 2 cells, so that equal pixels of a cell are equal tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import timm.layers
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import ViTConfig, ViTModel

from catome_adapters import BlockLayout, Follow, MergeSite
from catome_adapters.grids import patches
from models import noise, seeded

WIDTH, HEADS, DEPTH = 16, 2, 3


class Foreign(NamedTuple):
    """A model, where its blocks keep their tokens, and what it is called with besides the image."""

    model: nn.Module
    sites: list[MergeSite]
    inputs: Callable[[int], tuple[Tensor, ...]] = lambda batch: ()

    def call(self, seed: int = 0, batch: int = 2, *, flat: bool = False) -> Tensor:
        """Of an image of 8 x 8 tokens; flat: all tokens of a cell are equal."""
        image = torch.cat([noise(1, 3, 8, 8, seed=10 * seed + index) for index in range(batch)])
        if flat:
            image = image[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2)
        result = self.model(image, *self.inputs(batch))
        return result if isinstance(result, Tensor) else result.last_hidden_state


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


# A block of one's own, with rotary positions.


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
    """Its angles have a batch dimension or none."""

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


def rotary(batched: bool = True) -> Foreign:
    model = RotaryModel(batched)
    layout = BlockLayout(output=0, follows=(Follow("angles"),), shared=not batched)
    return Foreign(
        model, [MergeSite(f"stack.{i}", b, b.attention, model, layout=layout) for i, b in enumerate(model.stack)]
    )


# The block of the original DiT repository: (x, c), adaptive layer norm with gates, timm's attention.


class DiTBlock(nn.Module):
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


def dit() -> Foreign:
    model = DiT()
    sites = [MergeSite(f"stack.{i}", block, block.attn, model) for i, block in enumerate(model.stack)]
    return Foreign(model, sites, lambda batch: (3 * noise(batch, WIDTH),))


# U-ViT: the time is a token in front, and later blocks take the tokens of earlier ones over a long skip connection.


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


def u_vit() -> Foreign:
    model = UViT()
    layout = BlockLayout(follows=(Follow("skip"),))
    blocks = {name: part for name, part in model.named_modules() if isinstance(part, UViTBlock)}
    sites = [MergeSite(name, block, block.attn, model, layout=layout, prefix=1) for name, block in blocks.items()]
    return Foreign(model, sites, lambda batch: (torch.arange(batch) / 2,))


# Layers of torch and of transformers.


def encoder() -> Foreign:
    model = Trunk(lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 32, dropout=0.0, batch_first=True, norm_first=True))
    layout = BlockLayout(attended=("query", "key", "value"))
    return Foreign(
        model, [MergeSite(f"stack.{i}", b, b.self_attn, model, layout=layout) for i, b in enumerate(model.stack)]
    )


def hugging_face_vit() -> Foreign:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 32}
    config = ViTConfig(**sizes, image_size=8, patch_size=1, attn_implementation="sdpa")
    model = ViTModel(config, add_pooling_layer=False)
    nn.init.zeros_(model.embeddings.position_embeddings)
    measure = patches("pixel_values", (1, 1))
    layers = {name: part for name, part in model.named_modules() if type(part).__name__ == "ViTLayer"}
    sites = [
        MergeSite(name, layer, layer.attention, model, measure=measure, prefix=1) for name, layer in layers.items()
    ]
    return Foreign(model, sites)


MAKERS: dict[str, Callable[[], Foreign]] = {
    "rotary": rotary,
    "rotary without a batch": lambda: rotary(batched=False),
    "DiT (x, c)": dit,
    "U-ViT": u_vit,
    "TransformerEncoderLayer": encoder,
    "Hugging Face ViT": hugging_face_vit,
}


def build(name: str) -> Foreign:
    with seeded():
        foreign = MAKERS[name]()
    foreign.model.eval()
    return foreign
