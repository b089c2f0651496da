"""The rows of the paper's tables, the prompts that have names, and the parts of several processes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catome_adapters import RECIPES
from catome_bench.races.variants import REFERENCE
from catome_bench.sweeping.prompts import PRESETS, check_preset, digest_of, fill, imagenet_classes
from catome_bench.sweeping.tables import configurations, paper, recipes_of, rows_of, thresholds
from catome_bench.sweeping.takes import Shard, all_takes
from catome_core import PAPER_SCHEDULES

PAPER = RECIPES["paper"]


@pytest.mark.parametrize(("steps", "called"), [(1, 1), (10, 10), (50, 51), (60, 119)])
def test_the_first_table_has_the_thresholds_of_the_paper_and_matches_in_every_step(steps, called):
    recipes = thresholds(1).values()
    assert [recipe.policy.threshold for recipe in recipes] == [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    for recipe in recipes:
        assert all(recipe.schedule.is_checkpoint(step, called) for step in range(called))
        assert replace(recipe, policy=PAPER.policy, schedule=PAPER.schedule) == paper(1)


def test_the_third_table_has_the_checkpoints_of_the_second_at_the_threshold_of_the_paper():
    assert {name: recipe.schedule for name, recipe in configurations(1).items()} == dict(PAPER_SCHEDULES)
    assert {recipe.policy.threshold for recipe in configurations(1).values()} == {0.7}
    assert configurations(2)["config_3"] == replace(PAPER, levels=(2,))


@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_every_table_begins_with_the_unmerged_row_and_a_name_means_one_thing(steps):
    tables = rows_of(("comparison", "configurations", "thresholds", "caching"), steps, 1)
    assert list(tables) == ["thresholds", "caching", "comparison"]
    every = [pair for rows in tables.values() for pair in rows.items()]
    for name, row in every:
        assert [(one.family, one.share) for other, one in every if other == name] == [(row.family, row.share)] * len(
            [other for other, _ in every if other == name]
        )
        assert (row.family == "ours") == (name in recipes_of(1))
        assert name == name.strip() and not set(name) & set('/\\:*?"<>| ')
    assert all(next(iter(rows)) == REFERENCE for rows in tables.values())
    fewer = [row.steps(steps) for _, row in every if row.family == "fewer steps"]
    assert all(0 < one < steps for one in fewer) and fewer == sorted(set(fewer), reverse=True)


@given(prompts=st.integers(1, 7), seeds=st.integers(1, 4), world=st.integers(1, 5))
def test_processes_share_the_takes_and_no_two_takes_their_noise(prompts, seeds, world):
    takes = all_takes(prompts, seeds)
    assert len({take.seed for take in takes}) == len({take.file for take in takes}) == len(takes) == prompts * seeds
    parts = [Shard(rank, world).of(takes) for rank in range(world)]
    assert sorted(take for part in parts for take in part) == takes
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("rank", "world"), [("1", "1"), ("-1", "2"), ("a", "2"), ("0", "0"), ("0", "")])
def test_odd_numbers_of_processes_are_refused(rank, world):
    with pytest.raises(ValueError, match="as torchrun sets them: unset both"):
        Shard.from_environment({"RANK": rank, "WORLD_SIZE": world})


def test_imagenet_has_a_prompt_for_each_of_its_classes():
    pytest.importorskip("timm")
    prompts = fill("A high-quality photograph of a {class}", imagenet_classes())
    check_preset("imagenet-2k", prompts)
    assert prompts[0] == "A high-quality photograph of a tench" and prompts[-1].endswith(" a toilet tissue")
    with pytest.raises(ValueError, match="imagenet-2k has 1000 prompts, and these are 999: pass the whole list"):
        check_preset("imagenet-2k", prompts[1:])
    with pytest.raises(ValueError, match=f"the SHA-256 of these prompts is {digest_of(prompts[::-1])}, and that of"):
        check_preset("imagenet-2k", prompts[::-1])


@pytest.mark.parametrize(("name", "count"), [("drawbench", 200), ("parti", 1632), ("coco5k", 5000)])
def test_a_preset_without_a_known_digest_is_known_by_the_number_of_its_prompts(name, count):
    assert PRESETS[name].digest is None
    check_preset(name, ["a cat"] * count)
    with pytest.raises(ValueError, match=f"{name} has {count} prompts, and these are {count + 1}"):
        check_preset(name, ["a cat"] * (count + 1))


def test_a_template_without_a_place_for_the_class_is_refused():
    assert fill("a {class}, {style}", ["{cat}"]) == ["a {cat}, {style}"]
    with pytest.raises(ValueError, match=r"'a photograph' has no {class}"):
        fill("a photograph", ["cat"])
