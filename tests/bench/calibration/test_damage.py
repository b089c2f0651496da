"""What settings do: their figures measured by hand, and which are measured."""

from typing import Any

import pytest
import torch
from torch import Tensor

from catome_adapters import RECIPES, attach, find_sites, sessions
from catome_bench.calibration import damage
from catome_bench.calibration.candidates import MATCHED_SCOPES, PARTS, candidates
from catome_bench.calibration.damage import (
    draw_timed,
    find_refusals,
    measure_effects,
    run_settings,
    saved_in,
    usual_by_take,
)
from catome_bench.calibration.groups import group_by_setting
from catome_bench.calibration.measurements import Measurements
from catome_bench.calibration.takes import Takes, seconds_of
from catome_core import CheckpointSchedule
from zoo.class_pipelines import tiny_shipped
from zoo.pipeline_parts import quiet

CALL = {"classes": ["cat"], "size": 32, "num_inference_steps": 3}
SETTINGS = candidates(CheckpointSchedule((0, 2), of=3))


@pytest.fixture
def pipe() -> Any:
    return quiet(tiny_shipped("dit"))


def draw(pipe: Any, seed: int) -> Tensor:
    return pipe(**CALL, generator=torch.Generator().manual_seed(seed))


def effects(pipe: Any, names: tuple[str, ...], groups: int = 1, **others: Any) -> list[Any]:
    chosen = dict(list(group_by_setting(find_sites(pipe)).items())[:groups])
    settings = {name: SETTINGS[name] for name in names}
    given = {"measurements": Measurements(None, {}), "refusals": {group: {} for group in chosen}, "progress": False}
    return measure_effects(Takes(pipe, [CALL], [3, 5]), chosen, settings, **given | others)


@pytest.mark.usefixtures("saves")
def test_an_error_is_that_of_pictures_drawn_by_hand(pipe):
    site = find_sites(pipe)[0]
    found = effects(pipe, ("half matched, block",))
    assert [one.part for one in found] == list(PARTS)
    unmerged = [draw(pipe, seed) for seed in (3, 5)]
    for one in found:
        recipe = SETTINGS[one.candidate]
        assert recipe.levels == "all"
        with attach(pipe, type(recipe)(**vars(recipe) | {"during": PARTS[one.part]}), sites=[site]):
            merged = [draw(pipe, seed) for seed in (3, 5)]
        squares = [(a - b).double().square().mean().item() for a, b in zip(merged, unmerged, strict=True)]
        assert one.error == pytest.approx(sum(squares) / 2) and one.error > 0
        # One of three steps, or all of them.
        assert one.saved == pytest.approx(0.003 if one.part == "whole run" else 0.001)


def test_what_saves_nothing_in_the_whole_run_is_not_measured_in_its_parts(pipe, monkeypatch):
    monkeypatch.setattr(damage, "seconds_saved", lambda *given: 0.0)
    found = effects(pipe, ("1/4 of the keys", "half matched, keys"), groups=2)
    assert [one.part for one in found] == ["whole run"] * 4


def test_seconds_of_a_setting_count_over_all_parts(pipe, monkeypatch):
    monkeypatch.setattr(damage, "seconds_saved", lambda group, run, runs, usual: len(runs) / 1000)
    assert {one.saved for one in effects(pipe, ("half matched, keys",))} == {len(PARTS) / 1000}


def test_all_groups_are_timed_in_every_picture(pipe):
    groups = group_by_setting(find_sites(pipe))
    first, *others = groups
    takes = Takes(pipe, [CALL], [3, 5])
    error, pictures = draw_timed(takes, groups, first, SETTINGS["half matched, keys"])
    for picture in pictures:
        assert {kind: len(calls) for kind, calls in picture[first].items()} == {"checkpoint": 2, "reuse": 1}
        assert {name: {kind: len(calls) for kind, calls in picture[name].items()} for name in others} == {
            name: {"unmerged": 3} for name in others
        }
    assert len(pictures) == 2 and error > 0
    assert draw_timed(takes, groups)[0] == 0 and sessions(pipe) == []
    usual = usual_by_take([draw_timed(takes, groups)])
    assert len(usual) == 2 and all(list(one) == list(groups) and min(one.values()) > 0 for one in usual)


