"""Blocks that no adapter covers: a `MergeSite` for each is all that merging takes."""

from itertools import cycle

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from catome_adapters import attach, compile_blocks
from probes import anatomy
from running import SCOPES, TOTAL, assert_close, call, make_recipe, run
from tiers import tiered
from zoo.own_models import OWN_MODELS

pytestmark = pytest.mark.usefixtures("fresh_compiler", "without_gradients")

COMPILED = [*zip(OWN_MODELS, cycle(SCOPES))]


@pytest.mark.parametrize("name", OWN_MODELS)
def test_equal_tokens_merge_without_loss(name, scope):
    """Positions, conditions, skip connections and sizes are those of the merged tokens, or this would show it."""
    model = OWN_MODELS[name]
    network = model.network()
    unmerged, sites = model.call(network, flat=True), model.sites(network)
    with attach(network, make_recipe(scope, threshold=0.9999, capacity=None), sites=sites) as session:
        assert_close(call(model, network, session, flat=True), unmerged)
        session.begin_step(1, TOTAL)
        assert session.summary().merged_fraction == pytest.approx(48 / (64 + sites[0].prefix))
        assert_close(model.call(network, flat=True), unmerged)


@pytest.mark.parametrize("name", OWN_MODELS)
def test_merging_changes_the_result_and_detaching_restores_it(name, scope):
    model = OWN_MODELS[name]
    network = model.network()
    before, unmerged = anatomy(network), model.call(network)
    with attach(network, make_recipe(scope, threshold=0.5), sites=model.sites(network)) as session:
        recomputed, reused = run(model, network, session, steps=(0, 1), seed=0)
        smaller = model.call(network, batch=1)
    assert recomputed.isfinite().all() and not torch.allclose(recomputed, unmerged, atol=1e-3)
    assert torch.equal(reused, recomputed) and len(smaller) == 1
    assert anatomy(network) == before and torch.equal(model.call(network), unmerged)


@pytest.mark.parametrize(("name", "scope"), tiered(COMPILED, COMPILED[:1]))
def test_compiled_block_by_block(name, scope):
    model, counter = OWN_MODELS[name], CompileCounter()
    network = model.network()
    sites = model.sites(network)
    with attach(network, make_recipe(scope, threshold=0.5), sites=sites) as session:
        eager = run(model, network, session)
        compile_blocks(network, sites=sites, fullgraph=True, backend=counter)
        assert_close(run(model, network, session), eager)
    assert counter.frame_count > 0
