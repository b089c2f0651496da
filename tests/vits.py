"""Tiny timm vision transformers of every kind, with random weights."""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from architectures import Architecture, Size, _image
from models import noise, seeded

SIZES = ((32, 32), (24, 40))
TINY = {"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}


@dataclass(frozen=True)
class Vit(Architecture):
    """A timm ViT for images of one size; `network(img_size=...)` for another.

    Attributes:
        prefix: Class, distillation and register tokens.
    """

    prefix: int = 1

    def network(self, **changes: Any) -> nn.Module:
        """The network, the same whatever ran before; no branch is scaled to next to nothing."""
        with seeded():
            network = self.build(**{"img_size": SIZES[0]} | changes).eval()
            for name, parameter in network.named_parameters():
                if parameter.ndim > 1 or "gamma" in name or ".ls" in name:
                    nn.init.normal_(parameter, std=0.3)
        return network

    @torch.no_grad()
    def call(self, network: nn.Module, *, batch: int = 2, size: Size | None = None, seed: int = 0) -> Tensor:
        """Dense features of one call, prefix tokens in front."""
        return network.forward_features(images(batch, size or SIZES[0], seed))


def images(batch: int = 2, size: Size = SIZES[0], seed: int = 0) -> Tensor:
    """A sample does not depend on the batch."""
    return torch.cat([noise(1, 3, *size, seed=100 * seed + index) for index in range(batch)])


def _vit(kind: type[nn.Module], prefix: int = 1, **options: Any) -> Vit:
    return Vit(
        partial(_build, kind, options),
        lambda sample, size: {"x": sample},
        SIZES,
        _image(3),
        lambda size: (size[0] // 4, size[1] // 4),
        ("Block", "EvaBlock", "RelPosBlock"),
        depths=("depth",),
        prefix=prefix,
    )


def _build(kind: type[nn.Module], options: dict[str, Any], **changes: Any) -> nn.Module:
    return kind(**TINY | options | changes)


ROTATED = {"use_abs_pos_emb": False, "use_rot_pos_emb": True, "init_values": 1e-5}
VITS: dict[str, Vit] = {
    "ViT": _vit(VisionTransformer),
    "DeiT distilled": _vit(VisionTransformerDistilled, 2),
    "DeiT-3": _vit(VisionTransformer, no_embed_class=True, init_values=1e-6),
    "DINOv2": _vit(VisionTransformer, init_values=1e-5),
    "DINOv2 registers": _vit(VisionTransformer, 5, init_values=1e-5, reg_tokens=4, no_embed_class=True),
    "DINOv3": _vit(
        Eva,
        5,
        **ROTATED,
        num_reg_tokens=4,
        rope_type="dinov3",
        rope_rotate_half=True,
        qkv_bias=False,
        use_fc_norm=False,
    ),
    "EVA-02": _vit(Eva, **ROTATED | {"use_abs_pos_emb": True}, qkv_fused=False, swiglu_mlp=True, scale_mlp=True),
    "RoPE mixed": _vit(Eva, **ROTATED, attn_type="rope", rope_type="mixed"),
    "SigLIP": _vit(VisionTransformer, 0, class_token=False, global_pool="map"),
    "BEiT": _vit(Beit, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1),
    "BEiT shared": _vit(Beit, use_abs_pos_emb=False, use_shared_rel_pos_bias=True, init_values=0.1),
    "relative positions": _vit(VisionTransformerRelPos, 0),
    "norms behind": _vit(VisionTransformer, block_fn=ResPostBlock),
}


def run_block(
    network: nn.Module, index: int, slots: Tensor, anchor: Tensor, bias: Tensor, **instead: nn.Module
) -> Tensor:
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


def _take_relative_positions(network: nn.Module, attention: nn.Module) -> Tensor:
    """Relative positions (1, heads, tokens, tokens), which the attention no longer adds by itself."""
    if isinstance(network, VisionTransformerRelPos):
        relative, attention.rel_pos = attention.rel_pos.get_bias(), None
    elif network.rel_pos_bias is not None:
        relative = network.rel_pos_bias()[None]
    else:
        relative, attention.relative_position_bias_table = attention._get_rel_pos_bias(), None
    return relative
