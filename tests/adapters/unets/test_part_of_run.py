"""Merging during a part of the run."""

import pytest
import torch

from catome_adapters import attach
from probes import CountingMerge
from running import TOTAL, call, differing_steps, run, unet_recipe
from tiers import tiered
from zoo.unets import DEEP

pytestmark = pytest.mark.usefixtures("without_gradients")
PARTS = {(0.0, 1.0): range(6), (0.0, 0.5): range(3), (0.5, 1.0): range(3, 6), (0.2, 0.7): range(2, 5)}


@pytest.mark.parametrize(("during", "merged"), tiered(PARTS.items(), [*PARTS.items()][3:]), ids=map(str, PARTS))
@pytest.mark.parametrize(("scope", "segment"), [("attention", 1), ("block", 2)], ids=["attention", "block"])
def test_outside_its_part_of_the_run_nothing_merges_or_is_matched(unet, scope, segment, during, merged):
    plain = run(DEEP, unet)
    recipe = unet_recipe(scope, CountingMerge, segment=segment, capacity=None, during=during)
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        assert differing_steps(run(DEEP, unet, session), plain) == list(merged)
        rows = session.summary().rows
        checkpoints = session.summary().checkpoints
    assert recipe.policy.recomputed == sorted({merged[0], *({3} & set(merged))}) == list(checkpoints)
    assert {row.step for row in rows} == set(range(6))
    assert {row.step for row in rows if row.merged_fraction > 0} == set(merged)
    assert all(row.slots == row.tokens and row.overflow == 0 for row in rows if row.step not in merged)


def test_first_merged_step_recomputes_in_every_run(unet):
    recipe = unet_recipe(policy=CountingMerge, during=(0.2, 0.5))
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        for _ in range(2):
            run(DEEP, unet, session)
    assert recipe.policy.recomputed == [2, 8]


def test_outputs_are_matched_in_the_first_step_of_their_part(unet):
    plain = run(DEEP, unet)
    with attach(unet, unet_recipe(metric="output", during=(0.2, 1.0))) as session:
        assert differing_steps(run(DEEP, unet, session), plain) == [4, 5]


@pytest.mark.filterwarnings("ignore:the denoising step is unknown")
def test_without_steps_everything_merges(unet):
    plain = run(DEEP, unet)
    with attach(unet, unet_recipe(during=(0.5, 1.0))) as session:
        assert differing_steps(run(DEEP, unet), plain) == list(range(TOTAL))
        assert torch.equal(call(DEEP, unet, session), plain[0])
        session.reset()
        assert differing_steps(run(DEEP, unet), plain) == list(range(TOTAL))
