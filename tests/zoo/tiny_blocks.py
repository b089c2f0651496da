"""Blocks and a network small enough to race in a test, and shortcuts to their contenders and rows."""

from functools import partial

import torch
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock

from catome_bench.measure.rows import Row
from catome_bench.measure.timing import Timing
from catome_bench.races import blocks
from catome_bench.races.blocks import Case, build_flux_block, build_pixart_block, build_unet_block, build_wan_block
from catome_bench.races.contenders import block_contenders
from catome_bench.races.denoisers import build_flux_denoiser, build_unet_denoiser, build_wan_denoiser
from catome_bench.races.networks import UNET_PEERS, Network

UNET = Case(build_unet_block(16, 2, 8, text=3), (4, 4), 16)
TINY = {
    "unet": UNET,
    "pixart": Case(build_pixart_block(16, 2, text=3), (4, 4), 16),
    "double": Case(
        build_flux_block(FluxTransformerBlock, 2, 32, text=5), (4, 4), 64, 1, lambda grid: blocks.flux_rows(grid, 32)
    ),
    "single": Case(
        build_flux_block(FluxSingleTransformerBlock, 2, 32, text=5),
        (4, 4),
        64,
        1,
        lambda grid: blocks.flux_rows(grid, 32),
    ),
    "wan": Case(build_wan_block(32, 64, 2, text=5), (3, 4, 4), 32, 1, lambda grid: blocks.wan_rows(grid, 16)),
}
TINY_UNET = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 8,
}
TINY_NETWORK = Network(partial(build_unet_denoiser, TINY_UNET), (2, 4, 8, 8), (1,), UNET_PEERS)
TINY_FLUX = {
    "in_channels": 8,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 8,
    "pooled_projection_dim": 8,
    "axes_dims_rope": (2, 2, 4),
}
TINY_WAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "ffn_dim": 16,
    "text_dim": 8,
}
TINY_NETWORKS = {
    "unet": TINY_NETWORK._replace(levels="all"),
    "flux": Network(partial(build_flux_denoiser, TINY_FLUX, 4, 3), (1, 16, 8)),
    "wan": Network(partial(build_wan_denoiser, TINY_WAN, 3), (1, 4, 3, 8, 8)),
}
OURS = {f"{scope}{extra}" for scope in ("attention", "keys", "block") for extra in ("", ", proportional")}


def contenders_of(name, device="cpu", dtype=torch.float32):
    return block_contenders(TINY[name], device, dtype)


def some(made, *names):
    return {name: made[name] for name in names}


def by_subject(rows):
    return {(row.subject, row.phase): row for row in rows}


def timed(subject, phase, median):
    return Row(subject, phase, "eager", Timing(median, median - 1, median + 2, 10))
