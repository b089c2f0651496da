"""One life-cycle, the same for every UNet, scope and policy: attach, run, reuse, fail, detach."""

from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock

from catome_adapters import MergeRecipe, attach
from catome_core import CheckpointSchedule
from probes import CountingMerge, Interrupted, anatomy, failing
from running import SCOPES, assert_close, assert_same, call, unet_recipe
from tiers import tiered
from zoo.unet_runs import UNET_RUNS
from zoo.unets import SD

SPARES = ("pad", "fill")
OTHER_SIZE = (12, 20)  # 3 x 5 at the coarsest level: partial cells
# Of three steps the second reuses.
lifecycle_recipe = partial(unet_recipe, capacity=None, schedule=CheckpointSchedule((0, 2), of=3))


@pytest.fixture(params=tiered(UNET_RUNS, ["pipeline"]))
def subject(request) -> Any:
    return UNET_RUNS[request.param]()


@pytest.fixture
def recipe(merging) -> MergeRecipe:
    return lifecycle_recipe(**merging)


def test_report_names_every_block_attached_or_not(subject):
    blocks = {name for name, module in subject.network.named_modules() if isinstance(module, BasicTransformerBlock)}
    with attach(subject.source, "adaptive") as session:
        attached, _, left_out = session.report().partition("not attached, level")
        names = {site.name for site in session.sites}
        assert set() < names < blocks
        assert hosts(attached) == hosts(names) and hosts(left_out) == hosts(blocks - names)
        assert "is not chosen (levels='auto')" in left_out
        assert "attached, not run yet" in attached
        subject.run(session)
        assert "figures of the last call" in session.report() and "not run yet" not in session.report()


def hosts(names: str | set[str]) -> set[str]:
    """The transformers that hold the named blocks, or that a text names."""
    words = names.split() if isinstance(names, str) else names
    return {word.partition(".transformer_blocks")[0] for word in words if ".attentions." in word}


def test_threshold_one_is_the_unpatched_model_bit_by_bit(subject, merging):
    unpatched = subject.run()
    with attach(subject.source, lifecycle_recipe(**merging, threshold=1.0)) as session:
        assert torch.equal(subject.run(session), unpatched)
        assert session.summary().merged_fraction == 0


def test_merging_changes_the_output_and_keeps_it_finite(subject, recipe):
    unpatched = subject.run()
    with attach(subject.source, recipe) as session:
        merged = subject.run(session)
        assert session.summary().merged_fraction > 0.05
    assert merged.isfinite().all()
    assert not torch.equal(merged, unpatched)


def test_state_dict_is_the_same_while_attached(subject, recipe):
    names = list(subject.network.state_dict())
    with attach(subject.source, recipe) as session:
        subject.run(session)
        assert list(subject.network.state_dict()) == names
        assert not any("catome" in name or "cache" in name for name, _ in subject.network.named_modules())


def test_detach_restores_exactly(subject, recipe):
    before, unpatched = anatomy(subject.network), subject.run()
    session = attach(subject.source, recipe)
    assert anatomy(subject.network) != before
    subject.run(session)
    session.detach()
    session.detach()
    assert anatomy(subject.network) == before
    assert torch.equal(subject.run(), unpatched)


def test_attached_again_is_the_same_as_the_first_time(subject, recipe):
    with attach(subject.source, recipe) as session:
        first = subject.run(session)
    with attach(subject.source, recipe) as session:
        assert torch.equal(subject.run(session), first)


def test_second_session_is_refused_and_leaves_the_first_alone(subject):
    with attach(subject.source, "adaptive"):
        before = anatomy(subject.network)
        with pytest.raises(RuntimeError, match=r"call its detach\(\) first"):
            attach(subject.source, MergeRecipe(scope="block"))
        assert anatomy(subject.network) == before


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    ("spare", "capacity"), tiered([("pad", None), ("pad", 0.25), ("fill", 0.25)], [("fill", 0.25)])
)
def test_reuse_equals_recompute_on_the_same_input(subject, scope, spare, capacity):
    recipe = lifecycle_recipe(scope, CountingMerge, spare=spare, capacity=capacity)
    with attach(subject.source, recipe) as session:
        recipe.policy.watch(subject.network)
        computed, reused = (call(SD, subject.network, session, step, total=3) for step in (0, 1))
    assert recipe.policy.recomputed == [0]
    # The ladder drops empty places after the first step, and with them the order of the sums.
    check = assert_close if capacity is None else assert_same
    check(reused, computed)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("spare", SPARES)
def test_sample_does_not_depend_on_its_batch_mates(subject, scope, spare):
    with attach(subject.source, lifecycle_recipe(scope, spare=spare, capacity=0.25)) as session:
        together, alone = (call(SD, subject.network, session, total=3, batch=batch) for batch in (3, 1))
    assert_close(together[:1], alone)


def test_another_batch_and_size_between_two_runs_change_nothing(subject, recipe):
    with attach(subject.source, recipe) as session:
        first = subject.run(session)
        assert subject.run(session, batch=1, size=OTHER_SIZE).isfinite().all()
        assert torch.equal(subject.run(session), first)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("other", [{"batch": 1}, {"size": OTHER_SIZE}], ids=["batch", "size"])
def test_another_batch_or_size_within_a_run_is_computed_anew(subject, scope, other):
    """Of a hundred steps 0 and 66 are checkpoints."""
    network = subject.network
    with attach(subject.source, lifecycle_recipe(scope)) as session:
        fresh = call(SD, network, session, total=3, **other), call(SD, network, session, total=3)
        assert torch.equal(call(SD, network, session, 1, total=100, **other), fresh[0])
        assert torch.equal(call(SD, network, session, 2, total=100), fresh[1])


@pytest.mark.parametrize("step", [0, 1], ids=["at a checkpoint", "at a reuse"])
def test_failed_run_leaves_nothing_behind(subject, recipe, step):
    with attach(subject.source, recipe) as session:
        expected = subject.run(session)
    before, unpatched = anatomy(subject.network), subject.run()
    with attach(subject.source, recipe) as session:
        with failing(session.sites[1].attention.to_out[0], step), pytest.raises(Interrupted):
            subject.run(session, size=OTHER_SIZE)
        assert torch.equal(subject.run(session), expected)
    assert anatomy(subject.network) == before
    assert torch.equal(subject.run(), unpatched)


def test_with_block_detaches_when_the_run_fails(subject, recipe):
    before, unpatched = anatomy(subject.network), subject.run()
    with (
        pytest.raises(Interrupted),
        attach(subject.source, recipe) as session,
        failing(session.sites[1].attention.to_out[0], 1),
    ):
        subject.run(session)
    assert anatomy(subject.network) == before
    assert torch.equal(subject.run(), unpatched)
