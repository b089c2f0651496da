"""Recipes for models that see every input once."""

from dataclasses import replace

import pytest
import torch

from catome_adapters import RECIPES, attach, find_sites, predict_site
from catome_core import CheckpointSchedule, TokenGrid
from probes import anatomy
from running import ONCE, vit_recipe
from zoo.vits import VITS, images

pytestmark = pytest.mark.usefixtures("without_gradients")


def test_recipe_for_vits_is_one_line(vit, network):
    with attach(network, RECIPES["vit"]) as session:
        assert vit.call(network).isfinite().all()
        assert [row.slots for row in session.summary().rows] == [vit.prefix + 32] * 3


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (RECIPES["adaptive"], "policy.capacity is None"),
        (RECIPES["paper"], "policy.capacity is None"),
        (replace(RECIPES["vit"], metric="output"), "metric='output' merges after the first step"),
        (replace(RECIPES["vit"], during=(0.2, 1.0)), "during is a part of the run"),
    ],
)
def test_recipe_that_waits_for_later_steps_is_refused(recipe, reason):
    network = VITS["ViT"].network()
    before = anatomy(network)
    with pytest.raises(ValueError, match=rf'blocks\.0.*{reason}.*RECIPES\["vit"\]'):
        attach(network, recipe)
    assert anatomy(network) == before


def test_steps_reuse_pairs_as_for_the_frames_of_a_film():
    vit, network = VITS["ViT"], VITS["ViT"].network()
    with attach(network, vit_recipe("block", schedule=ONCE)) as session:
        frames = []
        for step, seed in enumerate((0, 0, 1)):
            session.begin_step(step, 10)
            frames.append(vit.call(network, seed=seed))
        assert session.summary().checkpoints == (0,)
        session.begin_step(0, 10)
        assert not torch.equal(vit.call(network, seed=1), frames[2])
    assert torch.equal(*frames[:2])


def test_segment_closes_the_features_between_its_blocks_until_detach(vit, network):
    with attach(network, vit_recipe("block", segment=2)):
        assert vit.call(network).shape == (2, vit.prefix + 64, 24)
        with pytest.raises(ValueError, match=r"tokens are merged \(blocks.0 to 1\)"):
            network.forward_intermediates(images())
    assert len(network.forward_intermediates(images(), intermediates_only=True)) == 3


@pytest.mark.parametrize("first", [0, 1])
def test_features_between_blocks_stay_closed_until_the_last_session_with_a_segment_is_detached(first):
    network = VITS["ViT"].network(depth=4)
    before, sites, recipe = anatomy(network), find_sites(network), vit_recipe("block", segment=2)
    sessions = [attach(network, recipe, sites=some) for some in (sites[:2], sites[2:])]
    sessions.pop(first).detach()
    with pytest.raises(ValueError, match=rf"tokens are merged \(blocks.{(2, 0)[first]} to"):
        network.forward_intermediates(images())
    sessions.pop().detach()
    assert len(network.forward_intermediates(images(), intermediates_only=True)) == 4
    assert anatomy(network) == before


def test_a_model_without_steps_is_predicted_to_match_in_every_call_whatever_the_schedule(monkeypatch):
    # Here matching costs what it costs: see conftest.py.
    monkeypatch.undo()
    site = find_sites(VITS["ViT"].network())[0]
    grid, seldom, always = TokenGrid((8, 8), 2, 1), CheckpointSchedule((0,), of=50), CheckpointSchedule.every(1, 50)

    def overhead(stepped: bool, schedule: CheckpointSchedule) -> float:
        recipe = vit_recipe("block", schedule=schedule)
        return predict_site(replace(site, denoises=stepped), recipe, grid).overhead

    assert overhead(False, seldom) == overhead(False, always) == overhead(True, always)
    assert overhead(True, seldom) < overhead(False, seldom)
