"""The predicted cost of a lattice of keys: nothing is matched, and the operations are those that run."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from catome_adapters import MergeRecipe, attach
from catome_adapters.prediction.gathering import near_work
from catome_adapters.prediction.rates import DEVICE_RATES, DeviceRates
from catome_adapters.prediction.seconds import site_seconds
from catome_adapters.sites.weights import count_weights
from catome_core import Lattice, NearField, TokenGrid
from catome_core.attention import joined
from lattice_by_hand import CASES, WIDE
from probes import Operations
from running import TOTAL, lattice_recipe

LAUNCHES = DeviceRates(flops=float("inf"), attention_flops=float("inf"), bandwidth=float("inf"), launch=1.0)


@pytest.fixture(autouse=True)
def merging_is_free() -> None:
    """Here it costs what it costs: see conftest.py."""


def added_operations(case, recipe: MergeRecipe) -> tuple[list[str], list[str], list]:
    """Operations of a call without a session and with one, and its sites."""
    network = case.model.network()
    plain = Operations.of(lambda: case.model.call(network, size=case.size))
    with attach(network, recipe) as session:
        for step in range(2):
            session.begin_step(step, TOTAL)
            case.model.call(network, size=case.size)
        return plain, Operations.of(lambda: case.model.call(network, size=case.size)), session.sites


@torch.no_grad()
@pytest.mark.parametrize(
    ("case", "lattice"),
    [(CASES["SD"], Lattice()), (CASES["Wan"], Lattice()), (WIDE["PixArt"], Lattice(near=1))],
    ids=["before the projections", "behind them", "near field"],
)
def test_operations_of_a_call_are_those_that_are_predicted(case, lattice):
    recipe = MergeRecipe(lattice, scope="keys", levels="all")
    plain, merged, sites = added_operations(case, recipe)
    seconds = site_seconds(count_weights(sites[0]), case.grid(1), 2, recipe, LAUNCHES, 0.75)
    assert (seconds.reuse, seconds.match) == ((len(merged) - len(plain)) / len(sites), 0.0)


VIEWS = ("view", "transpose", "permute", "unbind", "unsqueeze", "alias", "slice", "select.int", "expand", "detach")


@torch.no_grad()
def test_operations_of_joined_parts_are_those_that_are_predicted():
    """As on a GPU. Views aside."""
    case, recipe = WIDE["PixArt"], lattice_recipe(near=1)
    with patch.object(joined, "JOINED_ON", ("cpu",)):
        plain, merged, sites = added_operations(case, recipe)
    added, fewer = ([name for name in names if not any(view in name for view in VIEWS)] for names in (merged, plain))
    predicted = near_work(NearField(case.grid(1)), 8, 2, 4, replace(LAUNCHES, joining=1.0))
    assert predicted.host == (len(added) - len(fewer)) / len(sites)


WAN, WAN_8 = (NearField(TokenGrid((21, 30, 52), (1, 2, width))) for width in (2, 4))
FLUX = NearField(TokenGrid((64, 64)), front=512)


@pytest.mark.parametrize(
    ("field", "width", "compiled", "measured"),
    [
        (WAN, 1536, False, 6.44e-3),
        (WAN_8, 1536, False, 4.95e-3),
        (WAN, 1536, True, 4.87e-3),
        (FLUX, 3072, True, 0.568e-3),
    ],
)
def test_joined_parts_take_a_gpu_as_long_as_is_predicted(field, width, compiled, measured):
    """An H100 in bfloat16. With front tokens, which see all others; where the host is not what takes long."""
    rates = DEVICE_RATES["cuda"].compiled if compiled else DEVICE_RATES["cuda"]
    pairs = field.grid.tokens * field.keys + field.outside * field.tokens
    work = near_work(field, width, 1, 2, rates)
    assert work.device + 4 * width * pairs / rates.attention_flops == pytest.approx(measured, rel=0.2)


def test_without_joining_nothing_has_changed():
    """What tiles gather for themselves: on a CPU, and where cells are partial."""
    partial, rates = NearField(TokenGrid((45, 80))), DEVICE_RATES["cuda"]
    assert near_work(partial, 64, 1, 2, rates) == near_work(partial, 64, 1, 2, replace(rates, joining=None))
    assert near_work(FLUX, 64, 1, 2, rates).device < near_work(FLUX, 64, 1, 2, replace(rates, joining=None)).device
