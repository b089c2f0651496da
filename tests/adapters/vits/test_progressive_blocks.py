"""Merging from block to block without unmerging, against the model's own blocks run one by one."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from catome_adapters import attach
from catome_core import TokenGrid
from probes import AttentionKeys
from running import assert_close, progressive_recipe
from zoo.vit_blocks import run_block
from zoo.vits import images

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.mark.parametrize("proportional", [True, False])
def test_blocks_run_on_what_the_blocks_before_have_left(vit, network, proportional):
    unmerged = enter_blocks(network)
    with attach(network, progressive_recipe(0.3, proportional=proportional)):
        features = network.forward_features(images())
    expected = torch.stack([run_progressively(network, tokens, 0.3, proportional) for tokens in unmerged])
    assert_close(features, network.norm(expected))


def enter_blocks(network: nn.Module) -> Tensor:
    seen: list[Tensor] = []
    handle = network.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(images())
    handle.remove()
    return seen[0]


def run_progressively(network: nn.Module, tokens: Tensor, capacity: float, proportional: bool) -> Tensor:
    """One sample, (tokens, channels), with the members of every slot as a list."""
    prefix, slots = network.num_prefix_tokens, tokens
    members = [[token] for token in range(len(tokens))]
    anchors = list(range(len(tokens)))
    for index in range(len(network.blocks)):
        bias = torch.tensor([len(group) for group in members]).log() * proportional
        slots, keys = attend(network, index, slots, anchors, bias)
        homes, kept = pair_up(keys, prefix, capacity)
        order = sorted([*range(prefix), *range(prefix, len(slots), 2), *kept])
        groups = [[one, *(source for source, home in homes.items() if home == one)] for one in order]
        slots = torch.stack([weigh(slots[group], [len(members[one]) for one in group]) for group in groups])
        members = [[token for one in group for token in members[one]] for group in groups]
        anchors = [anchors[one] for one in order]
        slots = feed_forward(network.blocks[index], slots)
    result = torch.empty_like(tokens)
    for slot, group in zip(slots, members, strict=True):
        result[group] = slot
    return result


class Nothing(nn.Module):
    """Adds nothing to the tokens that skip it."""

    def forward(self, tokens: Tensor, *_: object, **__: object) -> Tensor:
        return torch.zeros_like(tokens)


def attend(network: nn.Module, index: int, slots: Tensor, anchors: list[int], bias: Tensor) -> tuple[Tensor, Tensor]:
    """What the first half of a block makes of the slots, and the mean over heads of their keys."""
    with AttentionKeys() as recorded:
        slots = run_block(network, index, slots[None], torch.tensor(anchors), bias, mlp=Nothing())[0]
    return slots, recorded.keys[0][0].mean(0)


def feed_forward(block: nn.Module, slots: Tensor) -> Tensor:
    """The second half of a block."""
    block = deepcopy(block)
    block.attn = Nothing()
    return block(slots[None])[0]


def pair_up(keys: Tensor, prefix: int, capacity: float) -> tuple[dict[int, int], list[int]]:
    """Where the most similar sources merge, and which are kept, in the order of the sequence."""
    grid = TokenGrid((1, len(keys) - prefix), (1, 2))
    sources, targets = range(prefix + 1, len(keys), 2), range(prefix, len(keys), 2)
    cosines = torch.cosine_similarity(keys[sources, None], keys[None, targets], dim=-1)
    best, order = cosines.max(1), cosines.amax(1).argsort(descending=True).tolist()
    gone = order[: grid.sources - grid.kept(capacity)]
    kept = [sources[one] for one in sorted(set(order) - set(gone))]
    return {sources[one]: targets[int(best.indices[one])] for one in gone}, kept


def weigh(rows: Tensor, sizes: list[int]) -> Tensor:
    return sum(row * size for row, size in zip(rows, sizes, strict=True)) / sum(sizes)
