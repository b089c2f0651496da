"""Tiny transformers of every architecture, with random weights, and one call of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)
from torch import Tensor, nn

from models import noise, seeded

TEXT = 5
Size = tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """A kind of transformer.

    Attributes:
        build: Makes the network, always with the same weights.
        inputs: From the sample (see `sample`) and the size to the arguments of a call.
        sizes: Of latents: the usual one, and one that is neither square nor a multiple of the merge's cells.
        sample: The shape of the sample for a batch and a size.
        grid: The tokens' grid for a size.
        blocks: Names of the classes of its blocks.
        depths: Arguments of `build`, each a number of blocks of one kind.
        graphs: Of the compiled network: one recomputes, one reuses, and one reads an argument that holds positions.
        references: Tokens behind the grid's, of a reference image.
        refused: Scopes that do not work.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[Tensor, Size], dict[str, Any]]
    sizes: tuple[Size, Size]
    sample: Callable[[int, Size], tuple[int, ...]]
    grid: Callable[[Size], Size]
    blocks: tuple[str, ...]
    depths: tuple[str, ...] = ("num_layers",)
    graphs: int = 2
    references: int = 0
    refused: tuple[str, ...] = ()

    def network(self, **changes: Any) -> nn.Module:
        """The network, the same whatever ran before; its modulation is not left at zero."""
        with seeded():
            network = self.build(**changes).eval()
            for name, parameter in network.named_parameters():
                # Fresh networks modulate by next to nothing, and would show no difference.
                if "norm" in name and "linear.weight" in name:
                    nn.init.normal_(parameter, std=0.2)
        return network

    @torch.no_grad()
    def call(self, network: nn.Module, *, batch: int = 2, size: Size | None = None, seed: int = 0) -> Tensor:
        """One call; a sample's input does not depend on the batch."""
        size = size or self.sizes[0]
        one = self.sample(1, size)
        sample = torch.cat([noise(*one, seed=100 * seed + index) for index in range(batch)])
        arguments = self.inputs(sample, size)
        dtype = next(network.parameters()).dtype
        arguments = {name: _cast(value, dtype) for name, value in arguments.items()}
        return network(**arguments, return_dict=False)[0]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 2 else value


def _each(batch: int, *shape: int) -> Tensor:
    return torch.stack([noise(*shape, seed=index) for index in range(batch)])


def _image(channels: int) -> Callable[[int, Size], tuple[int, ...]]:
    return lambda batch, size: (batch, channels, *size)


