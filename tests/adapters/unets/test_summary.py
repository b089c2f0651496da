"""What a session reports of the steps it has run."""

import pytest
import torch

from catome_adapters import MergeRecipe, attach
from catome_core import count_overflow, match_tokens, summarize
from running import ONCE, TWICE, run, square_grid, unet_recipe
from zoo.noise import noise
from zoo.unet_pipelines import class_pipeline, draw
from zoo.unets import SD, predict, sd_unet


@pytest.mark.parametrize("capacity", [None, 0, 0.125, 0.25])
@pytest.mark.parametrize("spare", ["pad", "fill"])
def test_summary_agrees_with_the_plans(capacity, spare):
    unet = sd_unet()
    recipe = unet_recipe(capacity=capacity, spare=spare)
    with attach(unet, recipe) as session, torch.no_grad():
        plans = []
        for step in range(4):
            session.begin_step(step, 4)
            predict(unet, noise(2, 4, 16, 16, seed=step))
            plans.append(session.plans())
        rows = session.summary().rows
    assert len(rows) == 4 * len(session.sites)
    for row in rows:
        figures = summarize(plans[row.step][row.site])
        assert (row.tokens, row.slots) == (figures.tokens, figures.slots)
        assert row.merged_fraction == pytest.approx(float(figures.merged_fraction.mean()), abs=1e-6)
        assert spare == "pad" or int(figures.real.min()) == row.slots


def test_summary_counts_every_overflow():
    unet, inputs = sd_unet(), {}
    with attach(unet, unet_recipe(threshold=0.9, capacity=0.125, schedule=ONCE)) as session, torch.no_grad():
        for site in session.sites:
            site.block.register_forward_pre_hook(lambda _, args, name=site.name: inputs.update({name: args[0]}))
        session.begin_step(0, 10)
        predict(unet, noise(3, 4, 16, 16))
        session.begin_step(1, 10)
        summary = session.summary()
    for row in summary.rows:
        grid = square_grid(row.tokens)
        match = match_tokens(inputs[row.site], grid)
        assert row.overflow == int(count_overflow(match, grid, threshold=0.9, capacity=0.125).sum())
    assert summary.overflow == sum(row.overflow for row in summary.rows) > 0


def test_summary_of_a_bare_network_has_the_last_step_too():
    unet = sd_unet()
    with attach(unet, MergeRecipe(schedule=TWICE)) as session:
        run(SD, unet, session, total=4)
    assert {row.step for row in session.summary().rows} == {0, 1, 2, 3}


def test_summary_before_any_run_is_empty():
    with attach(class_pipeline()) as session:
        summary = session.summary()
    assert (summary.rows, summary.checkpoints, summary.merged_fraction, summary.overflow) == ((), (), 0, 0)
    assert str(summary) == "no step has been run yet"


def test_summary_is_a_line_a_site():
    pipe = class_pipeline()
    with attach(pipe, MergeRecipe(schedule=TWICE)) as session:
        draw(pipe, steps=4)
        lines = str(session.summary()).splitlines()
        assert len(lines) == 1 + len(session.sites)
        for site, line in zip(sorted(site.name for site in session.sites), lines[1:], strict=True):
            assert line.split()[:4] == [site, "4", "2", "64"]
