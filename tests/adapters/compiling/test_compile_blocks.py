"""Regional compilation: equal blocks share their graphs, merged or not, and nothing else is compiled."""

from functools import partial
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from catome_adapters import MergeSite, attach, compile_blocks, find_sites
from running import assert_close, make_recipe, run, unet_recipe
from tiers import tiered
from zoo.architecture import Architecture
from zoo.noise import noise, seeded
from zoo.transformers import ARCHITECTURES, COMPILED_BY_BLOCKS
from zoo.unets import SD, sd_unet

LAYERS = 4
WITHOUT_NAMES = ["DiT", "PixArt", "SD3", "CogVideoX"]
ALWAYS = [("DiT", "attention")]
CASES = [(name, "attention") for name in COMPILED_BY_BLOCKS] + [("PixArt", "keys"), ("Wan", "keys"), ("Wan", "block")]

pytestmark = pytest.mark.usefixtures("fresh_compiler", "without_gradients")


def deep(name: str) -> nn.Module:
    kind = ARCHITECTURES[name]
    return kind.network(**dict.fromkeys(kind.depths, LAYERS))


def count_graphs(network: nn.Module, kind: Architecture) -> int:
    counter = CompileCounter()
    compile_blocks(network, fullgraph=True, backend=counter)
    kind.call(network)
    return counter.frame_count


@pytest.mark.parametrize(("name", "scope"), tiered(CASES, ALWAYS))
def test_equal_blocks_share_their_graphs(name, scope):
    """A block's own graph, and two to plan and merge, once for every kind of block and not once for every block."""
    kind, network, counter = ARCHITECTURES[name], deep(name), CompileCounter()
    with attach(network, make_recipe(scope, threshold=0.7)) as session:
        eager = run(kind, network, session)
        blocks = compile_blocks(network, fullgraph=True, backend=counter)
        compiled = run(kind, network, session)
    assert_close(compiled, eager)
    unpatched = count_graphs(network, kind)
    assert unpatched < len(blocks)
    assert counter.frame_count <= 3 * unpatched + (scope == "block")


@pytest.mark.parametrize("name", WITHOUT_NAMES)
def test_models_whose_blocks_diffusers_does_not_name(name):
    network = ARCHITECTURES[name].network()
    assert not network._repeated_blocks
    names = compile_blocks(network, backend="eager")
    assert names == [site.name for site in find_sites(network)]
    compiled = [name for name, module in network.named_modules() if module._compiled_call_impl is not None]
    assert compiled == names


def test_blocks_that_diffusers_names_are_compiled_although_no_site_is_among_them():
    """The refiner of HunyuanVideo's text is no site, and not compiled; every block of a UNet is."""
    unet = sd_unet(only_cross_attention=(True, False, False))
    assert len(compile_blocks(unet, backend="eager")) == len(find_sites(sd_unet()))


def test_both_networks_of_a_pipeline():
    wan = ARCHITECTURES["Wan"]
    pipe = SimpleNamespace(transformer=wan.network(), transformer_2=wan.network())
    names = compile_blocks(pipe, backend="eager")
    assert names == ["transformer.blocks.0", "transformer.blocks.1", "transformer_2.blocks.0", "transformer_2.blocks.1"]


@pytest.mark.thorough
def test_vision_transformer():
    with seeded():
        vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3).eval()
    image, counter = noise(2, 3, 64, 64), CompileCounter()
    with attach(vit, make_recipe(threshold=0.7)) as session:
        eager = vit(image)
        assert compile_blocks(vit, fullgraph=True, backend=counter) == [site.name for site in session.sites]
        assert_close(vit(image), eager)
    assert 0 < counter.frame_count <= 4


@pytest.mark.thorough
def test_compiled_before_attach_and_after_detach():
    network, kind = ARCHITECTURES["DiT"].network(), ARCHITECTURES["DiT"]
    plain = kind.call(network)
    compile_blocks(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(kind.call(network), plain)
    with attach(network, make_recipe(threshold=0.7)) as session:
        session.begin_step(0, 6)
        merged = kind.call(network)
        assert session.summary().merged_fraction > 0
    assert not torch.allclose(merged, plain)
    torch.testing.assert_close(kind.call(network), plain)


@pytest.mark.thorough
def test_each_rung_takes_graphs_of_its_own_and_no_more():
    network, kind, counter = deep("Wan"), ARCHITECTURES["Wan"], CompileCounter()
    with attach(network, make_recipe(threshold=0.7, capacity=None)) as session:
        run(kind, network, session)
        rungs = {row.capacity for row in session.summary().rows}
        compile_blocks(network, fullgraph=True, backend=counter)
        run(kind, network, session)
        once = counter.frame_count
        run(kind, network, session)
    assert counter.frame_count == once <= 3 * len(rungs) + 1


class OwnModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3)]
        self.stack = nn.ModuleList(layers)

    def forward(self, image: Tensor) -> Tensor:
        tokens = image.flatten(2).mT
        for layer in self.stack:
            tokens = layer(tokens)
        return tokens


def test_model_without_a_block_names_the_remedy():
    with pytest.raises(ValueError, match=r"no block to compile in OwnModel: pass sites=\[MergeSite"):
        compile_blocks(OwnModel())


def test_blocks_of_sites_by_hand():
    model = OwnModel().eval()
    sites = [MergeSite("first", model.stack[0], model.stack[0].self_attn, model)]
    assert compile_blocks(model, sites=sites, backend="eager") == ["stack.0", "stack.1", "stack.2"]


def test_options_reach_the_compiler():
    unet, graphs = sd_unet(), []
    compile_blocks(unet, backend=lambda module, inputs: graphs.append(module) or module)
    SD.call(unet)
    assert graphs


def wrap(network: nn.Module, kinds: tuple[str, ...]) -> nn.Module:
    """The network with `torch.compile(module)` in the place of every module of these classes."""
    for name, module in [*network.named_modules()]:
        if type(module).__name__ in kinds:
            network.set_submodule(name, torch.compile(module, backend="eager"))
    return network


WRAPPED = {
    "block of a UNet": (sd_unet, ("BasicTransformerBlock",)),
    "self-attention of a UNet": (sd_unet, ("Attention",)),
    "block of Flux": (ARCHITECTURES["Flux"].network, ARCHITECTURES["Flux"].blocks),
    "block of a ViT": (partial(timm.create_model, "test_vit"), ("Block",)),
}


@pytest.mark.parametrize("subject", WRAPPED)
def test_what_torch_compile_has_wrapped_is_skipped_with_the_remedy(subject):
    build, kinds = WRAPPED[subject]
    with pytest.raises(ValueError, match=r"blocks\.0: it, its self-attention.*compile_blocks\(model\), instead"):
        attach(wrap(build(), kinds))


@pytest.mark.thorough
def test_blocks_within_a_wrapped_host_are_sites_once():
    unet = wrap(sd_unet(), ("Transformer2DModel",))
    with attach(unet, unet_recipe("keys")) as session:
        assert len(session.sites) == len(find_sites(sd_unet()))
        run(SD, unet, session, steps=[0])
        assert session.summary().merged_fraction > 0
