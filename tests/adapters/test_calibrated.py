"""A recipe for each site of one model: as if every recipe were attached by itself, and to no other model."""

import json
from dataclasses import replace

import pytest
import torch

from catome_adapters import RECIPES, CalibratedRecipe, attach, find_sites, identify_sites
from changes import add_lora, quantize
from probes import anatomy
from running import TOTAL, assert_same, call, lattice_recipe, make_recipe
from zoo.transformers import ARCHITECTURES
from zoo.unet_pipelines import class_pipeline, draw
from zoo.unets import small_unet

pytestmark = pytest.mark.usefixtures("without_gradients")

KEYS = lattice_recipe(near=0)
LATE_BLOCK = make_recipe("block", during=(0.5, 1.0))


def calibrate(network, *recipes):
    """One recipe for each of the first sites."""
    sites = find_sites(network)
    return CalibratedRecipe(identify_sites(sites), {site.name: one for site, one in zip(sites, recipes, strict=False)})


@pytest.mark.parametrize("name", ["DiT", "SD3", "Flux", "Wan"])
def test_each_recipe_does_what_it_does_alone(name):
    model = ARCHITECTURES[name]
    network = model.network()
    before, sites = anatomy(network), find_sites(network)[:2]
    expected = []
    with attach(network, KEYS, sites=sites[:1]) as first, attach(network, LATE_BLOCK, sites=sites[1:]) as second:
        for step in range(TOTAL):
            first.begin_step(step, TOTAL)
            expected.append(call(model, network, second, step, seed=step))
    with attach(network, calibrate(network, KEYS, LATE_BLOCK)) as session:
        assert [site.name for site in session.sites] == [site.name for site in sites]
        assert_same([call(model, network, session, step, seed=step) for step in range(TOTAL)], expected)
        rows = session.summary().rows
    assert {row.step for row in rows} == set(range(TOTAL))
    assert {(row.site, row.step >= 3) for row in rows if row.merged_fraction} == {
        (sites[0].name, False),
        (sites[0].name, True),
        (sites[1].name, True),
    }
    assert anatomy(network) == before


def test_pictures_are_those_of_one_recipe_on_the_same_sites():
    pipe = class_pipeline()
    recipe = replace(RECIPES["fast"], levels="all")
    sites = find_sites(pipe)
    chosen = sites[1:]
    with attach(pipe, recipe, sites=chosen) as session:
        expected, figures = draw(pipe), session.summary()
    calibrated = CalibratedRecipe(identify_sites(sites), {site.name: recipe for site in chosen})
    with attach(pipe, calibrated) as session:
        assert_same(draw(pipe), expected)
        summary, report = session.summary(), session.report()
    assert summary.rows == figures.rows and summary.memory == figures.memory
    assert "not attached, the calibrated recipe leaves it whole:" in report and "keys" in report
    assert repr(session) == f"MergeSession({len(chosen)} sites, scope='calibrated', detached)"


def test_predicted_gains_of_several_recipes_add_up():
    pipe = class_pipeline()
    first, second, *_ = find_sites(pipe)
    recipe = replace(RECIPES["fast"], levels="all")
    other = replace(recipe, stride=4)

    def gain(recipes):
        with attach(pipe, CalibratedRecipe(identify_sites(find_sites(pipe)), recipes)) as session:
            draw(pipe)
            return 1 - 1 / session.summary().speedup

    everywhere = {site.name: recipe for site in find_sites(pipe)}
    with attach(pipe, recipe) as session:
        draw(pipe)
        speedup = session.summary().speedup
    assert gain(everywhere) == pytest.approx(1 - 1 / speedup)
    both = gain({first.name: recipe, second.name: other})
    assert both == pytest.approx(gain({first.name: recipe}) + gain({second.name: other}), rel=1e-3)


def test_another_model_is_refused_and_left_as_it_was():
    dit, other = ARCHITECTURES["DiT"].network(), small_unet()
    before = anatomy(other)
    recipe = calibrate(dit, KEYS)
    with pytest.raises(ValueError, match=r"calibrated on .*; this model has .*there is no .*: calibrate on"):
        attach(other, recipe)
    assert anatomy(other) == before
    with pytest.raises(ValueError, match="sites is given with a CalibratedRecipe"):
        attach(dit, recipe, sites=find_sites(dit))


