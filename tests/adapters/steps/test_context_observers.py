"""Networks whose contexts a session observes are left as they were."""

from contextlib import nullcontext

import pytest
import torch

from catome_adapters import attach, find_sites
from probes import anatomy
from running import TOTAL
from two_calls import by_fields, call_alone, counting_recipe, two_calls
from zoo.transformers import ARCHITECTURES

WITH_CONTEXTS = [
    name for name in ("DiT", "PixArt", "SD3", "Flux", "Wan") if hasattr(ARCHITECTURES[name].network(), "cache_context")
]


@pytest.mark.parametrize("name", WITH_CONTEXTS)
def test_detach_restores_the_network(name):
    subject, network = ARCHITECTURES[name], ARCHITECTURES[name].network()
    with network.cache_context("cond"):  # it leaves a registry of diffusers' own
        unpatched = subject.call(network)
    before = anatomy(network)
    with attach(network, counting_recipe("keys")) as session:
        two_calls(by_fields, session, subject, network)
    assert anatomy(network) == before
    assert torch.equal(subject.call(network), unpatched)


@pytest.mark.parametrize("first", [0, 1])
def test_two_sessions_observe_one_networks_contexts(first, network, subject):
    before = set(vars(network))
    halves = find_sites(network)[:1], find_sites(network)[1:]
    sessions = [attach(network, counting_recipe(), sites=half) for half in halves]
    for session in sessions:
        session.begin_step(0, TOTAL)
    with torch.no_grad(), network.cache_context("cond"):
        call_alone(subject, network)
    assert all(name.endswith("(cond)") for session in sessions for name in session.plans())
    sessions[first].detach()
    with torch.no_grad(), network.cache_context("uncond"):
        call_alone(subject, network)
    assert {name.partition(" ")[2] for name in sessions[1 - first].plans()} == {"(cond)", "(uncond)"}
    sessions[1 - first].detach()
    assert set(vars(network)) - before <= {"_diffusers_hook"}  # diffusers' own


def test_wrapper_around_cache_context_is_there_afterwards(network):
    network.cache_context = wrapper = lambda name, **fields: nullcontext()
    attach(network, counting_recipe()).detach()
    assert vars(network)["cache_context"] is wrapper