def test_candidates_merge_wherever_they_are_told_to_and_share_a_schedule():
    assert {one.levels for one in SETTINGS.values()} == {"all"}
    assert {SETTINGS[f"half matched, {scope}"].schedule.steps for scope in MATCHED_SCOPES} == {(0, 2)}


def parts_of(**figures: tuple[float, float]) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str]]]:
    """The runs of candidates, each with an error and the seconds of its merged calls, and what was asked for."""
    asked: list[tuple[str, str]] = []
    every: list[Any] = [(0.0, [{"up": {"unmerged": [4.0] * 9}}])]

    def run(name: str, part: str) -> Any:
        asked.append((name, part))
        error, seconds = figures[name]
        every.append((error, [{"up": {"reuse": [seconds] * 3, "unmerged": [2.0] * 9}}]))
        return every[-1]

    return run_settings("up", list(figures), run, every), asked


def test_unmerged_steps_of_all_runs_are_what_merged_ones_are_held_against():
    runs, asked = parts_of(half=(0.5, 1.5))
    assert list(runs["half"]) == [part for _, part in asked] == list(PARTS) and asked[0] == ("half", "whole run")
    every = list(runs["half"].values())
    usual = usual_by_take([*every, (0.0, [{"up": {"unmerged": [4.0]}}])])
    assert saved_in("up", runs["half"]["late"], every, usual) == 3 * (2.0 - 1.5)


def test_what_saves_no_more_than_a_closer_one_is_not_measured_in_parts():
    runs, asked = parts_of(close=(0.1, 1.5), far=(0.2, 1.5), fast=(0.3, 1.0), slow=(0.0, 9.0))
    assert {name: len(one) for name, one in runs.items()} == {
        "close": len(PARTS),
        "far": 1,
        "fast": len(PARTS),
        "slow": 1,
    }
    assert [part for _, part in asked[:4]] == ["whole run"] * 4


@pytest.mark.usefixtures("saves")
def test_what_does_not_fit_is_left_out_with_the_reason(pipe):
    groups = group_by_setting(find_sites(pipe))
    refused = find_refusals(pipe, groups, {"ToMe": RECIPES["tome"], "ours": SETTINGS["1/4 of the keys"]})
    assert list(refused) == list(groups)
    for reasons in refused.values():
        assert list(reasons) == ["ToMe"] and "cannot merge in scope='progressive'" in reasons["ToMe"]
    assert sessions(pipe) == []
    first = next(iter(groups))
    given = {first: {"1/4 of the keys": "a reason"}}
    assert {one.candidate for one in effects(pipe, ("1/4 of the keys", "1/8 of the keys"), refusals=given)} == {
        "1/8 of the keys"
    }


def test_takes_are_every_call_with_every_seed(pipe):
    calls = [CALL, CALL | {"classes": ["temple"]}]
    takes = Takes(pipe, calls, [3, 5])
    wanted = [pipe(**call, generator=torch.Generator().manual_seed(seed)) for call in calls for seed in (3, 5)]
    assert all(torch.equal(one.pictures, picture) for one, picture in zip(takes.unmerged, wanted, strict=True))
    assert takes.first_of_calls == [0, 2]
    assert takes.error(takes.unmerged) == 0
    assert seconds_of(takes.unmerged[0]) == takes.unmerged[0].seconds


def test_the_first_picture_is_drawn_once_more_before_it_counts(pipe):
    seeds: list[int] = []

    def noted(pipe: Any, generator: torch.Generator) -> Tensor:
        seeds.append(generator.initial_seed())
        return torch.zeros(1, 3, 16, 16)

    assert len(Takes(pipe, [noted], [3, 5])) == 2 and seeds == [3, 3, 5]


def test_pictures_of_another_size_are_no_error_but_a_mistake(pipe):
    takes = Takes(pipe, [lambda pipe, generator: draw(pipe, 0)[:, :, : 12 if sessions(pipe) else 32]], [0])
    with pytest.raises(ValueError, match=r"drew \(1, 3, 12, 32\), unmerged \(1, 3, 32, 32\); expected one size"):
        takes.race(RECIPES["balanced"])
