"""What a step costs that merges nothing: a few calls of our functions for each site, and no operation of torch."""

import pytest

from catome_adapters import attach, find_sites
from catome_adapters.prediction import rates
from catome_adapters.prediction.rates import DeviceRates
from catome_adapters.sites.weights import count_weights
from probes import Operations, calls_of_ours
from running import TOTAL, make_recipe
from tiers import tiered
from zoo.transformers import ARCHITECTURES

pytestmark = [
    pytest.mark.usefixtures("without_gradients"),
    pytest.mark.filterwarnings("ignore:nothing merged in this run"),
]

MOST_CALLS_PER_BLOCK, MOST_CALLS_PER_FIRST_BLOCK = 20, 25
MOST_OF_FIRST_RUN = 0.75
MOST_CALLS_PER_BOUNDARY = {"it would lose": 40, "its time is over": 29}
SLOW_LAUNCHES = DeviceRates(flops=1e12, attention_flops=1e12, bandwidth=1e12, launch=1.0)
RECIPES = {"it would lose": make_recipe("keys", levels="top"), "its time is over": make_recipe(during=(0.0, 0.1))}
MODELS = tiered(["DiT", "SD3", "Flux", "Wan"], ["DiT", "Wan"])


@pytest.mark.parametrize("why", RECIPES)
@pytest.mark.parametrize("name", MODELS)
def test_a_site_costs_a_few_calls_where_it_merges_nothing(name, why, monkeypatch):
    """Counted as what every site adds to the first one, in its block and between two steps."""
    monkeypatch.setitem(rates.DEVICE_RATES, "cpu", SLOW_LAUNCHES)
    model = ARCHITECTURES[name]
    network = model.network()
    plain = Operations.of(lambda: model.call(network))
    sites = find_sites(network)
    blocks, boundaries = [], []
    for attached in (sites[:1], sites):
        with attach(network, RECIPES[why], sites=attached) as session:
            for step in range(TOTAL - 2):
                session.begin_step(step, TOTAL)
                model.call(network)
            assert not Operations.of(lambda: session.begin_step(TOTAL - 2, TOTAL))
            assert Operations.of(lambda: model.call(network)) == plain
            boundaries.append(len(calls_of_ours(lambda: session.begin_step(TOTAL - 1, TOTAL))))
            blocks.append(len(calls_of_ours(lambda: model.call(network))))
            assert {row.slots == row.tokens for row in session.summary().rows if row.step >= TOTAL - 2} == {True}
    more = len(sites) - 1
    assert blocks[1] - blocks[0] <= MOST_CALLS_PER_BLOCK * more
    assert boundaries[1] - boundaries[0] <= MOST_CALLS_PER_BOUNDARY[why] * more


@pytest.mark.parametrize("name", MODELS)
def test_a_run_works_out_once_what_its_blocks_have_in_common(name, monkeypatch):
    """What every further site adds to a run's first step, which knows nothing yet."""
    monkeypatch.setitem(rates.DEVICE_RATES, "cpu", SLOW_LAUNCHES)
    model = ARCHITECTURES[name]
    network = model.network()
    alike = {count_weights(site): site for site in find_sites(network)}
    calls = []
    for attached in (list(alike.values()), find_sites(network)):
        with attach(network, RECIPES["it would lose"], sites=attached) as session:
            for step in (0, 1, 0):
                session.begin_step(step, TOTAL)
                if step:
                    model.call(network)
            calls.append(len(calls_of_ours(lambda: model.call(network))))
    assert calls[1] - calls[0] <= MOST_CALLS_PER_FIRST_BLOCK * (len(find_sites(network)) - len(alike))


@pytest.mark.parametrize("name", MODELS)
def test_the_second_run_of_a_session_asks_nothing_anew(name, monkeypatch):
    """Its first step costs what every later one does, in calls and between them."""
    monkeypatch.setitem(rates.DEVICE_RATES, "cpu", SLOW_LAUNCHES)
    model = ARCHITECTURES[name]
    network = model.network()
    plain = Operations.of(lambda: model.call(network))
    with attach(network, RECIPES["it would lose"]) as session:

        def calls_in_a_run():
            calls = []
            for step in range(TOTAL):
                calls.append(len(calls_of_ours(lambda step=step: session.begin_step(step, TOTAL))))
                calls.append(len(calls_of_ours(lambda: model.call(network))))
            return calls

        first, *later = (calls_in_a_run() for _ in range(3))
        for one in later:
            assert one[1:] == [first[-1], *first[-2:] * (TOTAL - 1)]
            assert sum(one) <= MOST_OF_FIRST_RUN * sum(first)
        session.begin_step(0, TOTAL)
        assert Operations.of(lambda: model.call(network)) == plain
