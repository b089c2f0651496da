"""Recipes: values that travel as JSON, refuse nonsense, and say what the paper says."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from catome_adapters import RECIPES, MergeRecipe, attach
from catome_core import PAPER_SCHEDULES, AdaptiveMerge, CheckpointSchedule
from probes import CountingMerge
from running import METRICS, SCOPES
from strategies import capacities, radii, seeds, spares, thresholds
from zoo.unet_pipelines import class_pipeline, draw

destinations = st.sampled_from(["top-left", "random", "rotate"])
policies = st.builds(AdaptiveMerge, thresholds, capacities, radii, spares, st.booleans(), destinations)
schedules = st.integers(1, 60).flatmap(
    lambda of: st.builds(CheckpointSchedule, st.lists(st.integers(0, of - 1)).map(tuple), st.just(of))
)
scopes = st.sampled_from(SCOPES).flatmap(
    lambda scope: st.tuples(st.just(scope), st.integers(1, 4 if scope == "block" else 1))
)
parts = st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True).map(lambda part: tuple(sorted(part)))
recipes = st.builds(
    lambda scope, *values, **options: MergeRecipe(*values, scope=scope[0], segment=scope[1], **options),
    scopes,
    policies,
    schedules,
    proportional=st.booleans(),
    levels=st.sampled_from(["auto", "top", "all"]) | st.lists(st.sampled_from([1, 2, 4, 8]), unique=True).map(tuple),
    stride=st.integers(1, 4),
    seed=seeds,
    metric=st.sampled_from(METRICS),
    during=parts,
)
NEW = ("metric", "segment", "during")
FIELDS = ("policy", "schedule", "scope", "proportional", "levels", "stride", "seed", *NEW)


@given(recipes)
def test_recipe_travels_as_json(recipe):
    text = recipe.to_json()
    back = MergeRecipe.from_json(text)
    assert back == recipe and hash(back) == hash(recipe)
    assert back.to_json() == text
    assert tuple(json.loads(text)) == FIELDS


def test_recipe_saved_before_the_later_fields_has_their_defaults():
    values = json.loads(MergeRecipe(scope="block").to_json())
    saved = json.dumps({name: values[name] for name in FIELDS if name not in NEW})
    assert MergeRecipe.from_json(saved) == MergeRecipe(scope="block")
    assert [getattr(MergeRecipe(), name) for name in NEW] == ["input", 1, (0.0, 1.0)]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_named_recipe_travels_as_json(recipe):
    assert MergeRecipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("scope", "heads", r"scope is 'heads'; expected one of \('attention', 'keys', 'block', 'progressive'\)"),
        ("levels", "best", r"levels is 'best'; expected one of \('auto', 'top', 'all'\) or factors such as \(1, 2\)"),
        ("stride", 0, "stride is 0; expected a positive number"),
        ("metric", "keys", r"metric is 'keys'; expected one of \('input', 'output'\)"),
        ("segment", 0, "segment is 0; expected a number of blocks"),
        ("segment", 1.5, "segment is 1.5; expected a number of blocks"),
        ("segment", 2, "segment is 2 with scope='attention'.*use scope='block', or segment=1"),
        ("during", [0.5, 0.5], r"during is \[0.5, 0.5\]; expected two rising fractions"),
        ("during", [0.8, 0.2], "expected two rising fractions"),
        ("during", [-0.1, 1], "expected two rising fractions"),
        ("during", [0, 1.1], "expected two rising fractions"),
        ("during", [float("nan"), 1], "expected two rising fractions"),
        ("during", [0.5], "expected two rising fractions"),
        ("during", 0.5, "expected two rising fractions"),
        ("policy", {"capacity": 1.5}, "capacity is 1.5; expected a fraction"),
        ("policy", {"spare": "drop"}, "spare is 'drop'; expected 'pad'"),
        ("policy", {"radius": -1}, "radius is -1"),
        ("policy", {"destination": "centre"}, "destination is 'centre'; expected"),
        ("policy", {"threshold": float("nan")}, "threshold is NaN"),
        ("schedule", {"steps": [50], "of": 50}, "lie outside a run of 50"),
        ("schedule", {"steps": [], "of": 0}, "run of 0"),
    ],
)
def test_value_out_of_range_is_refused_in_json_too(field, value, expected):
    values = json.loads(MergeRecipe().to_json())
    values[field] = value
    with pytest.raises(ValueError, match=expected):
        MergeRecipe.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"policy": 0.7}, "policy is 0.7.*AdaptiveMerge"),
        ({"schedule": (0, 5)}, r"schedule is \(0, 5\).*CheckpointSchedule"),
        ({"levels": 2}, r"levels is 2; expected .*\(1, 2\)"),
    ],
    ids=["policy", "schedule", "levels"],
)
def test_value_of_another_type_is_refused_with_a_remedy(values, expected):
    with pytest.raises((TypeError, ValueError), match=expected):
        MergeRecipe(**values)


@pytest.mark.parametrize("text", ["", "{", "recipe"])
def test_text_that_is_not_json_is_refused(text):
    with pytest.raises(ValueError, match="line 1"):
        MergeRecipe.from_json(text)


@pytest.mark.parametrize("text", ["{}", "[]", "3", "null", '{"policy": {}}', '{"schedule": {"steps": [0], "of": 5}}'])
def test_json_that_is_no_whole_recipe_is_refused_as_such(text):
    with pytest.raises((ValueError, TypeError), match=r"policy|schedule|JSON object"):
        MergeRecipe.from_json(text)


@pytest.mark.parametrize("place", [[], ["policy"], ["schedule"]], ids=["recipe", "policy", "schedule"])
def test_unknown_field_is_refused(place):
    values = inner = json.loads(MergeRecipe().to_json())
    for key in place:
        inner = inner[key]
    inner["treshold"] = 0.7
    with pytest.raises(TypeError, match="treshold"):
        MergeRecipe.from_json(json.dumps(values))


def test_recipe_cannot_be_changed_only_replaced():
    recipe = MergeRecipe()
    with pytest.raises(FrozenInstanceError):
        recipe.scope = "block"
    assert replace(recipe, scope="block").scope == "block" and recipe.scope == "attention"
    assert replace(recipe, levels=[1, 2]).levels == (1, 2)
    with pytest.raises(TypeError):
        RECIPES["mine"] = recipe


def test_paper_is_the_paper_to_the_letter():
    paper = RECIPES["paper"]
    assert paper.policy == AdaptiveMerge(threshold=0.7, capacity=None, radius=None, spare="pad", destination="top-left")
    assert not paper.policy.shared
    assert paper.schedule == PAPER_SCHEDULES["config_3"]
    assert (paper.scope, paper.proportional, paper.levels, paper.stride) == ("attention", False, "top", 2)


def test_default_is_what_attach_does():
    default = RECIPES["default"]
    assert (default.policy.threshold, default.policy.spare, default.proportional) == (0.7, "fill", True)
    with attach(class_pipeline()) as session:
        assert session.recipe is default


def test_tomesd_merges_half_of_the_tokens_anew_at_every_step():
    recipe = RECIPES["tomesd"]
    counting = CountingMerge(threshold=recipe.policy.threshold, capacity=0.25, spare="fill", destination="random")
    assert AdaptiveMerge(*[getattr(counting, name) for name in vars(recipe.policy)]) == recipe.policy
    pipe = class_pipeline()
    with attach(pipe, replace(recipe, policy=counting)) as session:
        counting.watch(pipe.unet)
        draw(pipe, steps=7)
        assert {row.merged_fraction for row in session.summary().rows} == {0.5}
    assert counting.recomputed == list(range(7))


def test_seed_decides_random_destinations_and_nothing_else_does():
    pipe = class_pipeline()

    def drawn(seed: int) -> torch.Tensor:
        with attach(pipe, replace(RECIPES["tomesd"], seed=seed)):
            return draw(pipe)

    first = drawn(0)
    torch.rand(3)
    assert torch.equal(drawn(0), first)
    assert not torch.equal(drawn(1), first)
