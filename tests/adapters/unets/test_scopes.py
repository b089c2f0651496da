"""What is matched, and how many blocks share a merge: one life-cycle for every combination."""

import pytest

from catome_adapters import attach
from probes import CountingMerge, Interrupted, anatomy, failing
from running import assert_close, assert_same, call, differing_steps, run, unet_recipe
from tiers import tiered
from zoo.unets import DEEP

pytestmark = pytest.mark.usefixtures("without_gradients")


def test_merging_changes_every_step_but_those_that_match_outputs(unet, variant):
    plain = run(DEEP, unet)
    with attach(unet, unet_recipe(**variant)) as session:
        merged = run(DEEP, unet, session)
        assert session.summary().checkpoints == (0, 3)
    assert all(output.isfinite().all() for output in merged)
    assert differing_steps(merged, plain) == ([0, 1, 2, 3, 4, 5] if variant["metric"] == "input" else [1, 2, 4, 5])


@pytest.mark.parametrize("capacity", [0.25, None], ids=["fixed", "ladder"])
def test_reuse_equals_recompute_on_the_same_input(unet, variant, capacity):
    """Matched on outputs, the first step is unmerged: there the two steps that reuse are compared."""
    recipe = unet_recipe(**variant, policy=CountingMerge, capacity=capacity)
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        outputs = [call(DEEP, unet, session, step) for step in range(3)]
    assert recipe.policy.recomputed == [0]
    first = 0 if variant["metric"] == "input" else 1
    # The ladder drops empty places after the first step, and with them the order of the sums.
    check = assert_close if capacity is None else assert_same
    check(outputs[2], outputs[first])


def test_threshold_one_is_the_unpatched_model_bit_by_bit(unet, variant):
    plain = run(DEEP, unet)
    with attach(unet, unet_recipe(**variant, threshold=1.0, capacity=None)) as session:
        assert differing_steps(run(DEEP, unet, session), plain) == []


def test_every_run_is_the_first_one_again(unet, variant):
    recipe = unet_recipe(**variant, capacity=None, destination="random")
    with attach(unet, recipe) as session:
        first = run(DEEP, unet, session)
        assert differing_steps(run(DEEP, unet, session), first) == []
        call(DEEP, unet, session)
        session.reset()
        assert differing_steps(run(DEEP, unet, session), first) == []


def test_detach_restores_exactly(unet, variant):
    before, plain = anatomy(unet), run(DEEP, unet)
    session = attach(unet, unet_recipe(**variant))
    assert anatomy(unet) != before
    run(DEEP, unet, session)
    session.detach()
    assert anatomy(unet) == before
    assert differing_steps(run(DEEP, unet), plain) == []


@pytest.mark.parametrize("step", tiered([0, 1], [1]), ids=["at a checkpoint", "at a reuse"])
def test_call_that_fails_within_a_segment_leaves_nothing_behind(unet, variant, step):
    before, plain = anatomy(unet), run(DEEP, unet)
    with attach(unet, unet_recipe(**variant)) as session:
        expected = run(DEEP, unet, session)
        for earlier in range(step):
            call(DEEP, unet, session, earlier, seed=earlier)
        with failing(session.sites[1].block.ff), pytest.raises(Interrupted):
            call(DEEP, unet, session, step, seed=step)
        assert differing_steps(run(DEEP, unet, session), expected) == []
    assert anatomy(unet) == before
    assert differing_steps(run(DEEP, unet), plain) == []


def test_outputs_that_a_failed_checkpoint_did_not_match_are_matched_at_the_next_step(unet, variant):
    """An input is matched before anything can fail."""
    recipe = unet_recipe(**variant, policy=CountingMerge)
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        call(DEEP, unet, session)
        with failing(session.sites[-1].attention.to_out[0]), pytest.raises(Interrupted):
            call(DEEP, unet, session, 3, seed=3)
        call(DEEP, unet, session, 4, seed=4)
    assert recipe.policy.calls[-1] == (variant["metric"] == "output")
