"""Outputs of blocks are matched instead of their inputs."""

import pytest
import torch

from catome_adapters import attach, find_sites
from probes import CountingMerge
from running import SCOPES, TOTAL, call, differing_steps, run, unet_recipe
from zoo.unets import DEEP

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.mark.parametrize("scope", SCOPES)
def test_outputs_without_steps_are_matched_at_every_call_and_nothing_merges(unet, scope):
    plain = run(DEEP, unet)
    recipe = unet_recipe(scope, CountingMerge, metric="output")
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        with pytest.warns(UserWarning, match=r"session\.begin_step\(step, total\)"):
            outputs = run(DEEP, unet)
    assert differing_steps(outputs, plain) == []
    assert recipe.policy.calls == [len(session.sites)] * TOTAL


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("other", [{"batch": 1}, {"size": (12, 20)}], ids=["batch", "size"])
def test_another_batch_or_size_within_a_run_is_matched_anew(unet, scope, other):
    plain = DEEP.call(unet, seed=1, **other)
    with attach(unet, unet_recipe(scope, metric="output")) as session:
        call(DEEP, unet, session)
        assert torch.equal(call(DEEP, unet, session, 1, seed=1, **other), plain)
        assert not torch.equal(call(DEEP, unet, session, 2, seed=1, **other), plain)


@pytest.mark.parametrize("scope", SCOPES)
def test_plan_of_an_output_in_another_dtype_is_found_again(unet, scope):
    """Autocast makes self-attention return bfloat16 where the blocks pass on float32."""
    for site in find_sites(unet):
        site.block.register_forward_pre_hook(lambda _, args: (args[0].float(), *args[1:]))
    with torch.autocast("cpu", torch.bfloat16):
        plain = run(DEEP, unet)
        with attach(unet, unet_recipe(scope, metric="output")) as session:
            assert differing_steps(run(DEEP, unet, session), plain) == [1, 2, 4, 5]


def test_summary_counts_a_step_that_matches_outputs_as_unmerged(unet):
    policy = {"threshold": -1, "spare": "fill", "capacity": 0.25}
    with attach(unet, unet_recipe("attention", metric="output", **policy)) as session:
        run(DEEP, unet, session)
        rows = session.summary().rows
    assert {row.step: row.merged_fraction for row in rows} == {0: 0, 1: 0.5, 2: 0.5, 3: 0, 4: 0.5, 5: 0.5}
    assert all((row.slots == row.tokens) == row.checkpoint for row in rows)
    assert {row.mergeable_fraction for row in rows} == {0.75}
