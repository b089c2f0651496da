"""Progressive merging against the method as published (Bolya et al. 2023), at equal token counts in every block."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catome_adapters import RECIPES, MergeSession, attach
from catome_bench.photographs import PHOTOGRAPHS, load_photograph
from catome_core import AdaptiveMerge

Forward = Callable[[Tensor], Tensor]
FRACTIONS = (0.02, 0.05, 0.1, 0.15, 0.2)
"""Share of the tokens that every block merges away."""
BATCH = 64


class Labelled(NamedTuple):
    """Images float32 (images, channels, height, width) in [-1, 1], and the class of each."""

    images: Tensor
    labels: Tensor


class Line(NamedTuple):
    """One way to run a model: what it does to the logits and how long it takes."""

    name: str
    tokens: int
    seconds: float
    cosine: float
    correct: float

    def __str__(self) -> str:
        return f"{self.name:<34}{self.tokens:>8}{self.seconds * 1e3:>10.1f}{self.cosine:>10.4f}{self.correct:>10.1%}"


def load_digits() -> tuple[Labelled, Labelled]:
    """The digits of scikit-learn: four fifths to train with, one fifth to test."""
    from sklearn.datasets import load_digits as load

    pixels, labels = (torch.from_numpy(part) for part in load(return_X_y=True))
    images = pixels.float().reshape(-1, 1, 8, 8) / 8 - 1
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
    return Labelled(images[train], labels[train]), Labelled(images[test], labels[test])


def load_photographs(model: Any, pixels: int = 224) -> Labelled:
    """The photographs of the shipped model, each of the class that the model takes it for."""
    squares = (load_photograph(photograph)[None] for photograph in PHOTOGRAPHS)
    images = torch.cat([F.interpolate(square, (pixels, pixels), mode="area") for square in squares])
    return Labelled(images, model(images).argmax(-1))


def train_vit(data: Labelled, epochs: int = 30) -> Any:
    """A small ViT with a token for every pixel: 65 tokens, 6 blocks."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(8, patch_size=1, in_chans=1, num_classes=10, embed_dim=64, depth=6, num_heads=4)
    # A pixel alone says nothing without its place.
    assert model.pos_embed is not None
    nn.init.normal_(model.pos_embed, std=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs * -(-len(data.labels) // BATCH))
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.labels)).split(BATCH):
            loss = F.cross_entropy(model(data.images[chosen]), data.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def counts_of(session: MergeSession) -> list[int]:
    """Tokens that every block merged away in the last call."""
    return [row.tokens - row.slots for row in session.summary().rows]


def publish(model: Any, counts: Sequence[int], proportional: bool) -> Forward:
    """The published method, from the paper: keys of a block's attention say what merges before its feed-forward."""

    def forward(images: Tensor) -> Tensor:
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        size = tokens.new_ones(*tokens.shape[:2], 1)
        for block, count in zip(model.blocks, counts, strict=True):
            attended, keys = _attend(block.attn, block.norm1(tokens), size if proportional else None)
            tokens, size = _merge_by_keys(tokens + block.ls1(attended), size, keys, count)
            tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
        return model.forward_head(model.norm(tokens))

    return forward


def _attend(attention: Any, tokens: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    split = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key, value = split.unbind()
    bias = None if size is None else size.log().mT[:, None]
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return attention.proj(attended.transpose(1, 2).flatten(2)), key.mean(1)


def _merge_by_keys(tokens: Tensor, size: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    if count == 0:
        return tokens, size
    unit = F.normalize(keys, dim=-1)
    scores = unit[:, ::2] @ unit[:, 1::2].mT
    scores[:, 0] = -torch.inf  # the class token stays
    best, target = scores.max(-1)
    order = best.argsort(-1, descending=True)[..., None]
    sums = torch.cat([tokens * size, size], -1)
    sources, destinations = sums[:, ::2], sums[:, 1::2]
    gone, kept = (part.expand(-1, -1, sums.shape[-1]) for part in (order[:, :count], order[:, count:].sort(1)[0]))
    home = target[..., None].gather(1, order[:, :count]).expand_as(gone)
    sums = torch.cat([sources.gather(1, kept), destinations.scatter_add(1, home, sources.gather(1, gone))], 1)
    return sums[..., :-1] / sums[..., -1:], sums[..., -1:]


def compare(model: Any, data: Labelled, fraction: float) -> list[Line]:
    """Both methods, each with proportional attention and without, where every block merges this share."""
    plain, lines = model(data.images), []
    policy = AdaptiveMerge(threshold=-1, capacity=0.5 - fraction, spare="fill")
    for proportional in (False, True):
        recipe = replace(RECIPES["tome"], policy=policy, proportional=proportional)
        suffix = ", proportional" if proportional else ""
        with attach(model, recipe) as session:
            ours = _measure(f"ours{suffix}", model, data, plain)
            counts = counts_of(session)
        published = _measure(f"published{suffix}", publish(model, counts, proportional), data, plain)
        lines += [line._replace(tokens=_tokens(model) - sum(counts)) for line in (ours, published)]
    return lines


def _tokens(model: Any) -> int:
    return model.num_prefix_tokens + model.patch_embed.num_patches


def _measure(name: str, forward: Forward, data: Labelled, plain: Tensor) -> Line:
    logits = forward(data.images)
    seconds = min(_time(forward, data.images) for _ in range(3))
    cosine = F.cosine_similarity(logits, plain, dim=-1).mean()
    correct = (logits.argmax(-1) == data.labels).float().mean()
    return Line(name, 0, seconds, float(cosine), float(correct))


def _time(forward: Forward, images: Tensor) -> float:
    began = time.perf_counter()
    forward(images)
    return time.perf_counter() - began


def render(model: Any, data: Labelled) -> str:
    """The table of a model: unmerged, and both methods at every fraction."""
    unmerged = _measure("unmerged", model, data, model(data.images))._replace(tokens=_tokens(model))
    lines = [f"{'':<34}{'tokens':>8}{'ms':>10}{'cosine':>10}{'correct':>10}", str(unmerged)]
    for fraction in FRACTIONS:
        lines += [f"every block merges {fraction:.0%}", *map(str, compare(model, data, fraction))]
    return "\n".join(lines)


@torch.no_grad()
def main() -> None:
    """A trained small ViT on digits, and ViT-S with random weights on photographs."""
    import timm

    train, test = load_digits()
    with torch.enable_grad():
        small = train_vit(train)
    torch.manual_seed(0)
    large = timm.create_model("vit_small_patch16_224").eval()
    print(f"digits\n{render(small, test)}\nphotographs\n{render(large, load_photographs(large))}")  # noqa: T201


if __name__ == "__main__":
    main()
