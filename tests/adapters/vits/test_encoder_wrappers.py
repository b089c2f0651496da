"""Models of transformers around a vision encoder: heads, text, kernels, recorded states, training, compiled."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from catome_adapters import RECIPES, attach, find_sites
from catome_adapters.architectures.find import find_candidates
from probes import anatomy
from running import assert_close, vit_recipe
from zoo.encoders import ENCODERS, image_and_text, make_model
from zoo.noise import seeded
from zoo.vits import images

VIT = ENCODERS["ViTModel"]


def model_of(name: str, **changes: Any) -> Any:
    with seeded():
        return make_model(name, **changes).eval()


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("ViTForImageClassification", "vit.layers"),
        ("Dinov2ForImageClassification", "dinov2.encoder.layer"),
        ("Dinov2Backbone", "encoder.layer"),
        ("CLIPVisionModelWithProjection", "vision_model.encoder.layers"),
        ("DeiTModel", "layers"),
        ("IJepaModel", "layers"),
    ],
)
def test_a_head_is_no_obstacle(name, folder):
    network = model_of(name)
    with torch.no_grad(), attach(network, vit_recipe("attention")) as session:
        assert [site.name for site in session.sites] == [f"{folder}.{index}" for index in range(3)]
        network(images())
        assert session.summary().merged_fraction > 0


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_text_beside_the_images_is_left_alone(name):
    network, tokens = image_and_text(name), torch.arange(32).reshape(2, 16)

    @torch.no_grad()
    def features() -> tuple[Tensor, Tensor]:
        output = network(input_ids=tokens, pixel_values=images())
        return output.image_embeds, output.text_embeds

    image, text = features()
    with attach(network, RECIPES["vit"]) as session:
        assert {site.name.rpartition(".")[0] for site in session.sites} == {"vision_model.encoder.layers"}
        merged_image, same_text = features()
    assert torch.equal(same_text, text) and not torch.allclose(merged_image, image, atol=1e-4)
    with pytest.raises(ValueError, match=r"no tokens to merge in .*TextModel"):
        attach(network.text_model, RECIPES["vit"])


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("BeitModel", {}, "BeitLayer takes interpolate_pos_encoding, resolution, and what merged tokens mean"),
        ("Siglip2VisionModel", {"num_patches": 64}, "images arrive as padded sequences of patches"),
        ("SwinModel", {"embed_dim": 16, "depths": [1], "num_attention_heads": [2]}, "SwinStage has no self-attention"),
    ],
)
def test_layers_that_cannot_merge_are_named_with_the_reason(name, changes, reason):
    network = model_of(name, **changes)
    assert find_sites(network) == [] and find_candidates(network)
    with pytest.raises(ValueError, match=rf"(?s)no tokens to merge in {name}.*layers\.0: {reason}"):
        attach(network, RECIPES["vit"])


def test_patches_that_the_model_leaves_out_are_refused():
    network = model_of("ViTMAEModel")
    with torch.no_grad(), attach(network, RECIPES["vit"]), pytest.raises(ValueError, match=r"got 17 tokens.*8 x 8"):
        network(images())


@pytest.mark.parametrize("kernel", ["eager", "flex_attention", "flash_attention_2"])
def test_attention_that_is_not_fused_is_refused_with_the_remedy(kernel):
    network = VIT.network()
    before = anatomy(network)
    network.config._attn_implementation = kernel
    message = rf"layers\.0: the attention backend '{kernel}' .*call set_attn_implementation\('sdpa'\) on the model"
    with pytest.raises(ValueError, match=message):
        attach(network, RECIPES["vit"])
    assert anatomy(network) == before


def test_attention_that_stops_being_fused_is_an_error_and_leaves_nothing_behind():
    network = VIT.network()
    with attach(network, RECIPES["vit"]):
        expected = VIT.call(network)
        network.set_attn_implementation("eager")
        with pytest.raises(ValueError, match=r"layers\.0: ViTAttention did not call scaled_dot_product_attention"):
            VIT.call(network)
        network.set_attn_implementation("sdpa")
        assert torch.equal(VIT.call(network), expected)


@pytest.mark.parametrize("scope", ["attention", "block"])
def test_any_attention_will_do_where_it_need_not_know_of_slots(scope):
    network, recipe = VIT.network(), vit_recipe(scope, proportional=False)
    with attach(network, recipe):
        fused = VIT.call(network)
        network.set_attn_implementation("eager")
        assert_close(VIT.call(network), fused)


def hidden_states(network: Any, **options: Any) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return network(images(), **options).hidden_states


@pytest.mark.parametrize("scope", ["attention", "keys"])
def test_recorded_states_are_those_between_the_layers(scope):
    network = VIT.network()
    unmerged = hidden_states(network, output_hidden_states=True)
    with attach(network, vit_recipe(scope)):
        states = hidden_states(network, output_hidden_states=True)
    assert torch.equal(states[0], unmerged[0])
    for changed, state in zip(states[1:], unmerged[1:], strict=True):
        assert changed.shape == state.shape and not torch.allclose(changed, state, atol=1e-3)


@pytest.mark.parametrize("recipe", ["vit", "tome"])
def test_recorded_states_of_merged_layers_are_refused(recipe):
    network = VIT.network()
    with attach(network, RECIPES[recipe]):
        with pytest.raises(ValueError, match=r"output_hidden_states was asked for, .* scope='attention'"):
            hidden_states(network, output_hidden_states=True)
        network.config.output_hidden_states = True
        with pytest.raises(ValueError, match="output_hidden_states was asked for"):
            hidden_states(network)
        network.config.output_hidden_states = False
        assert hidden_states(network) is None


@pytest.mark.parametrize("recipe", ["vit", "tome"])
def test_gradients_reach_every_layer_and_checkpointing_inside_of_layers_is_refused(recipe):
    network = VIT.network().train()
    with attach(network, RECIPES[recipe]):
        VIT.predict(network).square().sum().backward()
        assert all(layer.mlp.fc1.weight.grad.abs().sum() > 0 for layer in network.layers)
        network.gradient_checkpointing_enable()
        with pytest.raises(ValueError, match="gradient checkpointing"):
            VIT.predict(network).square().sum().backward()


@pytest.mark.usefixtures("fresh_compiler", "without_gradients")
@pytest.mark.thorough
@pytest.mark.parametrize(("name", "recipe"), [("DINOv3ViTModel", RECIPES["vit"]), ("CLIPVisionModel", RECIPES["tome"])])
def test_whole_model_compiles_to_one_graph_and_one_for_the_first_call(name, recipe):
    encoder, counter = ENCODERS[name], CompileCounter()
    network = encoder.shallow()
    with attach(network, recipe):
        expected = [encoder.call(network, seed=seed) for seed in range(3)]
    with attach(network, recipe):
        compiled = torch.compile(network, backend=counter, fullgraph=True)
        assert_close([encoder.call(compiled, seed=seed) for seed in range(3)], expected)
    assert counter.frame_count <= 2
