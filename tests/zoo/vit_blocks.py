"""One block of a vision transformer, run by its own arguments alone."""

from copy import deepcopy
from typing import Any

from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn


def run_block(network: Any, index: int, slots: Tensor, anchor: Tensor, bias: Tensor, **instead: nn.Module) -> Tensor:
    """One block on the slots (1, slots, channels) of a sample, by the block's own arguments alone.

    Positions are those of the anchors; `bias` is added to the scores of every key. Modules of the block can be others.
    """
    block, mask = deepcopy(network.blocks[index]), bias.expand(1, 1, len(bias), -1)
    for name, module in instead.items():
        setattr(block, name, module)
    if isinstance(network, Eva):
        patches = anchor[network.num_prefix_tokens :] - network.num_prefix_tokens
        rotation = network.rope.get_embed()
        rotation = rotation[index] if network.rope_mixed else rotation
        return block(slots, rope=rotation[..., patches, :], attn_mask=mask)
    if isinstance(network, VisionTransformer):
        return block(slots, attn_mask=mask)
    relative = _take_relative_positions(network, block.attn)[:, :, anchor][..., anchor]
    return block(slots, relative + mask)


def _take_relative_positions(network: Any, attention: Any) -> Tensor:
    """Relative positions (1, heads, tokens, tokens), which the attention no longer adds by itself."""
    if isinstance(network, VisionTransformerRelPos):
        relative, attention.rel_pos = attention.rel_pos.get_bias(), None
    elif network.rel_pos_bias is not None:
        relative = network.rel_pos_bias()[None]
    else:
        relative, attention.relative_position_bias_table = attention._get_rel_pos_bias(), None
    return relative
