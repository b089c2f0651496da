"""Tiny timm vision transformers of every kind."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from zoo.architecture import Architecture, Arguments, Size, image_sample
from zoo.noise import each_sample, seeded

SIZES = ((32, 32), (24, 40))
TINY = {"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}


@dataclass(frozen=True, kw_only=True)
class Vit(Architecture):
    """A timm ViT for images of one size; `network(img_size=...)` for another.

    Attributes:
        prefix: Class, distillation and register tokens.
    """

    prefix: int = 1

    def network(self, **changes: Any) -> Any:
        """The network, the same whatever ran before; no branch is scaled to next to nothing."""
        with seeded():
            network = self.build(**{"img_size": SIZES[0]} | changes).eval()
            for name, parameter in network.named_parameters():
                if parameter.ndim > 1 or "gamma" in name or ".ls" in name:
                    nn.init.normal_(parameter, std=0.3)
        return network

    def predict(self, network: Any, *, batch: int = 2, size: Size | None = None, seed: int = 0) -> Tensor:
        """Dense features of one call, prefix tokens in front."""
        return network.forward_features(images(batch, size or SIZES[0], seed))


def images(batch: int = 2, size: Size = SIZES[0], seed: int = 0) -> Tensor:
    """A sample does not depend on the batch."""
    return each_sample(batch, 3, *size, seed=seed)


def image_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    return {"x": sample}


def grid_of(size: Size) -> Size:
    return (size[0] // 4, size[1] // 4)


def make_vit(kind: type[nn.Module], prefix: int = 1, **options: Any) -> Vit:
    return Vit(
        build=partial(kind, **TINY | options),
        arguments=image_inputs,
        sizes=SIZES,
        sample=image_sample(3),
        grid=grid_of,
        blocks=("Block", "EvaBlock", "RelPosBlock"),
        depths=("depth",),
        prefix=prefix,
    )


ROTATED = {"use_abs_pos_emb": False, "use_rot_pos_emb": True, "init_values": 1e-5}
VITS: dict[str, Vit] = {
    "ViT": make_vit(VisionTransformer),
    "DeiT distilled": make_vit(VisionTransformerDistilled, 2),
    "DeiT-3": make_vit(VisionTransformer, no_embed_class=True, init_values=1e-6),
    "DINOv2": make_vit(VisionTransformer, init_values=1e-5),
    "DINOv2 registers": make_vit(VisionTransformer, 5, init_values=1e-5, reg_tokens=4, no_embed_class=True),
    "DINOv3": make_vit(
        Eva,
        5,
        **ROTATED,
        num_reg_tokens=4,
        rope_type="dinov3",
        rope_rotate_half=True,
        qkv_bias=False,
        use_fc_norm=False,
    ),
    "EVA-02": make_vit(Eva, **ROTATED | {"use_abs_pos_emb": True}, qkv_fused=False, swiglu_mlp=True, scale_mlp=True),
    "RoPE mixed": make_vit(Eva, **ROTATED, attn_type="rope", rope_type="mixed"),
    "SigLIP": make_vit(VisionTransformer, 0, class_token=False, global_pool="map"),
    "BEiT": make_vit(Beit, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1),
    "BEiT shared": make_vit(Beit, use_abs_pos_emb=False, use_shared_rel_pos_bias=True, init_values=0.1),
    "relative positions": make_vit(VisionTransformerRelPos, 0),
    "norms behind": make_vit(VisionTransformer, block_fn=ResPostBlock),
}
