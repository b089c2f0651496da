"""`calibrate`: from a tiny pipeline to a recipe for it, what it does, and what is left behind."""

import json
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from catome_adapters import attach, find_sites, sessions
from catome_adapters.recipes.calibrated import CalibratedRecipe, identify_sites
from catome_bench.calibrate import Calibration, calibrate
from catome_bench.calibration import damage
from catome_bench.calibration.goal import psnr_of
from catome_bench.measure.fidelity import psnr
from catome_core import CheckpointSchedule
from running import lattice_recipe
from zoo.class_pipelines import tiny_shipped
from zoo.pipeline_parts import quiet

CALL = {"classes": ["cat"], "size": 32, "num_inference_steps": 3}


def tiny() -> Any:
    return quiet(tiny_shipped("dit"))


def of(pipe: Any, call: Any = CALL, **options: Any) -> Calibration:
    return calibrate(pipe, call, **{"seeds": [4], "progress": False} | options)


class Counted:
    """A call that notes which sites merge, and how; it is interrupted when so many pictures are drawn."""

    def __init__(self, limit: int = 10**6) -> None:
        self.limit = limit
        self.drawn: list[str] = []

    def __call__(self, pipe: Any, generator: torch.Generator) -> Tensor:
        if len(self.drawn) == self.limit:
            raise KeyboardInterrupt
        found = [f"{[site.name for site in one.sites]} {one.recipe.to_json()}" for one in sessions(pipe)]
        self.drawn.append(" ".join(found))
        return pipe(**CALL, generator=generator)


@cache
def calibrated() -> Calibration:
    return of(tiny())


@pytest.fixture
def calibration(saves, few) -> Calibration:
    return calibrated()


def test_the_recipe_has_for_every_site_what_was_chosen_for_its_group(calibration):
    pipe = tiny()
    recipe = calibration.recipe
    assert recipe.model == identify_sites(find_sites(pipe))
    assert calibration.choice and set(calibration.choice) <= set(calibration.damage)
    wanted = {one.group: one for one in calibration.choice}
    assert list(recipe.recipes) == list(wanted)
    for name, one in recipe.recipes.items():
        assert one.during == {"whole run": (0.0, 1.0), "late": (0.5, 1.0)}[wanted[name].part]
        assert (one.scope, one.levels) == ("keys", "all")
    fit = recipe.fit
    assert fit["goal"] == "40 dB" and fit["prompts"] == 1 and fit["steps"] == 3 and fit["seeds"] == [4]


def test_the_figures_of_the_fit_are_those_of_pictures_drawn_by_hand(calibration):
    pipe, fit = tiny(), calibration.recipe.fit
    unmerged = pipe(**CALL, generator=torch.Generator().manual_seed(4))
    recipes = calibration.recipe.recipes
    for one in dict.fromkeys(recipes.values()):
        attach(pipe, one, sites=[site for site in find_sites(pipe) if recipes.get(site.name) == one])
    merged = pipe(**CALL, generator=torch.Generator().manual_seed(4))
    assert fit["measured"]["psnr"] == pytest.approx(psnr(merged, unmerged), abs=1e-3)
    assert fit["met"] is (fit["measured"]["psnr"] >= 40)
    assert fit["predicted"]["psnr"] == pytest.approx(psnr_of(sum(one.error for one in calibration.choice)))


def test_the_recipe_is_compared_on_pictures_that_it_was_not_chosen_by(calibration):
    compared = calibration.compared
    assert [row.name for row in compared.rows] == ["unmerged", "calibrated", "close", "balanced", "fast"]
    assert compared.settings["seeds"] == [5]
    held_out = calibration.recipe.fit["held_out"]
    assert held_out["seeds"] == [5]
    assert held_out["calibrated"]["speedup"] == compared.recipes[0].speedup.median
    assert "on pictures that were not used to choose it, calibrated is" in str(calibration)


def test_layers_schedule_and_damage_are_there_to_be_read(calibration):
    names = [site.name for site in find_sites(tiny())]
    assert list(calibration.jaccard) == list(calibration.similarity) == names
    assert all(len(distances) == 2 for distances in calibration.jaccard.values())
    assert all([step for step, *_ in rows] == [0, 1, 2] for rows in calibration.similarity.values())
    assert isinstance(calibration.schedule, CheckpointSchedule) and calibration.schedule.of == 3
    # Both candidates save the same: the closer one was measured in its part, too.
    assert Counter(one.group for one in calibration.damage) == dict.fromkeys(names, 3)


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_what_is_saved_is_what_was_found(calibration, tmp_path):
    figures = calibration.save(tmp_path / "mine.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine-calibration.json", "mine.json"]
    assert CalibratedRecipe.load(tmp_path / "mine.json") == calibration.recipe
    found = json.loads(figures.read_text(), parse_constant=no_constant)
    json.loads((tmp_path / "mine.json").read_text(), parse_constant=no_constant)
    assert [(one["group"], one["error"]) for one in found["damage"]] == [
        (one.group, one.error) for one in calibration.damage
    ]
    assert found["schedule"]["steps"] == list(calibration.schedule.steps)
    assert found["jaccard"] == calibration.jaccard
    assert len(found["distance"]) == 3


