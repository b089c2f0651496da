"""A recipe that recomputes at every call needs no steps, whatever the model is."""

import warnings

import pytest
import torch

from catome_adapters import RECIPES, attach
from catome_core import CheckpointSchedule
from running import ONCE, call, make_recipe
from zoo.own_models import OWN_MODELS
from zoo.transformers import ARCHITECTURES

pytestmark = pytest.mark.usefixtures("without_gradients")

OWN = OWN_MODELS["TransformerEncoderLayer"]
EVERY_CALL = {"schedule": CheckpointSchedule.every(1, 7), "spare": "fill"}


@pytest.mark.parametrize("recipe", [make_recipe(**EVERY_CALL), RECIPES["vit"], RECIPES["tomesd"]])
def test_every_call_counts_as_a_run_and_warns_of_nothing(recipe):
    network = OWN.network()
    sites = OWN.sites(network)
    with attach(network, recipe, sites=sites) as session, warnings.catch_warnings(action="error"):
        for seed in (0, 1):
            merged = OWN.call(network, seed=seed)
            summary = session.summary()
            assert (summary.checkpoints, len(summary.rows)) == ((0,), len(sites))
            assert summary.merged_fraction == 0.5
        assert torch.equal(call(OWN, network, session, seed=1), merged)
        assert torch.equal(call(OWN, network, session, 1, seed=1), merged) is (recipe.policy.destination == "top-left")
    assert session.summary().checkpoints == (0, 1)


def test_what_is_drawn_step_by_step_may_be_called_by_itself_too():
    flux = ARCHITECTURES["Flux"]
    network = flux.network()
    with attach(network, make_recipe(**EVERY_CALL)) as session, warnings.catch_warnings(action="error"):
        alone = flux.call(network)
        assert session.summary().merged_fraction > 0
        assert torch.equal(call(flux, network, session), alone)


LATER = [{"schedule": ONCE}, {"capacity": None}, {"metric": "output"}, {"during": (0.2, 1)}]


@pytest.mark.parametrize("changes", LATER)
def test_a_recipe_that_does_more_in_later_steps_needs_them(changes):
    network = OWN.network()
    with attach(network, make_recipe(**EVERY_CALL | changes), sites=OWN.sites(network)) as session:
        with pytest.warns(UserWarning, match=r"nothing is saved; call session.begin_step"):
            OWN.call(network)
        assert session.summary().rows == ()
