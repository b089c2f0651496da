"""What a block of a UNet computes in each scope, written out with softmax attention."""

import torch
from einops import rearrange
from torch import Tensor, nn

from catome_adapters import attach, find_sites
from catome_core import MergePlan, gather_anchors, merge, unmerge
from running import assert_close, unet_recipe
from zoo.noise import noise
from zoo.unets import predict, sd_unet


@torch.no_grad()
def test_block_computes_what_its_scope_says(merging):
    unet, seen = sd_unet(), {}
    site, text = find_sites(unet)[0], noise(2, 3, unet.config.cross_attention_dim)
    site.block.register_forward_pre_hook(lambda _, args: seen.update(tokens=args[0]))
    with attach(unet, unet_recipe(**merging), sites=[site]) as session:
        site.block.register_forward_hook(lambda _, args, output: seen.update(output=output))
        session.begin_step(0, 3)
        predict(unet, noise(2, 4, 16, 16), encoder_hidden_states=text)
        plan = session.plans()[site.name]
    bias = plan.size.log() if merging["proportional"] else (plan.size > 0).log()
    expected = block_by_hand(site.block, seen["tokens"], text, plan, merging["scope"], bias[:, None, None])
    assert_close(seen["output"], expected)
    assert not torch.allclose(seen["output"], plain_block(site.block, seen["tokens"], text), rtol=1e-2, atol=1e-3)


def block_by_hand(block: nn.Module, tokens: Tensor, text: Tensor, plan: MergePlan, scope: str, bias: Tensor) -> Tensor:
    if scope == "block":
        short = merge(tokens, plan)
        normed = block.norm1(short)
        return tokens + unmerge(rest(block, short, attend(block.attn1, normed, normed, bias), text) - short, plan)
    normed = block.norm1(tokens)
    short = merge(normed, plan)
    if scope == "keys":
        anchors = gather_anchors(normed, plan)
        return rest(block, tokens, attend(block.attn1, normed, short, bias, keys=anchors), text)
    return rest(block, tokens, unmerge(attend(block.attn1, short, short, bias), plan), text)


def plain_block(block: nn.Module, tokens: Tensor, text: Tensor) -> Tensor:
    normed = block.norm1(tokens)
    return rest(block, tokens, attend(block.attn1, normed, normed, torch.zeros(())), text)


def attend(attention: nn.Module, queries: Tensor, values: Tensor, bias: Tensor, keys: Tensor | None = None) -> Tensor:
    projected = attention.to_q(queries), attention.to_k(values if keys is None else keys), attention.to_v(values)
    query, key, value = (rearrange(part, "b n (h d) -> b h n d", h=attention.heads) for part in projected)
    weights = (query @ key.mT / query.shape[-1] ** 0.5 + bias).softmax(-1)
    return attention.to_out[0](rearrange(weights @ value, "b h n d -> b n (h d)"))


def rest(block: nn.Module, tokens: Tensor, attended: Tensor, text: Tensor) -> Tensor:
    tokens = tokens + attended
    tokens = tokens + attend(block.attn2, block.norm2(tokens), text, torch.zeros(()))
    return tokens + block.ff(block.norm3(tokens))
