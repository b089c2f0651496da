"""Blocks and a network small enough to race in a test, and shortcuts to their contenders and rows."""

import torch
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock

from catome_bench.measure.rows import Row
from catome_bench.measure.timing import Timing
from catome_bench.races import blocks
from catome_bench.races.blocks import Case, build_flux_block, build_pixart_block, build_unet_block, build_wan_block
from catome_bench.races.contenders import block_contenders

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
OURS = {f"{scope}{extra}" for scope in ("attention", "keys", "block") for extra in ("", ", proportional")}


def contenders_of(name, device="cpu", dtype=torch.float32):
    return block_contenders(TINY[name], device, dtype)


def some(made, *names):
    return {name: made[name] for name in names}


def by_subject(rows):
    return {(row.subject, row.phase): row for row in rows}


def timed(subject, phase, median):
    return Row(subject, phase, "eager", Timing(median, median - 1, median + 2, 10))
