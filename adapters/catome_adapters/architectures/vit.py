"""Where timm's vision transformers keep their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from catome_adapters.sites.call import Signature
from catome_adapters.sites.grid import Shape
from catome_adapters.sites.layout import BlockLayout, PerToken
from catome_adapters.sites.site import MergeSite, SkippedSite

LAYOUT = BlockLayout(tokens="x", per_token=(PerToken("rope", axis=-2, add_batch=True),), feed_forward=("norm2", "mlp"))
# Masks and relative positions are changed where attention is intercepted.
ARGUMENTS = {"x", "rope", "attn_mask", "is_causal", "shared_rel_pos_bias", "shared_rel_pos"}


class PatchGrid:
    """The grid of a timm model's patch embedding, for images (batch, channels, height, width) of any size."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, arguments: Mapping[str, Any]) -> Shape:
        """Of the image that the patch embedding is called with."""
        image = next(iter(arguments.values()))
        return tuple(self.model.patch_embed.dynamic_feat_size(tuple(image.shape[-2:])))


def is_vit(model: nn.Module) -> bool:
    """Whether this is one of timm's vision transformers: a sequence of blocks over patches and prefix tokens."""
    embedding = getattr(model, "patch_embed", None)
    return hasattr(embedding, "dynamic_feat_size") and hasattr(model, "blocks") and hasattr(model, "num_prefix_tokens")


def find_in_vit(model: Any) -> list[MergeSite | SkippedSite]:
    """Every block of a timm ViT: a site, or why it is skipped."""
    grid_of = PatchGrid(model)
    return [_site_or_reason(model, f"blocks.{index}", block, grid_of) for index, block in enumerate(model.blocks)]


def _site_or_reason(model: Any, name: str, block: nn.Module, grid_of: PatchGrid) -> MergeSite | SkippedSite:
    reason = _reason(block)
    if reason:
        return SkippedSite(name, reason)
    shape, prefix = tuple(model.patch_embed.grid_size or ()) or None, model.num_prefix_tokens
    attention = block.get_submodule("attn")
    return MergeSite(
        name,
        block,
        attention,
        model.patch_embed,
        shape=shape,
        grid_of=grid_of,
        layout=LAYOUT,
        prefix=prefix,
        denoises=False,
        network=model,
    )


def _reason(block: nn.Module) -> str | None:
    kind, attention = type(block).__name__, getattr(block, "attn", None)
    names = Signature.of(block).names
    if not isinstance(attention, nn.Module) or names[:1] != ("x",):
        return f"{kind} has no self-attention `attn` over tokens `x`"
    unknown = sorted(set(names) - ARGUMENTS)
    if unknown:
        return f"{kind} takes {', '.join(unknown)}, and what merged tokens mean for them is unknown"
    if hasattr(attention, "lambda_q1"):
        return (
            f"{type(attention).__name__} subtracts two attentions, and only one of the two calls would be intercepted"
        )
    if not getattr(attention, "fused_attn", False):
        return (
            f"{type(attention).__name__} does not call scaled_dot_product_attention, where it would be intercepted: "
            "set its fused_attn = True, or call timm.layers.set_fused_attn(True) before the model is made"
        )
    return None
