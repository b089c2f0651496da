"""Models and recipes that `attach` refuses, with the reason and the remedy."""

import pytest
from diffusers import UNet2DModel
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from catome_adapters import MergeRecipe, attach, find_sites
from catome_core import AdaptiveMerge
from probes import anatomy
from running import make_recipe
from zoo.transformers import ARCHITECTURES
from zoo.unets import sd_unet


def plain_unet() -> UNet2DModel:
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return UNet2DModel(block_out_channels=(8, 8), norm_num_groups=4, **blocks)


def unet_without_transformers():
    """DeepFloyd's blocks: attention with text and image in one, without a transformer around it."""
    blocks = {
        "down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
    }
    return sd_unet(block_out_channels=(8, 8), **blocks)


def unet_of_text_attention():
    return sd_unet(only_cross_attention=True, mid_block_type=None)


class Gridless(nn.Module):
    """Blocks of diffusers, in a network whose call gives no grid."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(8, 2, 4)])


class Unsupported(nn.Module):
    """Blocks that diffusers does not name."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([nn.Linear(8, 8)])


@pytest.mark.parametrize(
    "model", [lambda: nn.Linear(2, 2), plain_unet, unet_without_transformers, unet_of_text_attention]
)
def test_model_without_a_site_is_refused_with_a_remedy(model):
    network = model()
    before = anatomy(network)
    with pytest.raises(ValueError, match=rf"(?s)no tokens to merge in {type(network).__name__}.*sites=\["):
        attach(network)
    assert find_sites(network) == [] and anatomy(network) == before


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (unet_of_text_attention, "attends to text"),
        (Gridless, "the call of Gridless does not give the grid: looked for img_ids"),
        (Unsupported, "Linear is neither among the blocks that are known here nor in diffusers'"),
    ],
)
def test_refusal_names_what_looks_like_a_site_and_why_it_is_none(model, reason):
    with pytest.raises(ValueError, match=rf"transformer_blocks\.0: .*{reason}"):
        attach(model())


@pytest.mark.parametrize("nonsense", [None, "unet", object()])
def test_what_is_no_model_is_refused(nonsense):
    with pytest.raises(TypeError, match=f"{type(nonsense).__name__} is neither a torch.nn.Module nor a pipeline"):
        attach(nonsense)


@pytest.mark.parametrize("recipe", [7, AdaptiveMerge(), None])
def test_what_is_no_recipe_is_refused(recipe):
    with pytest.raises(TypeError, match=r"such as one of RECIPES: \['adaptive', 'balanced', 'close', 'default'"):
        attach(sd_unet(), recipe)


@pytest.mark.parametrize("levels", [(3,), (1, 8)])
def test_level_without_a_site_is_refused_and_the_levels_are_named(levels):
    unet = sd_unet()
    before = anatomy(unet)
    with pytest.raises(ValueError, match=r"levels is \(.*this model has self-attention at levels \[1, 2, 4\]"):
        attach(unet, MergeRecipe(levels=levels))
    assert anatomy(unet) == before


def test_unknown_scope_is_refused():
    with pytest.raises(
        ValueError, match=r"scope is 'mlp'; expected one of \('attention', 'keys', 'block', 'progressive'\)"
    ):
        attach(sd_unet(), MergeRecipe(scope="mlp"))


@pytest.mark.parametrize(
    ("devices", "refused"), [({"a": 0, "b": 1}, True), ({"a": 0, "b": "cpu"}, False), ({"": "cuda:0"}, False)]
)
def test_a_network_on_several_devices_is_refused(devices, refused):
    unet = sd_unet()
    unet.hf_device_map = devices
    if not refused:
        attach(unet, MergeRecipe(levels="all")).detach()
        return
    before = anatomy(unet)
    with pytest.raises(ValueError, match="device_map splits UNet2DConditionModel over 0, 1, and a plan"):
        attach(unet, MergeRecipe(levels="all"))
    assert anatomy(unet) == before


def test_a_replica_that_shares_the_hooks_is_refused():
    model = ARCHITECTURES["DiT"]
    network = model.network()
    with attach(network, make_recipe()), pytest.raises(ValueError, match="a replica of DiTTransformer2DModel"):
        model.call(network._replicate_for_data_parallel())