def test_a_recipe_that_does_not_fit_leaves_nothing_attached():
    network = ARCHITECTURES["DiT"].network()
    before = anatomy(network)
    with attach(network, KEYS, sites=find_sites(network)[1:2]):
        during = anatomy(network)
        with pytest.raises(RuntimeError, match="session"):
            attach(network, calibrate(network, KEYS, LATE_BLOCK))
        assert anatomy(network) == during
    assert anatomy(network) == before


@pytest.mark.parametrize("change", [lambda network: network.double(), quantize, add_lora])
def test_identity_is_that_of_the_blocks_whatever_their_weights(change):
    network = ARCHITECTURES["SD3"].network()
    before = identify_sites(find_sites(network))
    change(network)
    assert identify_sites(find_sites(network)) == before
    assert len({identify_sites(find_sites(model.network())) for model in ARCHITECTURES.values()}) > 5


def test_calibrated_recipe_travels_as_json(tmp_path):
    network = ARCHITECTURES["DiT"].network()
    recipe = replace(calibrate(network, KEYS, LATE_BLOCK, KEYS), fit={"floor": 40.0, "steps": 20})
    back = CalibratedRecipe.from_json(recipe.to_json())
    assert back == recipe and hash(back) == hash(recipe) and back.to_json() == recipe.to_json()
    recipe.save(tmp_path / "mine.json")
    assert CalibratedRecipe.load(tmp_path / "mine.json") == recipe
    assert [file.name for file in tmp_path.iterdir()] == ["mine.json"]


def test_recipes_that_are_equal_have_one_hash_in_any_order_of_their_sites():
    recipe = CalibratedRecipe("a model", {"first": KEYS, "second": LATE_BLOCK, "third": KEYS})
    back = CalibratedRecipe.from_json(recipe.to_json())
    assert [*back.recipes] != [*recipe.recipes]
    assert back == recipe and hash(back) == hash(recipe)


@pytest.mark.parametrize("sites", [(["a"], ["b", "a"]), (["a", "a"], ["b"])])
def test_a_site_with_two_recipes_in_a_file_is_refused_by_its_name(sites):
    groups = [
        {"sites": names, "recipe": json.loads(recipe.to_json())}
        for names, recipe in zip(sites, (KEYS, LATE_BLOCK), strict=True)
    ]
    with pytest.raises(ValueError, match=r"recipes\[[01]\]\.sites names a again; expected it once"):
        CalibratedRecipe.from_json(json.dumps({"model": "a model", "recipes": groups}))


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        ({"model": 3}, TypeError, "model is 3; expected a text"),
        ({"recipes": []}, ValueError, "recipes is empty; expected a recipe for one site at least"),
        ({"recipes": {}}, TypeError, "recipes is {}; expected a list"),
        ({"recipes": [3]}, TypeError, r"recipes\[0\] is 3; expected a JSON object"),
        ({"recipes": [{"sites": "all"}]}, TypeError, r"recipes\[0\]\.sites is 'all'; expected a list"),
        ({"recipes": [{"sites": [1], "recipe": 0}]}, TypeError, r"recipes\[0\]\.recipe is 0; expected a dict"),
        ({"fit": 1}, TypeError, "fit is 1; expected values of JSON"),
        ({"weights": 1}, TypeError, "weights is unknown; the fields are"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_path(change, error, expected, tmp_path):
    values = {"model": "a model", "recipes": [{"sites": ["a"], "recipe": json.loads(KEYS.to_json())}], "fit": {}}
    (tmp_path / "bad.json").write_text(json.dumps(values | change))
    with pytest.raises(error, match=rf"bad\.json: {expected}"):
        CalibratedRecipe.load(tmp_path / "bad.json")
    values["recipes"][0]["recipe"]["scope"] = "heads"
    with pytest.raises(ValueError, match=r"recipes\[0\]\.recipe\.scope is 'heads'"):
        CalibratedRecipe.from_json(json.dumps(values))


def test_a_step_is_announced_to_every_recipe():
    model = ARCHITECTURES["DiT"]
    network = model.network()
    with attach(network, calibrate(network, make_recipe("attention"), make_recipe("block"))) as session:
        for step in range(4):
            call(model, network, session, step)
        assert set(session.plans()) == {site.name for site in session.sites}
        session.reset()
        assert session.plans() == {}
    assert torch.is_tensor(model.call(network))
