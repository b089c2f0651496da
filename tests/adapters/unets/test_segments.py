"""What a segment of blocks computes."""

import copy

import pytest
import torch
from torch import Tensor, nn

from catome_adapters import MergeSite, attach, find_sites
from catome_core import MergePlan, TokenGrid, attention_bias, merge, unmerge
from running import METRICS, assert_close, call, unet_recipe
from tiers import tiered
from zoo.unets import DEEP, conditions

pytestmark = pytest.mark.usefixtures("without_gradients")


def level_two(network: nn.Module) -> list[MergeSite]:
    """The three sites of the first transformer."""
    return find_sites(network)[:3]


class Watcher:
    """What goes into the first block and what every block and its self-attention return, before and after the merge."""

    def __init__(self, sites: list[MergeSite]) -> None:
        self.sites, self.outputs, self.attended = sites, {}, {}
        sites[0].block.register_forward_pre_hook(self._see_input)

    def watch_outputs(self) -> None:
        """Call it once the session is attached: hooks run in the order in which they came."""
        for index, site in enumerate(self.sites):
            site.block.register_forward_hook(lambda _, args, out, index=index: self.outputs.update({index: out}))
            site.attention.register_forward_hook(lambda _, args, out, index=index: self.attended.update({index: out}))

    def _see_input(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.tokens = args[0]


GROUPS = {1: [[0], [1], [2]], 2: [[0, 1], [2]], 3: [[0, 1, 2]]}


def segment_by_hand(blocks: list[nn.Module], tokens: Tensor, text: Tensor, plan: MergePlan, bias: Tensor) -> Tensor:
    short = merged = merge(tokens, plan)
    for block in blocks:
        short = block(short, attention_mask=bias, encoder_hidden_states=text)
    return tokens + unmerge(short - merged, plan)


@pytest.mark.parametrize("segment", GROUPS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("spare", "proportional"),
    tiered([("pad", True), ("pad", False), ("fill", True), ("fill", False)], [("fill", True)]),
)
def test_segment_computes_its_formula(unet, segment, metric, spare, proportional):
    recipe = unet_recipe("block", metric=metric, segment=segment, spare=spare, proportional=proportional)
    network, grid = copy.deepcopy(unet), TokenGrid((8, 8))
    blocks, watcher = [site.block for site in level_two(unet)], Watcher(level_two(network))
    text = conditions(network, 2)["encoder_hidden_states"]
    with attach(network, recipe, sites=watcher.sites) as session:
        watcher.watch_outputs()
        call(DEEP, network, session)
        # With metric="input" a segment's input is what the one before it returned.
        fed = {0: watcher.tokens} | {index + 1: output for index, output in watcher.outputs.items()}
        matched = [fed[group[0]] if metric == "input" else fed[group[-1] + 1] for group in GROUPS[segment]]
        call(DEEP, network, session, 1, seed=1)
    expected = watcher.tokens
    for group, tokens in zip(GROUPS[segment], matched, strict=True):
        plan, members = recipe.policy(tokens, grid), [blocks[index] for index in group]
        bias = attention_bias(plan, dtype=tokens.dtype, proportional=proportional)[:, 0]
        expected = segment_by_hand(members, expected, text, plan, bias)
    assert_close(watcher.outputs[2], expected)


@pytest.mark.parametrize("scope", ["attention", "keys"])
def test_output_of_self_attention_is_matched(unet, scope):
    recipe = unet_recipe(scope, metric="output")
    watcher = Watcher(level_two(unet))
    with attach(unet, recipe, sites=watcher.sites) as session:
        watcher.watch_outputs()
        call(DEEP, unet, session)
        plans = list(session.plans().values())
    for index, plan in enumerate(plans):
        assert torch.equal(plan.slot, recipe.policy(watcher.attended[index], TokenGrid((8, 8))).slot)
    assert not torch.equal(plans[0].slot, recipe.policy(watcher.tokens, TokenGrid((8, 8))).slot)


def test_segment_merges_once_and_every_block_in_it_is_short(unet):
    lengths = []
    for site in level_two(unet):
        site.block.ff.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    policy = {"threshold": -1, "capacity": 0.25, "spare": "fill"}
    with attach(unet, unet_recipe("block", segment=2, **policy), sites=level_two(unet)) as session:
        call(DEEP, unet, session)
        assert [pairs.cache.has_plan for pairs in session._runs.each[0].attachment.pairs] == [True, True]
    assert lengths == [32, 32, 32]
