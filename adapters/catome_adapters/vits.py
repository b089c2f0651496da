"""Where timm's vision transformers keep their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from catome_adapters.arguments import Signature
from catome_adapters.grids import Shape
from catome_adapters.layouts import BlockLayout, Follow
from catome_adapters.sites import MergeSite, SkippedSite

LAYOUT = BlockLayout(tokens="x", follows=(Follow("rope", axis=-2, lift=True),), feed_forward=("norm2", "mlp"))
# Masks and relative positions are told to attention on the way.
ARGUMENTS = {"x", "rope", "attn_mask", "is_causal", "shared_rel_pos_bias", "shared_rel_pos"}


class PatchGrid:
    """The grid of a timm model's patch embedding, for images (batch, channels, height, width) of any size."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, arguments: Mapping[str, Any]) -> Shape:
        """Of the image that the patch embedding is called with."""
        image = next(iter(arguments.values()))
        return tuple(self.model.patch_embed.dynamic_feat_size(tuple(image.shape[-2:])))

    def close(self, name: str) -> ClosedIntermediates:
        """Let nobody see tokens between the model's blocks, since they are merged there, by a segment of this name."""
        return ClosedIntermediates(self.model, name)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether the model repeats its blocks in the backward pass."""
        return getattr(self.model, "grad_checkpointing", False)


class ClosedIntermediates:
    """Keeps a ViT's `forward_intermediates` from answering while tokens between its blocks are merged.

    The features in between would be those of slots: too short, or reshaped into something else.
    """

    def __init__(self, model: Any, segment: str) -> None:
        self.model, self.segment = model, segment
        model.forward_intermediates = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse."""
        raise ValueError(
            f"forward_intermediates of {type(self.model).__name__} was called, and between its blocks tokens are "
            f'merged ({self.segment}): use RECIPES["vit"], which gives every block\'s tokens their length back, or '
            "forward_features"
        )

    def remove(self) -> None:
        """Open it again; safe to call again."""
        vars(self.model).pop("forward_intermediates", None)


def is_vit(model: nn.Module) -> bool:
    """Whether this is one of timm's vision transformers: a sequence of blocks over patches and prefix tokens."""
    embedding = getattr(model, "patch_embed", None)
    return hasattr(embedding, "dynamic_feat_size") and hasattr(model, "blocks") and hasattr(model, "num_prefix_tokens")


def survey_vit(model: Any) -> list[MergeSite | SkippedSite]:
    """Every block of a timm ViT: a site, or the reason why it is none."""
    measure = PatchGrid(model)
    return [_judge(model, f"blocks.{index}", block, measure) for index, block in enumerate(model.blocks)]


def _judge(model: Any, name: str, block: nn.Module, measure: PatchGrid) -> MergeSite | SkippedSite:
    reason = _reason(block)
    if reason:
        return SkippedSite(name, reason)
    shape, prefix = tuple(model.patch_embed.grid_size or ()) or None, model.num_prefix_tokens
    attention = block.get_submodule("attn")
    return MergeSite(name, block, attention, model.patch_embed, 1, shape, measure, LAYOUT, prefix, stepped=False)


def _reason(block: nn.Module) -> str | None:
    kind, attention = type(block).__name__, getattr(block, "attn", None)
    names = Signature.of(block).names
    if not isinstance(attention, nn.Module) or names[:1] != ("x",):
        return f"{kind} has no self-attention `attn` over tokens `x`"
    unknown = sorted(set(names) - ARGUMENTS)
    if unknown:
        return f"{kind} takes {', '.join(unknown)}, and what merged tokens mean for them is unknown"
    if hasattr(attention, "lambda_q1"):
        return f"{type(attention).__name__} subtracts two attentions, and only one call would be told what merged"
    if not getattr(attention, "fused_attn", False):
        return (
            f"{type(attention).__name__} does not call scaled_dot_product_attention, by which it is told what merged: "
            "set its fused_attn = True, or call timm.layers.set_fused_attn(True) before the model is made"
        )
    return None
