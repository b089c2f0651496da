"""Sites of one's own that are declared wrongly."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from catome_adapters import BlockLayout, PerToken, attach, patches
from catome_adapters.hooks import attention
from running import call, make_recipe
from zoo.own_blocks import WIDTH, OwnSoftmax, Trunk
from zoo.own_models import OWN_MODELS, OwnModel, rotary, stack_sites

pytestmark = pytest.mark.usefixtures("without_gradients")

ENCODER = OWN_MODELS["TransformerEncoderLayer"]


def run_one(model: OwnModel, network: nn.Module, scope: str = "attention", **changes: Any) -> None:
    """One call, with sites of which something is changed."""
    sites = [replace(site, **changes) for site in model.sites(network)]
    with attach(network, make_recipe(scope, threshold=0.5), sites=sites) as session:
        call(model, network, session)


def test_rows_that_cannot_follow_are_named():
    model, network = OWN_MODELS["rotary"], OWN_MODELS["rotary"].network()
    network.stack[0].register_forward_pre_hook(lambda _, args: (args[0], args[1][:, :50]))
    with pytest.raises(ValueError, match=r"stack\.0: argument angles has shape \(1, 50, 4\); expected 64 rows"):
        run_one(model, network)


@pytest.mark.parametrize("scope", ["attention", "block"])
def test_rows_that_nobody_declared_are_named_with_the_remedy(scope):
    model, network = OWN_MODELS["rotary"], OWN_MODELS["rotary"].network()
    message = r'stack\.0: .* argument angles of shape \(1, 64, 4\).*per_token=\(PerToken\("angles"\),\) in the layout'
    with pytest.raises(ValueError, match=message) as raised:
        run_one(model, network, scope, layout=BlockLayout(output=0))
    assert "must match the size" in str(raised.value.__cause__)
    run_one(model, network, "keys", layout=BlockLayout(output=0))


@pytest.mark.parametrize("error", [RuntimeError("no space left"), torch.OutOfMemoryError("no memory of that size")])
def test_another_error_of_attention_stays_as_it_is(error):
    model, network = OWN_MODELS["rotary"], OWN_MODELS["rotary"].network()
    network.stack[0].attention.qkv.register_forward_hook(Raise(error))
    with pytest.raises(RuntimeError) as raised:
        run_one(model, network, layout=BlockLayout(output=0))
    assert raised.value is error and error.__cause__ is None


@pytest.mark.parametrize(
    ("layout", "capacity", "batch"),
    [
        pytest.param(BlockLayout(output=0, per_token=(PerToken("angles"),)), 0.25, 64, id="as many samples as tokens"),
        pytest.param(BlockLayout(output=0), None, 2, id="as many slots as tokens"),
    ],
)
def test_error_of_sizes_that_declared_rows_cannot_remedy_stays_as_it_is(layout, capacity, batch):
    model, network = OWN_MODELS["rotary"], OWN_MODELS["rotary"].network()
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    network.stack[0].attention.qkv.register_forward_hook(Raise(error))
    sites = [replace(site, layout=layout) for site in model.sites(network)]
    with attach(network, make_recipe(capacity=capacity), sites=sites) as session, pytest.raises(RuntimeError) as raised:
        call(model, network, session, batch=batch)
    assert raised.value is error


class Raise:
    """A hook that raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *_: object) -> None:
        raise self.error


def test_rows_without_a_batch_need_a_shared_plan():
    model = rotary(batched=False)
    layout = BlockLayout(output=0, per_token=(PerToken("angles"),))
    with pytest.raises(ValueError, match=r"stack\.0: argument angles has shape \(64, 4\).*no batch.*shared=True"):
        run_one(model, model.network(), layout=layout)


def test_wrong_grid_is_refused():
    with pytest.raises(ValueError, match=r"stack\.0 got 64 tokens.*a grid of 8 x 9.*grid_of"):
        run_one(ENCODER, ENCODER.network(), grid_of=lambda arguments: (8, 9))


def test_patch_of_another_number_of_sizes_is_refused_with_the_shape_of_the_image():
    model = OWN_MODELS["Hugging Face ViT"]
    with pytest.raises(
        ValueError, match=r"pixel_values has shape \(2, 3, 8, 8\); .*3 sizes.*patch=\(1, 2, 2\): pass a"
    ):
        run_one(model, model.network(), grid_of=patches("pixel_values", (1, 2, 2)))


def test_attention_outside_of_the_block_is_refused():
    first, second, _ = ENCODER.sites(ENCODER.network())
    with pytest.raises(ValueError, match=r"stack\.0: its attention MultiheadAttention is not inside its block"):
        replace(first, attention=second.attention)


def test_host_that_was_not_called_is_named():
    with pytest.raises(ValueError, match=r"stack\.0 was called, and its host Linear, .*was not.*host="):
        run_one(ENCODER, ENCODER.network(), host=nn.Linear(1, 1))


def test_attention_that_does_not_call_torch_is_named():
    model = OwnModel(lambda: Trunk(lambda: nn.Sequential(OwnSoftmax())), partial(stack_sites, "0"))
    with pytest.raises(ValueError, match=r"stack\.0: OwnSoftmax did not call scaled_dot_product_attention"):
        run_one(model, model.network())


def test_a_cache_excuses_only_attention_that_it_skips(monkeypatch):
    """This one is computed, by code that cannot be intercepted."""
    monkeypatch.setattr(attention, "find_substitutes", lambda module: [module])

    def run(*parts: nn.Module) -> None:
        model = OwnModel(lambda: Trunk(lambda: nn.Sequential(nn.Sequential(*parts))), partial(stack_sites, "0"))
        run_one(model, model.network())

    run(OwnSoftmax())
    with pytest.raises(ValueError, match=r"stack\.0: Sequential did not call scaled_dot_product_attention"):
        run(nn.Linear(WIDTH, WIDTH), OwnSoftmax())


def test_interception_ends_after_an_error_inside(scope):
    model, network = OWN_MODELS["DiT (x, c)"], OWN_MODELS["DiT (x, c)"].network()
    network.stack[1].attn.qkv.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_one(model, network, scope)
    assert _get_current_function_mode_stack() == []
