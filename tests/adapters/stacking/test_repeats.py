"""Gradients through several steps, with gradient checkpointing or without, are those of the stored graph."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from catome_adapters import RECIPES, MergeSession, attach, compile_blocks
from catome_adapters.hooks.repeats import HostCall, HostRepetition, SegmentPass
from catome_adapters.sites.grid import GridSize
from changes import PROJECTIONS, add_lora
from probes import Interrupted, failing
from running import METRICS, TOTAL, assert_same, make_recipe, unet_recipe
from tiers import tiered
from zoo.noise import each_sample
from zoo.transformers import ARCHITECTURES
from zoo.unets import SD, conditions
from zoo.vits import VITS, images

Predict = Callable[[Tensor], Tensor]
STEPS = (0, 1, 3, 4)


def prediction_of(name: str, network: Any) -> tuple[Predict, Tensor]:
    """A prediction of the sample's shape for any sample, and a first sample."""
    if name == "SD":
        given = conditions(network, 1) | {"return_dict": False}
        return lambda sample: network(sample, 500, **given)[0], each_sample(1, 4, 16, 16)
    inputs = ARCHITECTURES[name].inputs(batch=1)
    sample = inputs.pop("hidden_states")
    return lambda value: network(value, **inputs, return_dict=False)[0][:, : value.shape[1]], sample


def unrolled(session: MergeSession, predict: Predict, start: Tensor) -> Tensor:
    """Two checkpoints, and a step that reuses after each."""
    sample = start
    for step in STEPS:
        session.begin_step(step, TOTAL)
        sample = sample - 0.1 * predict(sample)
    return sample


def run(network: Any, recipe: Any, name: str, checkpointed: str = "") -> list[Tensor]:
    """The result of the steps, the prediction of the next step, and all gradients of the result."""
    predict, start = prediction_of(name, network)
    start = start.clone().requires_grad_()
    wrapped: Predict = predict
    if checkpointed == "network":
        wrapped = lambda sample: checkpoint(predict, sample, use_reentrant=False)  # noqa: E731
    network.enable_gradient_checkpointing() if checkpointed == "blocks" else network.disable_gradient_checkpointing()
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    with attach(network, recipe) as session:
        result = unrolled(session, wrapped, start)
        before = str(session.summary())
        found = torch.autograd.grad(result.square().mean(), [start, *weights], allow_unused=True)
        assert str(session.summary()) == before
        session.begin_step(5, TOTAL)
        with torch.no_grad():
            following = predict(start)
    gradients = [gradient for gradient in found if gradient is not None]
    assert len(gradients) > 4 and all(gradient.isfinite().all() for gradient in gradients)
    return [result.detach(), following, *gradients]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", tiered(["DiT", "Flux"], ["DiT"]))
def test_gradient_checkpointing_over_steps_gives_the_same_bits(name, scope, metric):
    """Of single blocks and of the whole network; afterwards the session goes on as if nothing had been repeated."""
    network = ARCHITECTURES[name].network()
    recipe = make_recipe(scope, threshold=0.2, capacity=None, metric=metric)
    stored = run(network, recipe, name)
    for checkpointed in ("blocks", "network"):
        assert_same(run(network, recipe, name, checkpointed), stored)


@pytest.mark.thorough
def test_gradient_checkpointing_of_a_unet_over_steps_gives_the_same_bits(scope):
    # Blocks of a UNet are checkpointed in training only.
    network, recipe = SD.network().train(), unet_recipe(scope, destination="random")
    assert_same(run(network, recipe, "SD", "blocks"), run(network, recipe, "SD"))


def test_gradient_checkpointing_over_steps_with_trained_lora_only(scope):
    """The tokens that enter a block may need no gradient."""
    network, recipe = ARCHITECTURES["DiT"].network(), make_recipe(scope, threshold=0.2, destination="rotate")
    add_lora(network, PROJECTIONS)
    assert_same(run(network, recipe, "DiT", "blocks"), run(network, recipe, "DiT"))


class Checkpointed(nn.Module):
    """A block that the user checkpoints."""

    def __init__(self, block: nn.Module, *, use_reentrant: bool) -> None:
        super().__init__()
        self.block, self.use_reentrant = block, use_reentrant

    def forward(self, *args: Any) -> Any:
        return checkpoint(self.block, *args, use_reentrant=self.use_reentrant)


