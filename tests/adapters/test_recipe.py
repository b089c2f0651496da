"""Recipes: values that travel as JSON, refuse nonsense, and say what the paper says."""

import errno
import json
import re
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from catome_adapters import RECIPES, MergeRecipe, attach
from catome_core import PAPER_SCHEDULES, AdaptiveMerge, CheckpointSchedule, Lattice
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
LEVELS = st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, unique=True)
parts = st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True).map(lambda part: tuple(sorted(part)))
lattices = st.builds(Lattice, st.booleans(), st.none() | st.integers(0, 9))
strides = st.integers(1, 4) | st.lists(st.integers(1, 4), min_size=2, max_size=3).map(tuple)
begins = st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), max_size=3, unique=True).map(sorted)
later = begins.flatmap(lambda some: st.tuples(*(st.tuples(st.just(begin), strides) for begin in some)))
recipes = st.builds(
    lambda scope, *values, **options: MergeRecipe(*values, scope=scope[0], segment=scope[1], **options),
    scopes,
    policies,
    schedules,
    proportional=st.booleans(),
    levels=st.sampled_from(["auto", "top", "all"]) | LEVELS.map(tuple),
    stride=st.integers(1, 4),
    seed=seeds,
    metric=st.sampled_from(METRICS),
    during=parts | st.just("auto"),
) | st.builds(MergeRecipe, lattices, schedules, st.just("keys"), st.booleans(), later=later)
NEW = ("metric", "segment", "during", "later")
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
    assert [getattr(MergeRecipe(), name) for name in NEW] == ["input", 1, (0.0, 1.0), ()]


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
        ("segment", 2, "scope is 'attention' with segment=2.*use scope='block', or segment=1"),
        ("during", [0.5, 0.5], r"during is \[0.5, 0.5\]; expected two rising fractions"),
        ("during", [0.8, 0.2], "expected two rising fractions"),
        ("during", [-0.1, 1], "expected two rising fractions"),
        ("during", [0, 1.1], "expected two rising fractions"),
        ("during", [float("nan"), 1], "expected two rising fractions"),
        ("during", [0.5], "expected two rising fractions"),
        ("later", [[0, 2]], r"later is \[\[0, 2\]\]; expected pairs of a rising fraction of `during`"),
        ("later", [[0.5, 2], [0.2, 4]], "expected pairs of a rising fraction"),
        ("later", [[1, 2]], "expected pairs of a rising fraction"),
        ("later", [[1.5, 2]], r"later\[0\]\[0\] is 1.5; expected a fraction of `during`"),
        ("later", [[0.5, 0]], r"later\[0\]\[1\] is 0; expected a positive number"),
        ("later", [[0.5]], r"later\[0\] is \[0.5\]; expected pairs"),
        ("later", [[0.5, 4]], r"later is \(\(0.5, 4\),\) with AdaptiveMerge.*use a Lattice"),
        ("policy", {"capacity": 1.5}, r"policy\.capacity is 1.5; expected a fraction"),
        ("policy", {"spare": "drop"}, r"policy\.spare is 'drop'; expected one of \('pad', 'fill'\)"),
        ("policy", {"radius": -1}, r"policy\.radius is -1"),
        ("policy", {"destination": "centre"}, r"policy\.destination is 'centre'; expected"),
        ("policy", {"threshold": float("nan")}, r"policy\.threshold is nan"),
        ("policy", {"near": -1}, r"policy\.near is -1; expected a number of cells from 0"),
        ("policy", {"moving": True}, r"scope is 'attention' with Lattice\(.*use scope='keys', or an AdaptiveMerge"),
        ("schedule", {"steps": [50], "of": 50}, r"schedule\.steps \[50\] lie outside a run of 50"),
        ("schedule", {"steps": [], "of": 0}, r"schedule\.of is 0"),
    ],
)
def test_value_out_of_range_is_refused_in_json_too(field, value, expected):
    values = json.loads(MergeRecipe().to_json())
    values[field] = value
    with pytest.raises(ValueError, match=expected):
        MergeRecipe.from_json(json.dumps(values))


