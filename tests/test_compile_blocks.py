"""Regional compilation: equal blocks share their graphs, merged or not, and nothing else is compiled."""

from types import SimpleNamespace

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from architectures import ARCHITECTURES, Architecture
from catome_adapters import MergeRecipe, MergeSite, attach, compile_blocks, find_sites
from catome_core import AdaptiveMerge, CheckpointSchedule
from models import noise, predict, sd_unet, seeded

LAYERS = 4
SCHEDULE = CheckpointSchedule((0, 3), of=6)
DEEP = {"Flux": {"num_layers": LAYERS, "num_single_layers": LAYERS}}
DEEP["HunyuanVideo"] = DEEP["Flux"]
WITHOUT_NAMES = ["DiT", "PixArt", "SD3", "CogVideoX"]
CASES = [(name, "attention") for name in ARCHITECTURES] + [("PixArt", "keys"), ("Wan", "keys"), ("Wan", "block")]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    with torch.no_grad():
        yield
    torch.compiler.reset()


def deep(name: str) -> nn.Module:
    return ARCHITECTURES[name].network(**DEEP.get(name, {"num_layers": LAYERS}))


def recipe_for(scope: str, capacity: float | None = 0.25) -> MergeRecipe:
    return MergeRecipe(AdaptiveMerge(0.7, capacity), SCHEDULE, scope, proportional=True, levels="all")


def count_graphs(network: nn.Module, kind: Architecture) -> int:
    counter = CompileCounter()
    compile_blocks(network, fullgraph=True, backend=counter)
    kind.call(network)
    return counter.frame_count


def six_steps(session, network: nn.Module, kind: Architecture) -> list[Tensor]:
    outputs = []
    for step in range(6):
        session.begin_step(step, 6)
        outputs.append(kind.call(network, seed=step))
    return outputs


@pytest.mark.parametrize(("name", "scope"), CASES, ids=map("-".join, CASES))
def test_equal_blocks_share_their_graphs(name, scope):
    """A block's own graph, and two to plan and merge, once for every kind of block and not once for every block."""
    kind, network, counter = ARCHITECTURES[name], deep(name), CompileCounter()
    with attach(network, recipe_for(scope)) as session:
        eager = six_steps(session, network, kind)
        blocks = compile_blocks(network, fullgraph=True, backend=counter)
        compiled = six_steps(session, network, kind)
    for one, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
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


def test_vision_transformer():
    with seeded():
        vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3).eval()
    image, counter = noise(2, 3, 64, 64), CompileCounter()
    with attach(vit, recipe_for("attention")) as session:
        eager = vit(image)
        assert compile_blocks(vit, fullgraph=True, backend=counter) == [site.name for site in session.sites]
        torch.testing.assert_close(vit(image), eager, rtol=1e-4, atol=1e-5)
    assert 0 < counter.frame_count <= 4


def test_compiled_before_attach_and_after_detach():
    network, kind = ARCHITECTURES["DiT"].network(), ARCHITECTURES["DiT"]
    plain = kind.call(network)
    compile_blocks(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(kind.call(network), plain)
    with attach(network, recipe_for("attention")) as session:
        session.begin_step(0, 6)
        merged = kind.call(network)
        assert session.summary().merged_fraction > 0
    assert not torch.allclose(merged, plain)
    torch.testing.assert_close(kind.call(network), plain)


def test_each_rung_takes_graphs_of_its_own_and_no_more():
    network, kind, counter = deep("Wan"), ARCHITECTURES["Wan"], CompileCounter()
    with attach(network, recipe_for("attention", None)) as session:
        six_steps(session, network, kind)
        rungs = {row.capacity for row in session.summary().rows}
        compile_blocks(network, fullgraph=True, backend=counter)
        six_steps(session, network, kind)
        once = counter.frame_count
        six_steps(session, network, kind)
    assert counter.frame_count == once <= 3 * len(rungs) + 1


class Foreign(nn.Module):
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
    with pytest.raises(ValueError, match=r"no block to compile in Foreign: pass sites=\[MergeSite"):
        compile_blocks(Foreign())


def test_blocks_of_sites_by_hand():
    model = Foreign().eval()
    sites = [MergeSite("first", model.stack[0], model.stack[0].self_attn, model)]
    assert compile_blocks(model, sites=sites, backend="eager") == ["stack.0", "stack.1", "stack.2"]


def test_options_reach_the_compiler():
    unet, graphs = sd_unet(), []
    compile_blocks(unet, backend=lambda module, inputs: graphs.append(module) or module)
    predict(unet, noise(1, 4, 16, 16))
    assert graphs
