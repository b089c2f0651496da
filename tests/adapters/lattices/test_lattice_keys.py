"""A lattice of keys in every kind of model: what attention sees, from step to step and from site to site."""

import pytest
import torch

from catome_adapters import MergeRecipe, attach
from catome_core import Lattice
from lattice_by_hand import CASES, VIT, WIDE, Case, steps_by_hand
from probes import anatomy
from running import TOTAL, all_differ, assert_same, run

pytestmark = pytest.mark.usefixtures("without_gradients")

STEPS = (0, 1, 4)


def lattice_recipe(lattice: Lattice | None = None, **options) -> MergeRecipe:
    return MergeRecipe(lattice or Lattice(), scope="keys", **{"levels": "all"} | options)


def steps_of(case: Case, network, recipe: MergeRecipe, steps=STEPS) -> list[torch.Tensor]:
    predictions = []
    with attach(network, recipe) as session:
        for step in steps:
            session.begin_step(step, TOTAL)
            predictions.append(case.model.call(network, size=case.size))
    return predictions


@pytest.mark.parametrize("name", CASES)
def test_attention_sees_the_anchors_of_the_step_and_of_the_site(name):
    case = CASES[name]
    network = case.model.network()
    seen = steps_of(case, network, lattice_recipe(seed=3))
    assert_same(seen, steps_by_hand(case, network, STEPS, seed=3), tolerance=1e-4)
    assert all_differ(seen[1:], seen[:-1])


@pytest.mark.parametrize("name", ["SD", "Flux, partial cells"])
def test_still_lattice_and_keys_that_count_once(name):
    case = CASES[name]
    network = case.model.network()
    seen = steps_of(case, network, lattice_recipe(Lattice(moving=False), proportional=False))
    assert_same(seen, steps_by_hand(case, network, STEPS, moving=False, weighed=False), tolerance=1e-4)
    assert_same(seen[1:], seen[:-1])


@pytest.mark.parametrize("name", WIDE)
def test_near_field_lies_where_the_grid_does(name):
    case = WIDE[name]
    network = case.model.network()
    seen = steps_of(case, network, lattice_recipe(Lattice(near=1), stride=(2, 2)), STEPS[:2])
    assert_same(seen, steps_by_hand(case, network, STEPS[:2], near=1), tolerance=1e-4)
    assert not torch.allclose(*seen, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("recipe", [lattice_recipe(stride=1), lattice_recipe(Lattice(near=40))], ids=["stride", "near"])
@pytest.mark.parametrize("name", ["SD", "Flux"])
def test_attention_that_sees_every_key_is_left_alone(name, recipe):
    case = CASES[name]
    network = case.model.network()
    assert_same(steps_of(case, network, recipe), [case.model.call(network, size=case.size)] * len(STEPS))


@pytest.mark.parametrize("name", ["SD", "Flux"])
def test_second_run_has_the_same_bits_and_detach_leaves_no_trace(name):
    model = CASES[name].model
    network = model.network()
    plain, before = run(model, network), anatomy(network)
    with attach(network, lattice_recipe()) as session:
        first = run(model, network, session)
        assert_same(run(model, network, session), first)
    assert_same(run(model, network), plain)
    assert anatomy(network) == before


def test_calls_of_a_step_move_alike_whenever_they_come_first():
    case = CASES["Flux"]
    network = case.model.network()
    with attach(network, lattice_recipe()) as session:
        seen = []
        for step, context in ((0, "cond"), (1, "cond"), (1, "uncond"), (2, "uncond"), (2, "cond")):
            session.begin_step(step, TOTAL, context=context)
            seen.append(case.model.call(network, size=case.size))
    assert_same(seen, steps_by_hand(case, network, (0, 1, 1, 2, 2)), tolerance=1e-4)


def test_vision_transformer_has_a_still_lattice_beside_its_prefix():
    network = VIT.model.network()
    with attach(network, lattice_recipe(Lattice(moving=False))):
        seen = VIT.model.call(network)
    assert_same([seen], steps_by_hand(VIT, network, [0], moving=False), tolerance=1e-4)
    with pytest.raises(ValueError, match=r"once for every input.*moving is True, which moves.*Lattice\(moving=False\)"):
        attach(network, lattice_recipe())


def test_lattice_stands_still_until_the_step_is_known_and_a_warning_says_so():
    case = CASES["PixArt"]
    network = case.model.network()
    with attach(network, lattice_recipe()) as session:
        with pytest.warns(UserWarning, match=r"lattice stands still.*call session\.begin_step\(step, total\)"):
            seen = [case.model.call(network), case.model.call(network)]
        session.begin_step(1, TOTAL)
        seen.append(case.model.call(network))
        session.reset()
        seen.append(case.model.call(network))
    assert_same(seen, steps_by_hand(case, network, (0, 0, 1, 0)), tolerance=1e-4)
