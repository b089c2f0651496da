"""Merged blocks against the model's own blocks on merged tokens."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from catome_adapters import attach
from catome_core import MergePlan
from running import assert_close, vit_recipe
from zoo.vit_blocks import run_block
from zoo.vits import VITS, images

pytestmark = pytest.mark.usefixtures("without_gradients")


class Watch:
    """Sees what goes into one module, before a session changes it, and what comes out after."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        module.register_forward_pre_hook(self._see_input)

    def watch_output(self) -> None:
        self.module.register_forward_hook(self._see_output)

    def _see_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.tokens = args[0]

    def _see_output(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.merged, self.output = args[0], output


@pytest.mark.parametrize(("spare", "proportional"), list(product(("pad", "fill"), (True, False))))
def test_block_runs_on_merged_tokens_at_the_positions_of_their_anchors(vit, network, spare, proportional):
    watch = Watch(network.blocks[1])
    with attach(network, vit_recipe("block", spare=spare, proportional=proportional)) as session:
        watch.watch_output()
        vit.call(network)
        plan = session.plans()["blocks.1"]
    for sample in range(2):
        expected = run_merged(network, 1, watch.tokens[sample], sample_of(plan, sample), proportional)
        assert_close(watch.output[sample], expected)


def sample_of(plan: MergePlan, sample: int) -> MergePlan:
    return MergePlan(*(part[sample] for part in plan[:3]))


def run_merged(network: nn.Module, index: int, tokens: Tensor, plan: MergePlan, proportional: bool) -> Tensor:
    """One sample through a block on its real slots: every token keeps itself and takes the change of its slot."""
    real = range(int((plan.size > 0).sum()))
    slots = torch.stack([tokens[plan.slot == slot].mean(0) for slot in real])
    bias = plan.size[: len(real)].log() * proportional
    changed = run_block(network, index, slots[None], plan.anchor[: len(real)], bias)[0]
    return tokens + (changed - slots)[plan.slot]


@pytest.mark.parametrize("name", ["BEiT", "BEiT shared"])
def test_keys_scope_takes_columns_of_relative_positions_and_keeps_their_rows(name):
    network = VITS[name].network()
    attention = network.blocks[1].attn
    watch = Watch(attention)
    with attach(network, vit_recipe("keys")) as session:
        watch.watch_output()
        VITS[name].call(network)
        plan = session.plans()["blocks.1"]
    relative = attention._get_rel_pos_bias() if name == "BEiT" else network.rel_pos_bias()[None]
    expected = [
        attend_to_slots(attention, relative[0], watch.tokens[sample], sample_of(plan, sample)) for sample in range(2)
    ]
    assert_close(watch.output, torch.stack(expected))


def attend_to_slots(attention: Any, relative: Tensor, tokens: Tensor, plan: MergePlan) -> Tensor:
    """Every token attends to the anchors' keys, as many times as a slot has tokens, and to the mean of its values."""
    bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    split = nn.functional.linear(tokens, attention.qkv.weight, bias).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = split.permute(1, 2, 0, 3)
    scores = query @ key.mT[..., plan.anchor] * attention.scale + relative[..., plan.anchor] + plan.size.log()
    means = torch.stack([value[:, plan.slot == slot].mean(1) for slot in range(len(plan.size))], 1)
    return attention.proj((scores.softmax(-1) @ means).transpose(0, 1).flatten(1))


def test_prefix_tokens_never_merge_and_enter_the_block_untouched(vit, network):
    watch = Watch(network.blocks[1])
    with attach(network, vit_recipe("block", capacity=0.0)) as session:
        watch.watch_output()
        vit.call(network)
        plan = session.plans()["blocks.1"]
    assert watch.merged.shape[1] == vit.prefix + 16
    assert torch.equal(watch.merged[:, : vit.prefix], watch.tokens[:, : vit.prefix])
    assert torch.equal(plan.slot[:, : vit.prefix], torch.arange(vit.prefix).expand(2, -1))
    assert (plan.size[:, : vit.prefix] == 1).all()


def test_a_mask_of_the_caller_becomes_that_of_the_anchors():
    network, length = VITS["ViT"].network(), 65
    mask = torch.rand(length, length, generator=torch.Generator().manual_seed(0))
    watch = Watch(network.blocks[1])
    with attach(network, vit_recipe("block", proportional=False)) as session:
        watch.watch_output()
        network.forward_features(images(1), attn_mask=mask)
        plan = sample_of(session.plans()["blocks.1"], 0)
    slots = torch.stack([watch.tokens[0, plan.slot == slot].mean(0) for slot in range(len(plan.size))])[None]
    expected = network.blocks[1].forward(slots, attn_mask=mask[plan.anchor][:, plan.anchor])
    changed = (expected - slots)[0]
    assert_close(watch.output[0], watch.tokens[0] + changed[plan.slot])
