"""The predicted cost of a lattice of keys: nothing is matched, and the operations are those that run."""

import pytest
import torch

from catome_adapters import MergeRecipe, attach
from catome_adapters.prediction.rates import DeviceRates
from catome_adapters.prediction.seconds import site_seconds
from catome_adapters.sites.weights import count_weights
from catome_core import Lattice
from lattice_by_hand import CASES, WIDE
from probes import Operations
from running import TOTAL

LAUNCHES = DeviceRates(flops=float("inf"), attention_flops=float("inf"), bandwidth=float("inf"), launch=1.0)


@pytest.fixture(autouse=True)
def merging_is_free() -> None:
    """Here it costs what it costs: see conftest.py."""


@torch.no_grad()
@pytest.mark.parametrize(
    ("case", "lattice"),
    [(CASES["SD"], Lattice()), (CASES["Wan"], Lattice()), (WIDE["PixArt"], Lattice(near=1))],
    ids=["before the projections", "behind them", "near field"],
)
def test_operations_of_a_call_are_those_that_are_predicted(case, lattice):
    network, recipe = case.model.network(), MergeRecipe(lattice, scope="keys", levels="all")
    plain = Operations.of(lambda: case.model.call(network, size=case.size))
    with attach(network, recipe) as session:
        for step in range(2):
            session.begin_step(step, TOTAL)
            case.model.call(network, size=case.size)
        added = len(Operations.of(lambda: case.model.call(network, size=case.size))) - len(plain)
        site, sites = session.sites[0], len(session.sites)
    seconds = site_seconds(count_weights(site), case.grid(1), 2, recipe, LAUNCHES, 0.75)
    assert (seconds.reuse, seconds.match) == (added / sites, 0.0)