def gradient(network: nn.Module) -> Tensor:
    return network.blocks[0].mlp.fc1.weight.grad.clone()


@pytest.mark.parametrize("metric", METRICS)
def test_repetition_after_a_step_that_failed(scope, metric):
    """The failed step has left attention before its end, with an output still to be matched; it stays due."""
    network, recipe = ARCHITECTURES["DiT"].network(), make_recipe(scope, capacity=None, metric=metric)
    predict, sample = prediction_of("DiT", network)
    network.enable_gradient_checkpointing()
    found = []
    for fails in (False, True):
        with attach(network, recipe) as session:
            session.begin_step(0, TOTAL)
            loss = predict(sample).square().mean()
            if fails:
                session.begin_step(3, TOTAL)
                with failing(network.transformer_blocks[0].attn1.to_q), pytest.raises(Interrupted):
                    predict(sample)
            found.append(torch.autograd.grad(loss, network.transformer_blocks[0].attn1.to_v.weight)[0])
            session.begin_step(4, TOTAL)
            with torch.no_grad():
                predict(sample)
            assert session.summary().rows[-1].checkpoint == fails
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("name", "checkpointed"), [("vit", ""), ("vit", "blocks"), ("vit", "network"), ("tome", ""), ("tome", "network")]
)
def test_two_images_before_a_backward_pass(name, checkpointed):
    """Of two sizes; the plans of each are its own, also where every block merges further."""
    network, given = VITS["ViT"].network(dynamic_img_size=True), [images(seed=0), images(size=(24, 40), seed=1)]
    network.set_grad_checkpointing(checkpointed == "blocks")
    call: Predict = network
    if checkpointed == "network":
        call = lambda image: checkpoint(network, image, use_reentrant=False)  # noqa: E731
    with attach(network, RECIPES[name]):
        sum(call(image).square().sum() for image in given).backward()
        together = gradient(network)
        network.zero_grad()
        for image in given:
            network(image).square().sum().backward()
    torch.testing.assert_close(gradient(network), together)


def test_passes_of_a_repeated_call_come_in_their_order():
    """A block may run several times in one call of its network."""
    call, sizes = HostCall(), [GridSize((2, 2)), GridSize((3, 3))]
    call.passes["block"] += [SegmentPass(size) for size in sizes]
    for _ in range(2):
        repetition = HostRepetition(call)
        assert [repetition.next_pass("block").size for _ in sizes] == sizes


@pytest.mark.parametrize(
    "wrong", ["reentrant", "reentrant block", "more than the network", "same tensor", "block of a segment"]
)
def test_repetition_of_an_unknown_call_is_refused(wrong):
    network, image = VITS["ViT"].network(), images().requires_grad_()
    segment = 2 if "segment" in wrong else 1
    with attach(network, make_recipe("block", threshold=0.2, segment=segment)):
        if wrong == "reentrant":
            result = checkpoint(network, image, use_reentrant=True)
        elif wrong == "more than the network":
            result = checkpoint(lambda value: network(value.sin()), image, use_reentrant=False)
        elif wrong == "same tensor":
            result = sum(checkpoint(network, image, use_reentrant=False) for _ in range(2))
        else:
            network.blocks[1] = Checkpointed(network.blocks[1], use_reentrant=wrong == "reentrant block")
            result = network(image)
        with pytest.raises(RuntimeError, match=r"was called in a backward pass.*use_reentrant=False"):
            result.sum().backward()


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_blocks_that_would_be_repeated_over_steps_are_refused():
    """In a single step they have the plan of their step."""
    network = ARCHITECTURES["DiT"].shallow()
    compile_blocks(network, backend="eager")
    network.enable_gradient_checkpointing()
    with attach(network, make_recipe("block")) as session:
        session.begin_step(0, TOTAL)
        with pytest.raises(ValueError, match=r"its block is compiled, and gradient checkpointing .* later step"):
            session.begin_step(1, TOTAL)
        with torch.no_grad():
            session.begin_step(0, TOTAL)
            session.begin_step(1, TOTAL)
        network.disable_gradient_checkpointing()
        session.begin_step(2, TOTAL)
