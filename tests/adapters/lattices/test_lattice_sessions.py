"""What a session says, predicts and remembers of a lattice of keys."""

from dataclasses import replace

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from catome_adapters import RECIPES, attach, predict_site
from catome_adapters.prediction import rates
from catome_adapters.prediction.rates import DeviceRates
from catome_core import Lattice, MergeWarning, NearField, TokenGrid
from lattice_by_hand import CASES, WIDE
from running import ONCE, TOTAL, assert_same, call, lattice_recipe, run
from zoo.own_models import hugging_face_vit
from zoo.transformers import ARCHITECTURES
from zoo.unet_pipelines import class_pipeline, draw
from zoo.unets import SD

RECIPE = lattice_recipe()
NEAR = replace(RECIPE, policy=Lattice(near=1))
FREE = DeviceRates(flops=1.0, attention_flops=1.0, bandwidth=float("inf"), launch=0.0)


@torch.no_grad()
def test_summary_has_the_share_of_the_keys_and_no_checkpoint():
    network = SD.network()
    with attach(network, replace(RECIPE, schedule=ONCE)) as session:
        run(SD, network, session)
        summary = session.summary()
        assert {(row.slots, row.merged_fraction, row.overflow) for row in summary.rows if row.tokens == 64} == {
            (16, 0.75, 0)
        }
        assert summary.checkpoints == () and summary.steps == tuple(range(TOTAL))
        assert "queries saw 25.0% of the keys in 6 steps, nothing to recompute" in str(summary)
        assert "scope keys" in session.report() and "Lattice(moving=True, near=None)" in session.report()
        assert summary.memory == 8 * len(session.sites)


@torch.no_grad()
def test_share_that_a_query_does_not_see_leaves_out_the_near_field():
    case = WIDE["PixArt"]
    network, grid = case.model.network(), case.grid(1)
    with attach(network, NEAR) as session:
        session.begin_step(0, TOTAL)
        case.model.call(network, size=case.size)
        (share,) = {row.merged_fraction for row in session.summary().rows}
    assert share == pytest.approx(1 - NearField(grid, 1).keys / grid.tokens)
    assert 0 < share < 0.75


@pytest.mark.parametrize(
    ("name", "near", "during"), [("SD", None, (0.0, 1.0)), ("Flux", 1, (0.3, 1.0)), ("PixArt", 1, (0.3, 1.0))]
)
def test_recipes_leave_near_fields_and_first_steps_to_the_network(name, near, during):
    network = (SD if name == "SD" else ARCHITECTURES[name]).network()
    with attach(network, replace(RECIPES["balanced"], levels="all")) as session:
        assert (session.recipe.policy, session.recipe.during) == (Lattice(near=near), during)
        assert (f"during {during}" in session.report()) == (during != (0.0, 1.0))


def test_a_network_without_steps_has_no_first_ones_to_leave_alone():
    recipe = lattice_recipe(moving=False, near="auto", during="auto")
    with attach(hugging_face_vit(), recipe) as session:
        assert (session.recipe.policy.near, session.recipe.during) == (1, (0.0, 1.0))


@torch.no_grad()
def test_a_named_recipe_leaves_the_first_steps_of_a_transformer_alone():
    """Three of ten, bit for bit; then it merges."""
    case = WIDE["PixArt"]
    network = case.model.network()
    with attach(network, replace(RECIPES["balanced"], levels="all")) as session:
        steps = []
        for step in range(10):
            session.begin_step(step, 10)
            steps.append(case.model.call(network, size=case.size))
    plain = case.model.call(network, size=case.size)
    assert [torch.equal(seen, plain) for seen in steps] == [True] * 3 + [False] * 7


@torch.no_grad()
def test_plans_are_those_of_the_step_and_none_after_the_run():
    network, anchors = SD.network(), []
    with attach(network, RECIPE) as session:
        assert session.plans() == {}
        for step in range(2):
            call(SD, network, session, step)
            anchors.append({name: plan.anchor for name, plan in session.plans().items()})
        assert set(anchors[0]) == {site.name for site in session.sites}
        assert not any(torch.equal(anchors[0][name], anchors[1][name]) for name in anchors[0])
        session.reset()
        assert session.plans() == {}


