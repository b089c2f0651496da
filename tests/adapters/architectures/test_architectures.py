"""One life-cycle, the same for every architecture and scope: attach, run, reuse, fail, detach."""

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from catome_adapters import attach
from probes import Interrupted, anatomy, failing
from running import ONCE, TOTAL, call, lattice_recipe, make_recipe
from tiers import tiered
from zoo.cases import EVERY_SCOPE, EVERY_THIRD, SCOPE_OF_EVERY_THIRD, SCOPE_OF_TEN, TEN
from zoo.transformers import ALL_ARCHITECTURES

pytestmark = pytest.mark.usefixtures("without_gradients")

SPARES = tiered(("pad", "fill"), ("fill",))
COVERING = 8
every_architecture = pytest.mark.parametrize("name", ALL_ARCHITECTURES)
ten_architectures = pytest.mark.parametrize("name", TEN)
every_scope = pytest.mark.parametrize(("name", "scope"), EVERY_SCOPE)
scope_of_every_third = pytest.mark.parametrize(("name", "scope"), SCOPE_OF_EVERY_THIRD)
scope_of_ten = pytest.mark.parametrize(("name", "scope"), SCOPE_OF_TEN)


def last_projection(attention: nn.Module) -> nn.Module:
    """What a self-attention calls when its scores are done, with merged keys."""
    return [module for module in attention.modules() if isinstance(module, nn.Linear)][-1]


@every_architecture
def test_every_block_is_a_site_and_the_report_has_its_grid(subject, network):
    blocks = {
        name
        for name, module in network.named_modules()
        if type(module).__name__ in subject.blocks and not name.startswith(subject.refiners)
    }
    with attach(network, make_recipe(schedule=ONCE)) as session:
        assert {site.name for site in session.sites} == blocks
        call(subject, network, session, size=subject.sizes[1])
        report = session.report().splitlines()
    grid = " x ".join(map(str, subject.grid(subject.sizes[1])))
    for folder in {block.rpartition(".")[0] for block in blocks}:
        # Blocks of several kinds in one folder have a line each.
        assert any(line.split()[0] in (folder, f"{folder}.0") and grid in line for line in report)


@scope_of_every_third
def test_threshold_one_is_the_unpatched_model_bit_by_bit(subject, network, scope):
    unpatched = subject.call(network)
    with attach(network, make_recipe(scope, schedule=ONCE, threshold=1.0, capacity=None)) as session:
        assert torch.equal(call(subject, network, session), unpatched)


@every_scope
@pytest.mark.parametrize("spare", SPARES)
def test_merging_changes_the_output_and_keeps_it_finite(subject, network, scope, spare):
    unpatched = subject.call(network)
    with attach(network, make_recipe(scope, schedule=ONCE, spare=spare)) as session:
        merged = call(subject, network, session)
        session.begin_step(1, TOTAL)
        assert session.summary().merged_fraction > 0.2
    assert merged.isfinite().all()
    assert not torch.allclose(merged, unpatched, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", EVERY_THIRD)
def test_near_field_that_covers_the_grid_changes_nothing_and_a_smaller_one_is_finite(subject, network):
    unpatched = subject.call(network)
    for near in (1, COVERING):
        with attach(network, lattice_recipe(near=near)) as session:
            merged = call(subject, network, session)
        assert merged.isfinite().all()
    torch.testing.assert_close(merged, unpatched, rtol=1e-5, atol=1e-5)


@scope_of_ten
def test_state_dict_is_the_same_while_attached(subject, network, scope):
    names = list(network.state_dict())
    with attach(network, make_recipe(scope, schedule=ONCE)) as session:
        call(subject, network, session)
        assert list(network.state_dict()) == names


@ten_architectures
def test_second_session_is_refused_and_leaves_the_first_alone(network):
    with attach(network, make_recipe(schedule=ONCE)):
        before = anatomy(network)
        with pytest.raises(RuntimeError, match=r"call its detach\(\) first"):
            attach(network, make_recipe("block"))
        assert anatomy(network) == before


@scope_of_every_third
@pytest.mark.parametrize("spare", SPARES)
def test_reuse_is_recompute_on_the_same_input(subject, network, scope, spare):
    with attach(network, make_recipe(scope, schedule=ONCE, spare=spare)) as session:
        computed, reused = (call(subject, network, session, number) for number in (0, 1))
        session.begin_step(2, TOTAL)
        assert session.summary().checkpoints == (0,)
    assert torch.equal(reused, computed)


@ten_architectures
def test_reused_pairs_are_those_of_the_checkpoint(subject, network):
    with attach(network, make_recipe(schedule=ONCE)) as session:
        call(subject, network, session, 0)
        reused = call(subject, network, session, 1, seed=1)
        assert not torch.equal(call(subject, network, session, 0, seed=1), reused)


@scope_of_ten
@pytest.mark.parametrize("other", ["batch", "size"])
def test_another_batch_or_size_within_a_run_is_computed_anew(subject, network, scope, other):
    options = {"batch": 1} if other == "batch" else {"size": subject.sizes[1]}
    with attach(network, make_recipe(scope, schedule=ONCE)) as session:
        fresh = call(subject, network, session, 0, **options), call(subject, network, session, 0)
        assert torch.equal(call(subject, network, session, 1, **options), fresh[0])
        assert torch.equal(call(subject, network, session, 2), fresh[1])
    assert fresh[0].isfinite().all()


@scope_of_ten
def test_sample_does_not_depend_on_its_batch_mates_unless_they_share_the_plan(subject, network, scope):
    with attach(network, make_recipe(scope, schedule=ONCE)) as session:
        together, alone = (call(subject, network, session, batch=batch) for batch in (3, 1))
        call(subject, network, session, batch=3)
        plans = {len(plan.slot) for plan in session.plans().values()}
    shared = scope != "keys" and session.sites[0].layout.shared
    assert plans == {1 if shared else 3}
    assert torch.allclose(together[:1], alone, rtol=1e-4, atol=1e-5) is not shared


@scope_of_ten
@pytest.mark.parametrize("number", [0, 1], ids=["at a checkpoint", "at a reuse"])
def test_failed_run_leaves_nothing_behind(subject, network, scope, number):
    before, unpatched = anatomy(network), subject.call(network)
    with attach(network, make_recipe(scope, schedule=ONCE)) as session:
        expected = call(subject, network, session)
        call(subject, network, session, 0, seed=1)
        with failing(last_projection(session.sites[1].attention)), pytest.raises(Interrupted):
            call(subject, network, session, number, size=subject.sizes[1])
        assert _get_current_function_mode_stack() == []
        assert torch.equal(call(subject, network, session), expected)
    assert anatomy(network) == before
    assert torch.equal(subject.call(network), unpatched)


@every_scope
def test_detach_restores_exactly(subject, network, scope):
    before, unpatched = anatomy(network), subject.call(network)
    session = attach(network, make_recipe(scope, schedule=ONCE))
    assert anatomy(network) != before
    call(subject, network, session)
    session.detach()
    session.detach()
    assert anatomy(network) == before
    assert torch.equal(subject.call(network), unpatched)


def test_blocks_whose_output_is_kept_share_no_merge():
    """Skip connections give later blocks the tokens of earlier ones, which must not be merged ones."""
    subject = ALL_ARCHITECTURES["HunyuanDiT"]
    network = subject.network()
    with attach(network, make_recipe("block", schedule=ONCE)) as session:
        expected = call(subject, network, session)
    with attach(network, make_recipe("block", schedule=ONCE, segment=4)) as session:
        assert torch.equal(call(subject, network, session), expected)
