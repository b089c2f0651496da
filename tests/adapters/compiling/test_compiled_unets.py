"""A whole UNet compiled: no break, the results of eager, and as few graphs as the blocks need."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from catome_adapters import MergeRecipe, attach
from catome_bench.models.pipeline import class_tokens
from catome_bench.models.untrained import CLASS_NAMES, build_unet
from catome_core import AdaptiveMerge
from running import make_recipe
from zoo.noise import noise, seeded
from zoo.unet_pipelines import class_pipeline, draw
from zoo.unets import CLASSES, class_unet

pytestmark = pytest.mark.usefixtures("fresh_compiler", "without_gradients")

OPTIONS = {"threshold": 0.2, "capacity": 0.5, "levels": "auto"}


def bench_unet() -> nn.Module:
    """The network of the bench, with random weights."""
    with seeded():
        return build_unet().eval()


def inputs_of(step: int, classes: int = len(CLASSES)) -> tuple[Tensor, Tensor, Tensor]:
    """Sample, timestep and class tokens; of the second sample, those of no class."""
    tokens = class_tokens(torch.tensor([0, classes]), classes).float()
    return noise(2, 12, 16, 16, seed=step), torch.tensor(20 - step), tokens


def twenty_steps(session, network) -> None:
    """Of the network of the bench."""
    for step in range(20):
        session.begin_step(step, 20)
        network(*inputs_of(step, len(CLASS_NAMES)))


@pytest.mark.thorough
def test_what_was_compiled_and_called_before_attach_merges_and_after_detach_does_not():
    unet = class_unet()
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    inputs = inputs_of(0)
    before = compiled(*inputs).sample
    with attach(unet, MergeRecipe(AdaptiveMerge(-1, capacity=0, spare="fill"))) as session:
        session.begin_step(0, 2)
        during = compiled(*inputs).sample
        merged = unet(*inputs).sample
    torch.testing.assert_close(during, merged)
    assert not torch.allclose(before, during, atol=1e-3)
    assert torch.equal(compiled(*inputs).sample, before)


@pytest.mark.thorough
def test_a_compiled_pipeline_with_the_ladder_draws_the_same_picture_twice():
    """The first run finds no memory and allocates in the graph; that must not change the picture."""
    pipe = class_pipeline()
    recipe = MergeRecipe(AdaptiveMerge(0.2, spare="fill", destination="random"))
    with attach(pipe, recipe):
        eager = draw(pipe, size=32, steps=6)
    with attach(pipe, recipe) as session:
        pipe.unet.compile(fullgraph=True, backend="eager")
        first, second = (draw(pipe, size=32, steps=6) for _ in range(2))
        assert session.summary().merged_fraction > 0.2
    assert torch.equal(first, second)
    torch.testing.assert_close(first, eager, atol=1e-4, rtol=1e-3)


@pytest.mark.thorough
def test_regional_compile_takes_two_small_graphs_more_for_all_merged_blocks():
    """The blocks of a level share their graph as before; planning is a graph of its own, to recompute or to reuse."""
    unpatched = CompileCounter()
    unet = bench_unet()
    unet.compile_repeated_blocks(fullgraph=True, backend=unpatched)
    unet(*inputs_of(0, len(CLASS_NAMES)))
    torch.compiler.reset()
    merged = CompileCounter()
    unet = bench_unet()
    with attach(unet, make_recipe(**OPTIONS)) as session:
        twenty_steps(session, unet)
        unet.compile_repeated_blocks(fullgraph=True, backend=merged)
        twenty_steps(session, unet)
    assert merged.frame_count == unpatched.frame_count + 2