def _halved(size: Size) -> Size:
    return (*size[:-2], size[-2] // 2, size[-1] // 2)


def _timestep(batch: int) -> Tensor:
    return torch.full((batch,), 500)


def _flux_inputs(sample: Tensor, size: Size) -> dict[str, Any]:
    batch, (height, width) = len(sample), size
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
    return {
        "hidden_states": sample,
        "encoder_hidden_states": _each(batch, TEXT, 8),
        "pooled_projections": _each(batch, 8),
        "timestep": torch.full((batch,), 0.5),
        "img_ids": ids,
        "txt_ids": torch.zeros(TEXT, 3),
    }


def _tokens(channels: int) -> Callable[[int, Size], tuple[int, ...]]:
    return lambda batch, size: (batch, torch.Size(size).numel(), channels)


ARCHITECTURES: dict[str, Architecture] = {
    "DiT": Architecture(
        lambda **changes: DiTTransformer2DModel(
            **{
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "in_channels": 4,
                "num_layers": 2,
                "sample_size": 16,
                "patch_size": 2,
                "num_embeds_ada_norm": 4,
                "norm_num_groups": 4,
            }
            | changes
        ),
        lambda sample, size: {
            "hidden_states": sample,
            "timestep": _timestep(len(sample)),
            "class_labels": torch.arange(len(sample)) % 4,
        },
        ((16, 16), (12, 12)),  # diffusers' DiT draws squares alone
        _image(4),
        _halved,
        ("BasicTransformerBlock",),
    ),
    "PixArt": Architecture(
        lambda **changes: PixArtTransformer2DModel(
            **{
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 2,
                "sample_size": 16,
                "cross_attention_dim": 16,
                "caption_channels": 8,
                "norm_num_groups": 4,
                "use_additional_conditions": False,
            }
            | changes
        ),
        lambda sample, size: {
            "hidden_states": sample,
            "encoder_hidden_states": _each(len(sample), TEXT, 8),
            "timestep": _timestep(len(sample)),
        },
        ((16, 16), (10, 14)),
        _image(4),
        _halved,
        ("BasicTransformerBlock",),
    ),
    "SD3": Architecture(
        lambda **changes: SD3Transformer2DModel(
            **{
                "sample_size": 16,
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 3,
                "attention_head_dim": 8,
                "num_attention_heads": 2,
                "joint_attention_dim": 8,
                "caption_projection_dim": 16,
                "pooled_projection_dim": 8,
                "pos_embed_max_size": 16,
                "dual_attention_layers": (0,),
                "qk_norm": "rms_norm",
            }
            | changes
        ),
        lambda sample, size: {
            "hidden_states": sample,
            "encoder_hidden_states": _each(len(sample), TEXT, 8),
            "pooled_projections": _each(len(sample), 8),
            "timestep": _timestep(len(sample)),
        },
        ((16, 16), (10, 14)),
        _image(4),
        _halved,
        ("JointTransformerBlock",),
    ),
    "Flux": Architecture(
        lambda **changes: FluxTransformer2DModel(
            **{
                "in_channels": 4,
                "num_layers": 2,
                "num_single_layers": 2,
                "attention_head_dim": 8,
                "num_attention_heads": 2,
                "joint_attention_dim": 8,
                "pooled_projection_dim": 8,
                "axes_dims_rope": (2, 2, 4),
            }
            | changes
        ),
        _flux_inputs,
        ((8, 8), (5, 7)),
        _tokens(4),
        lambda size: size,
        ("FluxTransformerBlock", "FluxSingleTransformerBlock"),
        ("num_layers", "num_single_layers"),
        graphs=3,
    ),
    "Qwen-Image": Architecture(
        lambda **changes: QwenImageTransformer2DModel(
            **{
                "in_channels": 4,
                "out_channels": 1,
                "num_layers": 2,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "joint_attention_dim": 8,
                "axes_dims_rope": (4, 6, 6),
            }
            | changes
        ),
        lambda sample, size: {
            "hidden_states": sample,
            "encoder_hidden_states": _each(len(sample), TEXT, 8),
            "encoder_hidden_states_mask": torch.ones(len(sample), TEXT, dtype=torch.bool).index_fill(
                1, torch.tensor([TEXT - 1]), False
            ),
            "timestep": torch.full((len(sample),), 0.5),
            "img_shapes": [[(1, *size)]] * len(sample),
        },
        ((8, 8), (5, 7)),
        _tokens(4),
        lambda size: size,
        ("QwenImageTransformerBlock",),
    ),
    "Wan": Architecture(
        lambda **changes: WanTransformer3DModel(
            **{
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "in_channels": 4,
                "out_channels": 4,
                "text_dim": 8,
                "freq_dim": 8,
                "ffn_dim": 32,
                "num_layers": 2,
                "cross_attn_norm": True,
                "rope_max_seq_len": 32,
            }
            | changes
        ),
        lambda sample, size: {
            "hidden_states": sample,
            "encoder_hidden_states": _each(len(sample), TEXT, 8),
            "timestep": _timestep(len(sample)),
        },
        ((3, 12, 12), (2, 10, 14)),
        _image(4),
        _halved,
        ("WanTransformerBlock",),
    ),
    "Wan 2.2 TI2V": Architecture(
        lambda **changes: ARCHITECTURES["Wan"].build(**changes),
        lambda sample, size: {
            "hidden_states": sample,
            "encoder_hidden_states": _each(len(sample), TEXT, 8),
            # The first frame is given: its tokens are at another time.
            "timestep": (torch.arange(torch.Size(_halved(size)).numel()) // torch.Size(_halved(size)[1:]).numel() > 0)
            .mul(500)
            .expand(len(sample), -1),
        },
        ((3, 12, 12), (2, 10, 14)),
        _image(4),
        _halved,
        ("WanTransformerBlock",),
    ),
    "LTX": Architecture(
        lambda **changes: LTXVideoTransformer3DModel(
            **{
                "in_channels": 4,
                "out_channels": 4,
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "cross_attention_dim": 24,
                "num_layers": 2,
                "caption_channels": 8,
            }
            | changes
        ),
        lambda sample, size: {
            "hidden_states": sample,
            "encoder_hidden_states": _each(len(sample), TEXT, 8),
            "timestep": _timestep(len(sample)),
            "encoder_attention_mask": torch.ones(len(sample), TEXT),
            "num_frames": size[0],
            "height": size[1],
            "width": size[2],
        },
        ((3, 6, 6), (2, 5, 7)),
        _tokens(4),
        lambda size: size,
        ("LTXVideoTransformerBlock",),
    ),
    "CogVideoX": Architecture(
        lambda **changes: CogVideoXTransformer3DModel(
            **{
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "in_channels": 4,
                "out_channels": 4,
                "time_embed_dim": 8,
                "text_embed_dim": 8,
                "num_layers": 2,
                "sample_width": 12,
                "sample_height": 12,
                "sample_frames": 9,
                "max_text_seq_length": TEXT,
                "use_rotary_positional_embeddings": True,
            }
            | changes
        ),
        lambda sample, size: {
            "hidden_states": sample,
            "encoder_hidden_states": _each(len(sample), TEXT, 8),
            "timestep": _timestep(len(sample)),
            "image_rotary_emb": (
                noise(torch.Size(_halved(size)).numel(), 8),
                noise(torch.Size(_halved(size)).numel(), 8, seed=1),
            ),
        },
        ((3, 12, 12), (2, 10, 14)),
        lambda batch, size: (batch, size[0], 4, *size[1:]),
        _halved,
        ("CogVideoXBlock",),
    ),
    "HunyuanVideo": Architecture(
        lambda **changes: HunyuanVideoTransformer3DModel(
            **{
                "in_channels": 4,
                "out_channels": 4,
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "num_layers": 2,
                "num_single_layers": 2,
                "num_refiner_layers": 1,
                "text_embed_dim": 8,
                "pooled_projection_dim": 8,
                "rope_axes_dim": (4, 4, 4),
                "guidance_embeds": False,
            }
            | changes
        ),
        lambda sample, size: {
            "hidden_states": sample,
            "encoder_hidden_states": _each(len(sample), TEXT, 8),
            "pooled_projections": _each(len(sample), 8),
            "timestep": _timestep(len(sample)),
            "encoder_attention_mask": torch.ones(len(sample), TEXT).index_fill(1, torch.tensor([TEXT - 1]), 0.0),
        },
        ((3, 12, 12), (2, 10, 14)),
        _image(4),
        _halved,
        ("HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock"),
        ("num_layers", "num_single_layers"),
    ),
}