@torch.no_grad()
def test_scheduler_moves_the_lattice_as_the_caller_does():
    pipe = class_pipeline()
    with attach(pipe, RECIPE):
        first = draw(pipe, steps=4)
        assert torch.equal(draw(pipe, steps=4), first)
    with attach(pipe, replace(RECIPE, policy=Lattice(moving=False))):
        assert not torch.equal(draw(pipe, steps=4), first)
    with attach(pipe.unet, RECIPE) as session:
        steps = iter(range(4))
        handle = pipe.unet.register_forward_pre_hook(lambda *_: session.begin_step(next(steps), 4), prepend=True)
        assert torch.equal(draw(pipe, steps=4), first)
        handle.remove()


@torch.no_grad()
def test_steps_outside_the_part_of_the_run_are_unmerged():
    network = SD.network()
    plain = run(SD, network)
    with attach(network, replace(RECIPE, during=(0.5, 1.0))) as session:
        seen = run(SD, network, session)
    assert_same(seen[:3], plain[:3])
    with attach(network, RECIPE) as session:
        assert_same(run(SD, network, session)[3:], seen[3:])


def test_what_gradient_checkpointing_repeats_has_the_anchors_of_its_step():
    case = CASES["Flux"]
    network = case.model.network().train()
    with attach(network, RECIPE) as session:
        gradients = []
        for repeats in (False, True):
            network.enable_gradient_checkpointing() if repeats else network.disable_gradient_checkpointing()
            network.zero_grad()
            session.reset()
            losses = []
            for step in range(2):
                session.begin_step(step, TOTAL)
                losses.append(case.model.predict(network, seed=step).square().sum())
            sum(losses).backward()
            gradients.append([weight.grad.clone() for weight in network.parameters() if weight.grad is not None])
    assert_same(gradients[1], gradients[0], tolerance=1e-4)


@pytest.mark.parametrize(("recipe", "spares"), [(RECIPE, True), (NEAR, False)], ids=["lattice", "near"])
def test_saving_is_the_share_of_the_keys_and_their_projections_only_if_they_are_gathered_first(
    recipe, spares, monkeypatch
):
    monkeypatch.setitem(rates.DEVICE_RATES, "cpu", FREE)
    for name in ("PixArt", "Wan"):
        with attach(ARCHITECTURES[name].network(), recipe) as session:
            site = session.sites[0]
        grid = TokenGrid((8, 80), (2, 2)) if name == "PixArt" else TokenGrid((2, 8, 80), (1, 2, 2))
        keys = grid.destinations if recipe is RECIPE else NearField(grid, 1).keys
        width, share = site.attention.to_q.out_features, 1 - keys / grid.tokens
        projections = 2 * 2 * grid.tokens * width**2 if spares and name == "PixArt" else 0
        expected = 2 * share * (projections + 4 * grid.tokens**2 * width)
        assert predict_site(site, recipe, grid).saved == pytest.approx(expected)


def test_keys_that_are_too_few_to_gain_are_left_alone_and_a_warning_names_the_remedy(monkeypatch):
    monkeypatch.setitem(rates.DEVICE_RATES, "cpu", DeviceRates(1e12, 1e12, 1e12, launch=1.0))
    network = ARCHITECTURES["Flux"].network()
    with attach(network, replace(RECIPE, levels="top")) as session:
        run(ARCHITECTURES["Flux"], network, session)
        with pytest.warns(UserWarning, match="too few to gain time.*give a larger stride"):
            session.begin_step(0, TOTAL)


@pytest.mark.parametrize(("name", "warns"), [("Flux", True), ("PixArt", False)])
def test_backend_is_substituted_only_where_keys_are_intercepted(name, warns, monkeypatch, recwarn):
    monkeypatch.setattr(attention_dispatch, "_check_attention_backend_requirements", lambda backend: None)
    network = ARCHITECTURES[name].network()
    try:
        network.set_attention_backend("flash")
        with attach(network, RECIPE):
            pass
    finally:
        _AttentionBackendRegistry.set_active_backend("native")
    assert any("'flash' cannot be made aware" in str(one.message) for one in recwarn) is warns


@torch.no_grad()
def test_a_run_that_is_too_short_to_merge_warns_with_the_remedy():
    """A single step is the first one, which a transformer is left to lay out."""
    case = WIDE["PixArt"]
    network = case.model.network()
    with attach(network, replace(RECIPES["balanced"], levels="all")) as session:
        session.begin_step(0, 1)
        case.model.call(network, size=case.size)
        with pytest.warns(MergeWarning, match=r"this run of step 0, .* during=\(0\.3, 1\.0\)\. Draw in more steps"):
            session.begin_step(0, 1)
    with attach(network, replace(RECIPES["balanced"], levels="all", during=(0.0, 1.0))) as session:
        session.begin_step(0, 1)
        case.model.call(network, size=case.size)
        assert session.summary().merged_fraction > 0
