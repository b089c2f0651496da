"""Attention processors that do not attend to the keys they are given: merged keys reach them by interception."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, PAGIdentitySelfAttnProcessor2_0
from diffusers.pipelines.deprecated.text_to_video_synthesis.pipeline_text_to_video_zero import (
    CrossFrameAttnProcessor2_0,
)
from torch import Tensor, nn

from catome_adapters import RECIPES, BlockLayout, MergeSite, attach
from running import assert_close, unet_recipe
from zoo.noise import noise
from zoo.unets import predict, sd_unet

TOTAL = 4
LATTICES = {name: replace(RECIPES[name], levels="all", during=(0.0, 1.0)) for name in ("balanced", "todo")}

pytestmark = pytest.mark.usefixtures("without_gradients")


def replace_self_attention(unet, processor) -> None:
    own = {name: processor for name in unet.attn_processors if name.endswith("attn1.processor")}
    unet.set_attn_processor(unet.attn_processors | own)


def predict_merged(unet, recipe, sample, text, processor=None) -> Tensor:
    """In the first step; the processor comes after the step has begun, as that of a pipeline does."""
    with attach(unet, recipe) as session:
        session.begin_step(0, TOTAL)
        if processor is not None:
            replace_self_attention(unet, processor)
        return predict(unet, sample, encoder_hidden_states=text)


@pytest.mark.parametrize("name", LATTICES)
def test_perturbed_attention_guidance_merges_keys_where_it_attends_and_nowhere_else(name):
    """The first half of its batch attends as ever. The second has no keys: its attention is the identity."""
    sample, text, processor = noise(1, 4, 16, 16), noise(1, 3, 8), PAGIdentitySelfAttnProcessor2_0()
    twice, texts, unet = sample.expand(2, -1, -1, -1), text.expand(2, -1, -1), sd_unet()
    attending = predict_merged(sd_unet(), LATTICES[name], sample, text)
    merged = predict_merged(unet, LATTICES[name], twice, texts, processor)
    unmerged = predict(unet, twice, encoder_hidden_states=texts)
    assert_close(merged[:1], attending)
    assert torch.equal(merged[1], unmerged[1])
    assert not torch.allclose(merged[0], unmerged[0], atol=1e-3)


@pytest.mark.parametrize("name", LATTICES)
def test_frames_attend_to_the_merged_keys_of_the_first_one(name):
    """This processor takes keys that it is given for those of a text, and leaves them to every frame."""
    frames, text, processor = noise(2, 4, 16, 16), noise(1, 3, 8).expand(2, -1, -1), CrossFrameAttnProcessor2_0(1)
    apart = predict_merged(sd_unet(), LATTICES[name], frames, text)
    across = predict_merged(sd_unet(), LATTICES[name], frames, text, processor)
    assert_close(across[0], apart[0])
    assert not torch.allclose(across[1], apart[1], atol=1e-3)


@pytest.mark.parametrize("scope", ["attention", "keys"])
def test_processor_that_attends_to_half_of_the_batch_is_refused_where_samples_have_plans_of_their_own(scope):
    sample, text = noise(2, 4, 16, 16), noise(2, 3, 8)
    with pytest.raises(ValueError, match="did not call scaled_dot_product_attention with"):
        predict_merged(sd_unet(), unet_recipe(scope), sample, text, PAGIdentitySelfAttnProcessor2_0())


def test_subclass_of_a_known_processor_is_not_trusted_with_keys():
    class Own(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
            assert encoder_hidden_states is None
            return super().__call__(attn, hidden_states, attention_mask=attention_mask, **kwargs)

    sample, text, recipe = noise(2, 4, 16, 16), noise(2, 3, 8), unet_recipe("keys")
    known = predict_merged(sd_unet(), recipe, sample, text)
    assert_close(predict_merged(sd_unet(), recipe, sample, text, Own()), known)


class NamingBlock(nn.Module):
    """Calls its self-attention by the names of the arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(8, heads=2, dim_head=4)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.attention(hidden_states=tokens)


class OneBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = NamingBlock()

    def forward(self, image: Tensor) -> Tensor:
        return self.block(image.flatten(2).mT)


@pytest.mark.parametrize("scope", ["attention", "keys", "block"])
def test_attention_is_given_keys_however_its_block_spells_the_call(scope):
    network, image = OneBlock(), noise(2, 8, 8, 8)
    merged = []
    for takes_keys in (True, False):
        layout = BlockLayout(takes_keys=takes_keys)
        site = MergeSite("block", network.block, network.block.attention, network, layout=layout)
        with attach(network, unet_recipe(scope, threshold=0.0), sites=[site]) as session:
            session.begin_step(0, TOTAL)
            merged.append(network(image))
    assert_close(*merged)
    assert not torch.allclose(merged[0], network(image), atol=1e-3)
