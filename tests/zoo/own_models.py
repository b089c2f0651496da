"""Models of blocks that no adapter covers, with a `MergeSite` for each block."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from catome_adapters import BlockLayout, MergeSite, PerToken, patches
from zoo.noise import each_sample, noise, seeded
from zoo.own_blocks import DEPTH, HEADS, WIDTH, DiT, RotaryModel, Trunk, UViT, UViTBlock


@dataclass(frozen=True)
class OwnModel:
    """A kind of model.

    Attributes:
        build: Makes the network.
        sites: Where its blocks keep their tokens.
        conditions: From a batch to the arguments of a call behind the image.
    """

    build: Callable[[], nn.Module]
    sites: Callable[[Any], list[MergeSite]]
    conditions: Callable[[int], tuple[Tensor, ...]] = lambda batch: ()

    def network(self) -> Any:
        with seeded():
            return self.build().eval()

    @torch.no_grad()
    def call(self, network: nn.Module, *, batch: int = 2, seed: int = 0, flat: bool = False) -> Tensor:
        """One call, for images of 8 x 8 tokens; flat: all tokens of a cell are equal."""
        image = each_sample(batch, 3, 8, 8, seed=seed)
        if flat:
            image = image[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2)
        result = network(image, *self.conditions(batch))
        return result if isinstance(result, Tensor) else result.last_hidden_state


def stack_sites(attention: str, model: Trunk, **options: Any) -> list[MergeSite]:
    """Of every block of a trunk, whose self-attention is the submodule of this name."""
    return [
        MergeSite(f"stack.{index}", block, getattr(block, attention), model, **options)
        for index, block in enumerate(model.stack)
    ]


def rotary(batched: bool = True) -> OwnModel:
    layout = BlockLayout(output=0, per_token=(PerToken("angles"),), shared=not batched)
    return OwnModel(partial(RotaryModel, batched), partial(stack_sites, "attention", layout=layout))


def u_vit_sites(model: nn.Module) -> list[MergeSite]:
    layout = BlockLayout(per_token=(PerToken("skip"),))
    blocks = {name: part for name, part in model.named_modules() if isinstance(part, UViTBlock)}
    return [MergeSite(name, block, block.attn, model, layout=layout, prefix=1) for name, block in blocks.items()]


def encoder() -> nn.Module:
    return Trunk(lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 32, dropout=0.0, batch_first=True, norm_first=True))


def hugging_face_vit() -> nn.Module:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 32}
    config = ViTConfig(**sizes, image_size=8, patch_size=1, attn_implementation="sdpa")
    model = ViTModel(config, add_pooling_layer=False)
    nn.init.zeros_(model.embeddings.position_embeddings)
    return model


def hugging_face_sites(model: nn.Module) -> list[MergeSite]:
    measure = patches("pixel_values", (1, 1))
    layers = {name: part for name, part in model.named_modules() if type(part).__name__ == "ViTLayer"}
    return [MergeSite(name, layer, layer.attention, model, grid_of=measure, prefix=1) for name, layer in layers.items()]


ENCODER_LAYOUT = BlockLayout(attention_arguments=("query", "key", "value"))
OWN_MODELS: dict[str, OwnModel] = {
    "rotary": rotary(),
    "rotary without a batch": rotary(batched=False),
    "DiT (x, c)": OwnModel(DiT, partial(stack_sites, "attn"), lambda batch: (3 * noise(batch, WIDTH),)),
    "U-ViT": OwnModel(UViT, u_vit_sites, lambda batch: (torch.arange(batch) / 2,)),
    "TransformerEncoderLayer": OwnModel(encoder, partial(stack_sites, "self_attn", layout=ENCODER_LAYOUT)),
    "Hugging Face ViT": OwnModel(hugging_face_vit, hugging_face_sites),
}
