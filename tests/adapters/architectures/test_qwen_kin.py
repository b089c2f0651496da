"""Calls of Qwen-Image 2.1 and its kin that differ from those of their tiny networks in the zoo."""

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21FlexAttnProcessor, QwenImage21KVCache

from catome_adapters import MergeRecipe, attach
from catome_core import AdaptiveMerge
from running import ONCE, SCOPES, TOTAL, make_recipe
from zoo.noise import each_sample
from zoo.qwen_kin import QWEN_IMAGE_21

pytestmark = pytest.mark.usefixtures("without_gradients")

every_scope = pytest.mark.parametrize("scope", SCOPES)
TEXT, TARGET, REFERENCE = 5, 64, 16


def edit_arguments():
    """A text, a reference image of 4 x 4 within it, more text, and the image."""
    given = QWEN_IMAGE_21.inputs()
    slots = torch.zeros(2, TEXT + 4, dtype=torch.bool)
    slots[:, 2:6] = True
    mask = torch.ones(2, TEXT + 4, dtype=torch.bool)
    mask[1, -1] = False
    return given | {
        "hidden_states": each_sample(2, REFERENCE + TARGET, 4),
        "encoder_hidden_states": each_sample(2, TEXT + 4, 8),
        "encoder_hidden_states_mask": mask,
        "img_shapes": [[(1, 4, 4), (1, 8, 8)]] * 2,
        "img_mask": torch.cat([slots, torch.ones(2, TARGET // 4, dtype=torch.bool)], dim=1),
    }


@every_scope
@pytest.mark.parametrize("arguments", [QWEN_IMAGE_21.inputs, edit_arguments], ids=["text", "edit"])
def test_cached_keys_of_the_text_change_nothing(scope, arguments):
    network, given = QWEN_IMAGE_21.network(), arguments()
    with attach(network, make_recipe(scope, schedule=ONCE)) as session:
        plain, cached = [], []
        for outputs, cache in ((plain, None), (cached, QwenImage21KVCache(2))):
            for number, mode in enumerate(("extract", "cached", "cached")):
                session.begin_step(number, TOTAL)
                of_cache = {} if cache is None else {"kv_cache": cache, "kv_cache_mode": mode}
                outputs.append(network(**given, **of_cache, return_dict=False)[0][:, -TARGET:])
        assert {plan.size.shape[1] for plan in session.plans().values()} != {TARGET}
    for one, other in zip(plain, cached, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_mask_by_index_is_refused():
    network = QWEN_IMAGE_21.network()
    network.set_attn_processor(QwenImage21FlexAttnProcessor())
    recipe = MergeRecipe(AdaptiveMerge(0.0, spare="fill"), scope="attention", proportional=False)
    with pytest.raises(ValueError, match="masks tokens by their index; call set_attn_processor"):
        attach(network, recipe)
