"""Attention kernels beside a session on a transformer."""

from collections.abc import Iterator

import pytest
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from catome_adapters import attach
from running import assert_same, make_recipe, maskless_recipe, run, run_merged
from zoo.transformers import ARCHITECTURES


@pytest.fixture(autouse=True)
def default_backend() -> Iterator[None]:
    """`set_attention_backend` changes the default of all networks."""
    yield
    _AttentionBackendRegistry.set_active_backend("native")


@pytest.mark.parametrize("backend", ["native", "_native_math"])
@pytest.mark.parametrize("name", ["Flux", "Wan", "Qwen-Image"])
def test_backends_of_torch_take_the_mask(recipe, backend, name):
    subject = ARCHITECTURES[name]
    network = subject.network()
    with attach(network, recipe) as session:
        expected = run(subject, network, session)
        network.set_attention_backend(backend)
        assert_same(run(subject, network, session), expected, tolerance=1e-4)


FLEX_IS_SLOW = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


@FLEX_IS_SLOW
@pytest.mark.parametrize("scope", ["attention", "block"])
@pytest.mark.parametrize("name", ["Flux", "Wan"])
def test_backend_that_takes_no_mask_works_where_none_is_needed(scope, name):
    subject = ARCHITECTURES[name]
    network = subject.network()
    with attach(network, maskless_recipe(scope)) as session:
        expected = run(subject, network, session)
        # The checks are diffusers' own, for kernels that this machine may not have.
        network.set_attention_backend("flex")
        assert_same(run(subject, network, session), expected, tolerance=1e-4)


@pytest.mark.parametrize("backend", ["flex", "_native_flash"])
def test_backend_that_takes_no_mask_is_refused_before_and_after_attach(backend):
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