@pytest.mark.usefixtures("saves", "few")
def test_a_run_that_was_broken_off_goes_on_and_measures_nothing_twice(tmp_path):
    whole, first, second = Counted(), Counted(8), Counted()
    wanted = of(tiny(), whole)
    file, pipe = tmp_path / "fit.jsonl", tiny()
    with pytest.raises(KeyboardInterrupt):
        of(pipe, first, measurements=file)
    assert sessions(pipe) == []
    found = of(pipe, second, measurements=file)
    assert found.recipe.recipes == wanted.recipe.recipes and found.damage == wanted.damage
    assert settings_of(first) and settings_of(second)
    assert settings_of(first) + settings_of(second) == settings_of(whole)


def settings_of(call: Counted) -> Counter[str]:
    """The settings of one site that were drawn."""
    return Counter(name for name in call.drawn if name.count("transformer_blocks") == 1)


@pytest.mark.usefixtures("saves", "few")
def test_another_goal_goes_on_with_the_same_measurements(tmp_path):
    of(tiny(), measurements=tmp_path / "fit.jsonl", floor_psnr=60)
    call = Counted()
    with pytest.raises(ValueError, match=r"holds measurements of a run with calls=.*; delete it, or pass another"):
        of(tiny(), call, measurements=tmp_path / "fit.jsonl")
    before = (tmp_path / "fit.jsonl").read_text()
    assert of(tiny(), measurements=tmp_path / "fit.jsonl", speedup=1.001).recipe.fit["goal"] == "1.001x"
    assert (tmp_path / "fit.jsonl").read_text() == before


@pytest.mark.usefixtures("saves", "few")
def test_measurements_are_those_of_the_same_weights(tmp_path):
    of(tiny(), measurements=tmp_path / "fit.jsonl")
    other = tiny()
    with torch.no_grad():
        for weight in other.transformer.parameters():
            weight += 0.01
    with pytest.raises(ValueError, match=r"holds measurements of a run with pipeline=.*; delete it, or pass another"):
        of(other, measurements=tmp_path / "fit.jsonl")


@pytest.mark.usefixtures("saves", "few")
def test_a_goal_out_of_reach_is_said_to_be(monkeypatch):
    calibration = of(tiny(), floor_psnr=300)
    assert calibration.recipe.fit["met"] is False and len(calibration.choice) == 1
    assert "No choice reaches 300 dB on the pictures of the fit: this is the closest" in str(calibration)


@pytest.mark.usefixtures("few")
def test_where_nothing_saves_time_there_is_no_recipe(monkeypatch):
    monkeypatch.setattr(damage, "seconds_saved", lambda *given: -1.0)
    with pytest.raises(ValueError, match="no setting saves time in any block at this size; draw larger pictures"):
        of(tiny())


def not_finite(pipe: Any, generator: torch.Generator) -> Tensor:
    return pipe(**CALL, generator=generator) * (float("nan") if sessions(pipe) else 1)


def compiled() -> Any:
    pipe = tiny()
    pipe.transformer.compile()
    return pipe


@pytest.mark.usefixtures("saves", "few")
@pytest.mark.parametrize(
    ("build", "call", "options", "error", "message"),
    [
        (
            tiny,
            CALL,
            {"floor_psnr": 40, "speedup": 1.3},
            ValueError,
            "speedup is 1.3; expected one goal",
        ),
        (tiny, CALL, {"speedup": 1.0}, ValueError, "speedup is 1.0; expected a number above 1"),
        (tiny, CALL, {"floor_psnr": -3}, ValueError, "floor_psnr is -3; expected decibels"),
        (tiny, CALL, {"floor_psnr": "40"}, TypeError, "floor_psnr is '40'; expected decibels"),
        (tiny, [], {}, ValueError, "got 0 calls and 1 seeds; expected at least one of each"),
        (tiny, CALL, {"seeds": []}, ValueError, "got 1 calls and 0 seeds"),
        (tiny, CALL | {"generator": None}, {}, ValueError, "has a generator; leave it out"),
        (tiny, CALL | {"num_inference_steps": 1}, {}, ValueError, "the run has one step, or its steps are unknown"),
        (tiny, [CALL, CALL | {"num_inference_steps": 2}], {}, ValueError, r"the calls make \[3, 2\] steps"),
        (tiny, not_finite, {}, ValueError, "seed 4: a value of the pictures is not finite"),
        (tiny, lambda pipe, generator: None, {}, TypeError, "nothing was drawn"),
        (compiled, CALL, {}, ValueError, "the pipeline is compiled"),
        (lambda: torch.nn.Linear(2, 2), CALL, {}, ValueError, "Linear has no blocks that run step by step"),
        (object, CALL, {}, TypeError, "has no network"),
    ],
)
def test_whatever_is_raised_leaves_the_pipeline_and_the_folder_as_they_were(
    tmp_path, build, call, options, error, message
):
    pipe = build()
    with pytest.raises(error, match=message):
        of(pipe, call, measurements=tmp_path / "fit.jsonl", **options)
    if hasattr(pipe, "transformer"):
        assert sessions(pipe) == []
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_with_a_session_is_refused():
    pipe = tiny()
    recipe = lattice_recipe()
    with attach(pipe, recipe) as session, pytest.raises(RuntimeError, match="is attached already"):
        of(pipe)
    assert session.sites


@pytest.mark.usefixtures("saves", "few")
def test_the_time_that_it_takes_at_most_is_said_first(capsys):
    of(tiny(), progress=True)
    assert "8 settings x 1 calls x" in capsys.readouterr().out.splitlines()[0]
