"""A lattice for each of several parts of the run, as one recipe, and which of them are best together."""

from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catome_adapters.recipes.parts import in_parts
from catome_bench.calibration.candidates import LATTICES, PARTS, WHOLE, candidates, join_parts
from catome_bench.calibration.choose import best_choices
from catome_bench.calibration.damage import Effect
from catome_bench.views.calibration import render_choice

CANDIDATES = candidates(None)
PARTIAL = [part for part in PARTS if part != WHOLE]
settings = st.fixed_dictionaries({}, optional={part: st.sampled_from(list(LATTICES)) for part in PARTIAL})


@given(settings.filter(bool))
def test_every_part_of_the_run_has_the_cells_of_its_lattice(names):
    """Each of the steps of a run of forty; a part that has none sees all keys, or is outside of `during`."""
    recipe = join_parts({part: CANDIDATES[name] for part, name in names.items()})
    strides = {step: one.stride for one in in_parts(recipe) for step in range(40) if one.merges_at(step, 40)}
    for step in range(40):
        (part,) = (part for part in PARTIAL if PARTS[part][0] <= step / 40 < PARTS[part][1])
        wanted = LATTICES[names[part]] if part in names else 1
        assert strides.get(step, 1) == wanted
        if recipe.merges_at(step, 40):
            assert recipe.strides((8, 8), recipe.part_at(step, 40)) == wanted
    assert all(one.stride != other.stride for one, other in pairwise(in_parts(recipe)))


whole = st.integers(0, 9)
measured = st.lists(
    st.builds(
        Effect,
        st.sampled_from(["up", "down"]),
        st.sampled_from([*list(LATTICES)[:2], "half matched, keys"]),
        st.sampled_from(list(PARTS)),
        whole,
        whole,
    ),
    max_size=9,
    unique_by=lambda one: one[:3],
)


def fit_together(effects: tuple[Effect, ...]) -> bool:
    """Of one group: at most one, or lattices in different parts of the run."""
    parts = [one.part for one in effects]
    return len(effects) < 2 or (
        len({*parts}) == len(parts) and WHOLE not in parts and all(one.candidate in LATTICES for one in effects)
    )


@given(measured)
def test_no_other_settings_save_more_at_as_little_error(effects):
    groups = {name: [one for one in effects if one.group == name] for name in ("up", "down")}
    subsets = {
        name: [
            some
            for chosen in product((False, True), repeat=len(group))
            if fit_together(some := tuple(one for one, taken in zip(group, chosen, strict=True) if taken))
        ]
        for name, group in groups.items()
    }
    every = [one + other for one, other in product(*subsets.values())]
    found = best_choices(effects)
    for choice in found:
        assert choice.error == sum(one.error for one in choice.effects)
        assert choice.saved == sum(one.saved for one in choice.effects)
        for name in groups:
            assert fit_together(tuple(one for one in choice.effects if one.group == name))
    for budget in range(40):
        best = max(sum(one.saved for one in some) for some in every if sum(one.error for one in some) <= budget)
        assert max(choice.saved for choice in found if choice.error <= budget) == best


def test_parts_without_a_change_have_no_later_cells():
    half = CANDIDATES["1/2 of the keys"]
    recipe = join_parts({"early": half, "middle": half})
    assert (recipe.during, recipe.stride, recipe.later) == ((0.0, 0.5), (1, 2), ())


@pytest.mark.parametrize("part", PARTIAL)
def test_one_part_alone_is_the_candidate_in_it(part):
    quarter = CANDIDATES["1/4 of the keys"]
    recipe = join_parts({part: quarter})
    assert (recipe.during, recipe.stride, recipe.later) == (PARTS[part], 2, ())


def test_the_table_has_a_row_for_every_part_of_a_group():
    def chosen(part: str) -> dict[str, Any]:
        return {"group": "up", "candidate": "1/4 of the keys", "part": part, "psnr": 50.0, "saved": 1.0}

    table = render_choice({"groups": ["up", "down"], "choice": [chosen("early"), chosen("late")]})
    blocks, _, when, *_ = (list(column.cells) for column in table.columns)
    assert (blocks, when) == (["up", "", "down"], ["early", "late", ""])
