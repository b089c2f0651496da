"""A block of your own on merged tokens, over the steps of a loop of your own. Needs torch alone."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from catome import AdaptiveMerge, MergedBlock, PairCache
from catome_core import CheckpointSchedule, TokenGrid, summarize


class Block(nn.Module):
    def __init__(self, channels, heads=4):
        super().__init__()
        self.heads, self.qkv = heads, nn.Linear(channels, 3 * channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x):  # (batch, tokens, channels), of any number of tokens
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return x + self.mlp(x)


@torch.no_grad()
def main(tokens, grid, steps=20, depth=3):
    caches = [PairCache(AdaptiveMerge(threshold=0.7)) for _ in range(depth)]
    blocks = [MergedBlock(Block(tokens.shape[-1]), cache, grid, proportional=True) for cache in caches]
    network, schedule = nn.Sequential(*blocks), CheckpointSchedule.every(5, steps)
    for step in range(steps):
        checkpoint = schedule.is_checkpoint(step, steps)  # pairs are recomputed then, and reused in between
        for cache in caches:
            cache.begin_step(checkpoint)
        tokens = tokens - 0.1 * network(tokens)
    for cache in caches:
        print(f"{summarize(cache.plan()).merged_fraction.mean():.0%} of the tokens merged")
    return tokens


if __name__ == "__main__":
    smooth = nn.functional.interpolate(torch.randn(1, 64, 8, 8), size=(32, 32), mode="bilinear")
    main(smooth.flatten(2).mT, TokenGrid((32, 32)))
