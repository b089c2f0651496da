"""Where the vision encoders of transformers keep their tokens: ViT, DINOv2, DINOv3, SigLIP, CLIP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from catome_adapters.sites.call import Signature
from catome_adapters.sites.grid import Shape, patches
from catome_adapters.sites.layout import BlockLayout, PerToken
from catome_adapters.sites.site import MergeSite, Reason, SkippedSite

PREFIX = ("cls_token", "class_embedding", "distillation_token", "register_tokens")
"""Tokens that embeddings put in front of the patches, each as rows (..., channels)."""

ATTENTIONS = ("attention", "self_attn")
NORMS = ("layernorm_after", "layer_norm2", "norm2")
# Masks are changed where attention is intercepted.
ARGUMENTS = {"hidden_states", "attention_mask", "position_embeddings"}
ROTARY = PerToken("position_embeddings", axis=0, add_batch=True)


def is_encoder(model: nn.Module) -> bool:
    """Whether a part of the model embeds the patches of an image for layers of transformers."""
    return any(True for _ in _vision_parts(model))


def find_in_encoder(model: nn.Module) -> list[MergeSite | SkippedSite]:
    """Every layer of the model's vision encoders; text encoders beside them are left out."""
    return [
        _site_or_reason(".".join(filter(None, (path, name, str(index)))), layer, part)
        for path, part in _vision_parts(model)
        for name, layers in part.named_modules()
        if isinstance(layers, nn.ModuleList) and name.rpartition(".")[2] in ("layer", "layers")
        for index, layer in enumerate(layers)
    ]


def _vision_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, part in model.named_modules():
        if _patch_embedding(part) is not None:
            yield path, part


def _patch_embedding(part: nn.Module) -> nn.Conv2d | nn.Linear | None:
    """What makes a token of every patch of an image."""
    for name in ("patch_embeddings", "patch_embedding"):
        embedding = getattr(getattr(part, "embeddings", None), name, None)
        layer = getattr(embedding, "projection", embedding)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            return layer
    return None


def _site_or_reason(name: str, layer: nn.Module, part: Any) -> MergeSite | SkippedSite:
    patch, attention = _patch_size(part), _attention(layer)
    if isinstance(attention, Reason):
        return SkippedSite(name, attention)
    if isinstance(patch, Reason):
        return SkippedSite(name, patch)
    return MergeSite(
        name,
        layer,
        attention,
        part.embeddings,
        shape=_default_shape(part, patch),
        grid_of=patches(Signature.of(part.embeddings).names[0], patch),
        layout=BlockLayout(tokens="hidden_states", per_token=(ROTARY,), feed_forward=_feed_forward(layer)),
        prefix=_count_prefix(part.embeddings),
        denoises=False,
        network=part,
    )


def _patch_size(part: nn.Module) -> Shape | Reason:
    embedding = _patch_embedding(part)
    if not isinstance(embedding, nn.Conv2d):
        return Reason(
            "images arrive as padded sequences of patches, each of a size of its own, and a batch shares its grid"
        )
    if embedding.stride != embedding.kernel_size or embedding.padding not in ("valid", (0, 0)):
        return Reason("patches overlap, or lie partly outside of the image")
    return embedding.kernel_size


def _attention(layer: nn.Module) -> nn.Module | Reason:
    """The layer's self-attention, or why nothing can merge there."""
    kind, names = type(layer).__name__, Signature.of(layer).names
    attention = next((getattr(layer, name) for name in ATTENTIONS if hasattr(layer, name)), None)
    if attention is None or names[:1] != ("hidden_states",):
        return Reason(f"{kind} has no self-attention {' or '.join(ATTENTIONS)} over tokens `hidden_states`")
    unknown = sorted(set(names) - ARGUMENTS)
    if unknown:
        return Reason(f"{kind} takes {', '.join(unknown)}, and what merged tokens mean for them is unknown")
    if not hasattr(getattr(attention, "config", None), "_attn_implementation"):
        return Reason(
            f"{type(attention).__name__} has no choice of attention kernels, so which one it calls is unknown"
        )
    return attention


def _feed_forward(layer: nn.Module) -> tuple[str, ...]:
    return (*(name for name in NORMS if hasattr(layer, name)), "mlp")


def _count_prefix(embeddings: nn.Module) -> int:
    tokens = (getattr(embeddings, name, None) for name in PREFIX)
    return sum(token.numel() // token.shape[-1] for token in tokens if isinstance(token, Tensor))


def _default_shape(part: Any, patch: Shape) -> Shape | None:
    size = getattr(getattr(part, "config", None), "image_size", None)
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return height // patch[0], width // patch[1]
