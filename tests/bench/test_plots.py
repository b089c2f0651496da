"""Plots of what a session has merged: axes in, axes out, and what they show is what the plans say."""

from itertools import count
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from catome_adapters import MergeRecipe, attach
from catome_bench.models.artist import Artist
from catome_bench.plots import jaccard_curves, plot_jaccard, plot_merge_map, plot_similarity, similarity_curves
from catome_bench.views.figures import merged_fractions
from catome_bench.views.files import save_maps, save_pairs
from catome_bench.views.scatter import draw_front
from catome_core import AdaptiveMerge, TokenGrid, jaccard_distance, plan_merge
from catome_core.matching import match_tokens
from zoo.class_pipelines import tiny_shipped
from zoo.noise import noise

matplotlib.use("agg")
GRIDS = [TokenGrid((4, 6)), TokenGrid((5, 3), prefix=2), TokenGrid((3, 4, 2))]


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def plan_of(grid, seed=0):
    tokens = noise(2, grid.tokens, 3, seed=seed)
    return plan_merge(match_tokens(tokens, grid), grid, threshold=0.5)


def shares(plan, token):
    """Whether another token of the last sample has the same slot."""
    slots = plan.slot[-1].tolist()
    return slots.count(slots[token]) > 1


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_token_is_dark_if_another_one_shares_its_slot(grid):
    plan = plan_of(grid)
    *_, height, width = grid.shape
    (image,) = plot_merge_map(plan, grid).images
    shade = np.asarray(image.get_array())[..., 3] > 0
    assert shade.shape == (height, grid.area // height)
    assert 0 < shade.sum() < shade.size
    for place in range(grid.area):
        frame, inside = divmod(place, height * width)
        row, column = divmod(inside, width)
        assert shade[row, frame * width + column] == shares(plan, grid.prefix + place)


def test_axes_that_are_given_are_drawn_on_and_returned_with_the_picture_below():
    grid, axes = TokenGrid((4, 6)), plt.subplots()[1]
    assert plot_merge_map(plan_of(grid), grid, torch.rand(3, 40, 60), axes) is axes
    assert [image.get_extent() for image in axes.images] == [[0, 6, 4, 0]] * 2
    assert plot_jaccard({}, axes) is plot_similarity({}, axes) is axes
    assert plt.get_fignums() == [1]


def test_a_plan_of_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"the plan is for 24 tokens; .*\(4, 4\).* has 16: give the grid"):
        plot_merge_map(plan_of(TokenGrid((4, 6))), TokenGrid((4, 4)))


def test_a_layer_has_a_distance_for_every_two_steps_that_it_ran_in():
    grid = TokenGrid((4, 6))
    plans = [plan_of(grid, seed) for seed in range(3)]
    history = [{"one": plans[0], "other": plans[0]}, {"one": plans[1]}, {"one": plans[2]}]
    curves = jaccard_curves(history)
    wanted = [jaccard_distance(plans[step], plans[step + 1]).mean().item() for step in range(2)]
    assert curves == {"one": pytest.approx(wanted)}
    assert plot_jaccard(history).lines[0].get_ydata() == pytest.approx(wanted)


def test_a_legend_names_the_layers_unless_there_are_many():
    points = [0.5, 0.5]
    assert plot_jaccard({f"layer {number}": points for number in range(12)}).get_legend()
    assert not plot_jaccard({f"layer {number}": points for number in range(13)}).get_legend()


def a_plot_of_distances() -> Figure:
    return plot_jaccard({"layer": [0.5, 0.25]}).figure


def shares_of_merged_tokens() -> Figure:
    row = SimpleNamespace(site="layer", step=0, checkpoint=True, mergeable_fraction=0.5, merged_fraction=0.25)
    return merged_fractions(SimpleNamespace(name="cat", summary=SimpleNamespace(rows=[row], merged_fraction=0.25)))


def a_front() -> Figure:
    spread = {"median": 1.5, "worst": 1.5, "interval": [1.5, 1.5]}
    return draw_front([{"subject": "fast", "family": "ours", "speedup": spread, "psnr": spread}])


@pytest.mark.parametrize("draw", [a_plot_of_distances, shares_of_merged_tokens, a_front])
def test_a_legend_that_takes_long_to_place_is_no_warning(draw, monkeypatch):
    monkeypatch.setattr(matplotlib.legend, "time", SimpleNamespace(perf_counter=count(step=2).__next__))
    draw().draw_without_rendering()


def test_what_a_run_recorded_is_what_is_drawn_and_saved(tmp_path):
    artist = Artist(tiny_shipped(), 3, 16)
    recipe = MergeRecipe(AdaptiveMerge(threshold=0.2), levels="all")
    recording = artist.record("cat", 0, recipe)
    curves = similarity_curves(recording.summary)
    assert all([int(step) for step, *_ in points] == [0, 1, 2] for points in curves.values())
    axes = plot_similarity(recording.summary)
    medians = [[row.similarity[2] for row in recording.summary.rows if row.site == site] for site in curves]
    assert [line.get_ydata().tolist() for line in axes.lines] == medians
    files = save_maps(tmp_path, recording.history)
    assert list(files) == list(recording.history[0]) == list(curves)
    site, name = next(iter(files.items()))
    strip = np.asarray(Image.open(tmp_path / name)).reshape(3, -1)
    for plans, shade in zip(recording.history, strip, strict=True):
        assert [value < 255 for value in shade] == [shares(plans[site], token) for token in range(len(shade))]


def test_checkpoints_alone_have_similarities_of_their_own():
    pipe = tiny_shipped()
    recipe = MergeRecipe(AdaptiveMerge(threshold=0.2), levels="all")
    with attach(pipe, recipe) as session:
        Artist(pipe, 10, 16).draw("cat", 0, "")
        summary = session.summary()
    assert 0 < len(summary.checkpoints) < 10
    assert {tuple(int(point[0]) for point in points) for points in similarity_curves(summary).values()} == {
        summary.checkpoints
    }


def test_a_pair_is_saved_as_it_was_drawn(tmp_path):
    base, merged = torch.rand(3, 4, 6), torch.rand(3, 4, 6) * 3 - 1
    pair = SimpleNamespace(name="<cat>", baseline=SimpleNamespace(picture=base), merged=SimpleNamespace(picture=merged))
    (files,) = save_pairs(tmp_path, [pair])
    assert files["name"] == "<cat>"
    for side, picture in (("baseline", base), ("merged", merged)):
        stored = torch.from_numpy(np.array(Image.open(tmp_path / files[side])))
        assert torch.equal(stored, (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0))
