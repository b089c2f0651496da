"""Attention kernels beside a session on a transformer."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from catome_adapters import attach
from probes import Interrupted, anatomy, failing
from running import ONCE, assert_close, assert_same, call, make_recipe, maskless_recipe, run, run_merged
from tiers import tiered
from zoo.transformers import ARCHITECTURES


@pytest.fixture(autouse=True)
def default_backend() -> Iterator[None]:
    """`set_attention_backend` changes the default of all networks."""
    yield
    _AttentionBackendRegistry.set_active_backend("native")


# With flash attention, diffusers refuses Qwen-Image's own mask of the text.
OF_TORCH = [("Flux", "_native_flash"), ("Wan", "_native_flash")]
OF_TORCH += product(("Flux", "Wan", "Qwen-Image"), ("native", "_native_math"))


@pytest.mark.parametrize(("name", "backend"), tiered(OF_TORCH, OF_TORCH[1:3]))
def test_backends_of_torch_take_the_mask_or_extra_channels(recipe, backend, name):
    subject = ARCHITECTURES[name]
    network = subject.network()
    with attach(network, recipe) as session:
        expected = run(subject, network, session)
        network.set_attention_backend(backend)
        assert_same(run(subject, network, session), expected, tolerance=1e-4)


FLEX_IS_SLOW = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


@FLEX_IS_SLOW
@pytest.mark.parametrize("scope", ["attention", "block"])
@pytest.mark.parametrize("name", tiered(["Flux", "Wan"], ["Flux"]))
def test_backend_that_takes_no_mask_works_where_none_is_needed(scope, name):
    subject = ARCHITECTURES[name]
    network = subject.network()
    with attach(network, maskless_recipe(scope)) as session:
        expected = run(subject, network, session)
        # The checks are diffusers' own, for kernels that this machine may not have.
        network.set_attention_backend("flex")
        assert_same(run(subject, network, session), expected, tolerance=1e-4)


class Masks(TorchFunctionMode):
    """Records the masks of fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[Tensor | None] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            self.masks.append(kwargs.get("attn_mask"))
        return func(*args, **kwargs)


def test_flash_attention_gets_no_mask_from_the_next_step_on():
    subject = ARCHITECTURES["Flux"]
    network = subject.network()
    with attach(network, make_recipe()) as session, Masks() as recorded:
        call(subject, network, session)
        assert None not in recorded.masks
        network.set_attention_backend("_native_flash")
        recorded.masks.clear()
        call(subject, network, session, 1)
    assert set(recorded.masks) == {None}


def test_backend_that_is_not_torchs_is_refused_before_and_after_attach():
    backend = "flex"
    subject = ARCHITECTURES["Flux"]
    network = subject.network()
    message = f"transformer_blocks.0: the attention backend '{backend}' .*set_attention_backend.'native'.*spare='fill'"
    with attach(network, make_recipe()) as session:
        expected = run(subject, network, session)
        network.set_attention_backend(backend)
        with pytest.raises(ValueError, match=message):
            run(subject, network, session)
        network.set_attention_backend("native")
        assert_same(run(subject, network, session), expected)
    network.set_attention_backend(backend)
    with pytest.raises(ValueError, match=message):
        attach(network, make_recipe())


class FlashAttention:
    """Stands in for the package flash-attn, which needs a GPU, behind diffusers' own code for it."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """Query, key and value are (batch, tokens, heads, channels)."""
        if not torch.compiler.is_compiling():
            self.calls += 1
        query, key, value = (rows.transpose(1, 2) for rows in (q, k, v))
        return scaled_dot_product_attention(query, key, value, scale=options["softmax_scale"]).transpose(1, 2)


@pytest.fixture
def flash(monkeypatch) -> FlashAttention:
    standin = FlashAttention()
    monkeypatch.setattr(attention_dispatch, "_check_attention_backend_requirements", lambda backend: None)
    monkeypatch.setattr(attention_dispatch, "flash_attn_func", standin, raising=False)
    return standin


def test_attention_over_slots_runs_on_torchs_flash_attention_and_a_warning_says_so(recipe, flash):
    subject = ARCHITECTURES["Flux"]
    network = subject.network()
    expected = run_merged(subject, network, recipe)
    network.set_attention_backend("flash")
    unmerged = run(subject, network)
    before, flash.calls = anatomy(network), 0
    with pytest.warns(UserWarning, match=r"'flash' cannot be made aware of.*torch's flash attention .*spare='fill'"):
        session = attach(network, recipe)
    with session:
        with failing(network.transformer_blocks[1].attn.to_out[0]), pytest.raises(Interrupted):
            call(subject, network, session)
        assert_same(run(subject, network, session), expected, tolerance=1e-4)
    assert flash.calls == 0 and anatomy(network) == before
    assert_same(run(subject, network), unmerged)
    assert flash.calls > 0


def test_a_kernel_stays_where_attention_need_not_know_of_slots(flash):
    subject = ARCHITECTURES["Flux"]
    network = subject.network()
    network.set_attention_backend("flash")
    with attach(network, maskless_recipe()) as session:
        call(subject, network, session)
    assert flash.calls == len(session.sites)


@pytest.mark.thorough
@pytest.mark.usefixtures("fresh_compiler", "flash")
def test_the_substitute_compiles_without_a_break_and_to_as_many_graphs():
    subject, counter = ARCHITECTURES["Wan"], CompileCounter()
    network = subject.shallow()
    network.set_attention_backend("flash")
    with pytest.warns(UserWarning, match="'flash'"):
        session = attach(network, make_recipe(schedule=ONCE))
    with session:
        eager = [call(subject, network, session, step, seed=step) for step in range(3)]
        compiled = torch.compile(network, fullgraph=True, backend=counter)
        assert_close([call(subject, compiled, session, step, seed=step) for step in range(3)], eager)
    assert counter.frame_count == subject.graphs


def test_keys_need_the_anchors_and_a_kernel_without_masks_will_do():
    subject = ARCHITECTURES["Flux"]
    network = subject.network()
    recipe = maskless_recipe("keys")
    expected = run_merged(subject, network, recipe)
    network.set_attention_backend("_native_flash")
    assert_same(run_merged(subject, network, recipe), expected, tolerance=1e-4)
    network.set_attention_backend("flex")
    with pytest.raises(ValueError, match="'flex' makes calls that cannot be intercepted"):
        attach(network, recipe)