def test_lattice_matches_nothing_whose_output_could_be_matched():
    with pytest.raises(ValueError, match=r"metric is 'output' with Lattice.*use metric='input'"):
        MergeRecipe(Lattice(), scope="keys", metric="output")
    for scope in ("attention", "block", "progressive"):
        with pytest.raises(ValueError, match=rf"scope is '{scope}' with .*Lattice"):
            MergeRecipe(Lattice(), scope=scope)


def test_stride_of_a_plane_leaves_frames_apart():
    assert MergeRecipe(stride=(2, 4)).strides((4, 6)) == (2, 4)
    assert MergeRecipe(stride=(2, 4)).strides((5, 4, 6)) == (1, 2, 4)
    with pytest.raises(ValueError, match=r"stride is \(2, 2, 2\), and the grid is \(4, 6\)"):
        MergeRecipe(stride=(2, 2, 2)).strides((4, 6))


NO_NUMBERS, NO_INTEGERS = [True, "0.5", [0.5], {}], [True, 1.5, 2.0, "2", {}]
WRONG_TYPES: dict[str, list[object]] = {
    "policy": [None, 0.7, "default", []],
    "policy.threshold": [*NO_NUMBERS, None],
    "policy.capacity": NO_NUMBERS,
    "policy.radius": NO_INTEGERS,
    "policy.shared": ["no", 0, None],
    "policy.spare": [None, 0],
    "schedule": [None, [0, 5], "config_3"],
    "schedule.steps": [None, 5, "05", [0.5, 7.9], [True], {"0": 1}],
    "schedule.of": [*NO_INTEGERS, 10.5, None],
    "scope": [None, 1, ["attention"]],
    "proportional": ["no", 0, 1, None],
    "levels": [None, 2, [], ["1"], [1.5], [True], {"a": 1}],
    "stride": [*NO_INTEGERS, None, [1.5, 2], [2], ["2", "2"]],
    "seed": ["x", None, 1.5, True],
    "metric": [None, 0],
    "segment": [*NO_INTEGERS, None],
    "later": [None, 0.5, "late", {"0.5": 2}],
    "during": [None, 0.5, "01", "late", ["0", "1"], [False, True], {"0": 1}],
}
CASES = [(path, value) for path, values in WRONG_TYPES.items() for value in values]


@pytest.mark.parametrize(("path", "value"), CASES, ids=[f"{path}={value!r}" for path, value in CASES])
def test_a_value_of_another_type_is_refused_by_its_path(path, value):
    values = json.loads(MergeRecipe().to_json())
    *of_part, name = path.split(".")
    (values[of_part[0]] if of_part else values)[name] = value
    with pytest.raises((TypeError, ValueError)) as error:
        MergeRecipe.from_json(json.dumps(values))
    assert str(error.value).startswith(f"{path} is {value!r}; expected ")


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, value in CASES if "." not in path], ids=lambda value: repr(value)
)
def test_python_is_told_the_same_as_json(path, value):
    with pytest.raises((TypeError, ValueError), match=rf"^{path} is .*; expected "):
        MergeRecipe(**{path: value})


@pytest.mark.parametrize("text", ["", "{", "recipe"])
def test_text_that_is_not_json_is_refused(text):
    with pytest.raises(ValueError, match="line 1"):
        MergeRecipe.from_json(text)


@pytest.mark.parametrize("text", ["{}", "[]", "3", "null", '{"policy": {}}', '{"schedule": {"steps": [0], "of": 5}}'])
def test_json_that_is_no_whole_recipe_is_refused_as_such(text):
    with pytest.raises((ValueError, TypeError), match=r"policy|schedule|JSON object"):
        MergeRecipe.from_json(text)


def test_unknown_field_of_a_lattice_is_refused():
    values = json.loads(MergeRecipe(Lattice(), scope="keys").to_json())
    values["policy"]["far"] = 1
    with pytest.raises(TypeError, match=r"^policy\.far is unknown; the fields are \['moving', 'near'\]"):
        MergeRecipe.from_json(json.dumps(values))


@pytest.mark.parametrize(("part", "known"), [("", "proportional"), ("policy", "threshold"), ("schedule", "steps")])
def test_an_unknown_field_is_refused_and_the_known_ones_are_named(part, known):
    values = json.loads(MergeRecipe().to_json())
    (values[part] if part else values)["treshold"] = 0.7
    path = f"{part}.treshold".lstrip(".")
    with pytest.raises(TypeError, match=rf"^{path} is unknown; the fields are \[.*'{known}'"):
        MergeRecipe.from_json(json.dumps(values))


