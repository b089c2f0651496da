"""Progressive merging against ToMe as published (Bolya et al. 2023), with the same number of tokens in every block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catome_adapters import RECIPES, MergeSession, attach
from catome_bench.measure.rows import Row
from catome_bench.measure.timing import Subject, interleave
from catome_bench.models.photographs import PHOTOGRAPHS, load_photograph
from catome_bench.races.tome import Forward, publish
from catome_core import AdaptiveMerge

FRACTIONS = (0.02, 0.05, 0.1, 0.15, 0.2)
"""Shares of its tokens that every block merges away."""
BATCH = 64


class Labeled(NamedTuple):
    """Images (images, channels, height, width), float32, in [-1, 1], and their classes (images,), int64."""

    images: Tensor
    labels: Tensor


@dataclass
class ViTRow(Row):
    """One way to run a model on labeled images.

    Attributes:
        tokens: Tokens that are left after the last block.
        cosine: Cosine similarity of the logits to those of the unmerged model, averaged over the images.
        correct: Share of the images that are classified correctly.
    """

    tokens: int = 0
    cosine: float = 1.0
    correct: float = 0.0


def load_digits() -> tuple[Labeled, Labeled]:
    """The digits of scikit-learn: four fifths for training, one fifth for testing."""
    from sklearn.datasets import load_digits as load

    pixels, labels = (torch.from_numpy(part) for part in load(return_X_y=True))
    images = pixels.float().reshape(-1, 1, 8, 8) / 8 - 1
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
    return Labeled(images[train], labels[train]), Labeled(images[test], labels[test])


def load_photographs(model: Any, pixels: int = 224) -> Labeled:
    """The photographs of the shipped models, labeled with the classes that this model predicts for them."""
    squares = (load_photograph(photograph)[None] for photograph in PHOTOGRAPHS)
    images = torch.cat([F.interpolate(square, (pixels, pixels), mode="area") for square in squares])
    return Labeled(images, model(images).argmax(-1))


def train_vit(data: Labeled, epochs: int = 30) -> Any:
    """Train a small ViT with one token per pixel: 65 tokens, 6 blocks."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(8, patch_size=1, in_chans=1, num_classes=10, embed_dim=64, depth=6, num_heads=4)
    # A single pixel carries no information without its position.
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


def race_vit(model: Any, data: Labeled) -> list[ViTRow]:
    """The unmerged model, then ours and the published method at every fraction, plain and with proportional attention.

    Args:
        model: A `VisionTransformer` of timm.
        data: Images to run it on, in one batch.

    Returns:
        Rows whose `phase` says how many tokens every block merges; it is empty for the unmerged model.
    """
    plain = model(data.images)
    rows = [_measure_logits("unmerged", "", model, data, plain, _count_tokens(model))]
    for fraction in FRACTIONS:
        rows += _compare_methods(model, data, plain, fraction)
    return rows


def _compare_methods(model: Any, data: Labeled, plain: Tensor, fraction: float) -> list[ViTRow]:
    """Both methods with the same number of tokens in every block, each of which merges this share."""
    rows: list[ViTRow] = []
    policy = AdaptiveMerge(threshold=-1, capacity=0.5 - fraction, spare="fill")
    phase = f"every block merges {fraction:.0%}"
    for proportional in (False, True):
        suffix = ", proportional" if proportional else ""
        with attach(model, replace(RECIPES["tome"], policy=policy, proportional=proportional)) as session:
            ours = _measure_logits(f"ours{suffix}", phase, model, data, plain)
            counts = counts_of(session)
        forward = publish(model, counts, proportional)
        published = _measure_logits(f"published{suffix}", phase, forward, data, plain)
        ours.tokens = published.tokens = _count_tokens(model) - sum(counts)
        rows += [ours, published]
    return rows


def counts_of(session: MergeSession) -> list[int]:
    """Tokens that every block merged away in the last call."""
    return [row.tokens - row.slots for row in session.summary().rows]


def _count_tokens(model: Any) -> int:
    return model.num_prefix_tokens + model.patch_embed.num_patches


def _measure_logits(
    subject: str, phase: str, forward: Forward, data: Labeled, plain: Tensor, tokens: int = 0
) -> ViTRow:
    logits = forward(data.images)
    cosine = F.cosine_similarity(logits, plain, dim=-1).mean().item()
    correct = (logits.argmax(-1) == data.labels).float().mean().item()
    timing = interleave({subject: Subject(partial(forward, data.images))}, repeats=3)[subject]
    if isinstance(timing, Exception):
        raise timing
    return ViTRow(subject, phase, "eager", timing, tokens=tokens, cosine=cosine, correct=correct)