@pytest.mark.parametrize("name", ["steps", "of"])
def test_a_schedule_lacks_nothing(name):
    values = json.loads(MergeRecipe().to_json())
    del values["schedule"][name]
    with pytest.raises(ValueError, match=rf"^schedule\.{name} is missing"):
        MergeRecipe.from_json(json.dumps(values))


def test_numbers_of_other_libraries_travel_as_json():
    recipe = MergeRecipe(AdaptiveMerge(np.float32(0.5)), stride=np.int64(2), seed=torch.tensor(3), levels=np.array([1]))
    assert MergeRecipe.from_json(recipe.to_json()) == recipe
    assert recipe == MergeRecipe(AdaptiveMerge(0.5), stride=2, seed=3, levels=(1,))


def test_a_recipe_is_saved_and_loaded(tmp_path):
    path, recipe = tmp_path / "mine.json", MergeRecipe(scope="block", segment=3)
    MergeRecipe().save(path)
    recipe.save(str(path))
    assert MergeRecipe.load(path) == MergeRecipe.load(str(path)) == recipe
    assert list(tmp_path.iterdir()) == [path]


def test_a_recipe_that_cannot_be_written_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "mine.json"
    MergeRecipe().save(path)
    monkeypatch.setattr("pathlib.Path.replace", failing_replace)
    with pytest.raises(OSError, match=r"No space left.*mine\.json'$"):
        MergeRecipe(scope="block").save(path)
    assert MergeRecipe.load(path) == MergeRecipe()
    assert list(tmp_path.iterdir()) == [path]


def failing_replace(*paths: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_errors_of_a_file_name_the_file(tmp_path):
    path = tmp_path / "mine.json"
    for write in (MergeRecipe().save, lambda path: MergeRecipe.load(path)):
        with pytest.raises(FileNotFoundError) as missing:
            write(tmp_path / "nowhere" / "mine.json")
        assert missing.value.filename == str(tmp_path / "nowhere" / "mine.json")
    for text, message in {
        "{": "line 1",
        '{"policy": {"threshold": "0.7"}, "schedule": {}}': "policy.threshold",
    }.items():
        path.write_text(text)
        with pytest.raises((TypeError, ValueError), match=rf"^{re.escape(str(path))}: .*{message}"):
            MergeRecipe.load(path)


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


def test_todo_is_a_still_quarter_of_the_keys():
    todo = RECIPES["todo"]
    assert todo.policy == Lattice(moving=False, near=None)
    assert (todo.scope, todo.proportional, todo.levels, todo.stride) == ("keys", False, "top", 2)


def test_what_attach_decides_is_not_known_before():
    with pytest.raises(ValueError, match="during is 'auto', which only attach can decide"):
        RECIPES["balanced"].merges_at(0, 10)


def test_there_is_one_default():
    assert RECIPES["default"] is RECIPES["balanced"]
    with attach(class_pipeline()) as one, attach(class_pipeline(), "default") as other:
        assert one.recipe == other.recipe == replace(RECIPES["default"], policy=Lattice(), during=(0.0, 1.0))


def test_recipe_of_ones_own_begins_with_the_adaptive_one():
    adaptive = RECIPES["adaptive"]
    assert MergeRecipe() == adaptive
    assert (adaptive.policy.threshold, adaptive.policy.spare, adaptive.proportional) == (0.7, "fill", True)


@pytest.mark.parametrize("name", ["adaptive", "paper"])
def test_a_recipe_is_attached_by_its_name(name):
    with attach(class_pipeline(), name) as session:
        assert session.recipe == RECIPES[name]


def test_a_name_that_no_recipe_has_names_the_nearest_and_all():
    for look_up in (lambda: RECIPES["defualt"], lambda: attach(class_pipeline(), "defualt")):
        with pytest.raises(
            KeyError, match=r"'defualt'; did you mean 'default'\? .*\['adaptive', 'balanced', 'close', 'default'"
        ):
            look_up()
    with pytest.raises(KeyError, match=r"named 3\. The names are \["):
        RECIPES[3]
    assert "defualt" not in RECIPES and RECIPES.get("defualt") is None


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
