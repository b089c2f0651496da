"""What a session reports of the steps it has run."""

import json

import pytest
import torch

from catome_adapters import MergeRecipe, SiteStep, attach
from catome_core import count_overflow, match_tokens, summarize
from running import ONCE, TWICE, run, square_grid, unet_recipe
from zoo.noise import noise
from zoo.unet_pipelines import class_pipeline, draw
from zoo.unets import SD, SDXL, predict, sd_unet, sdxl_unet


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


def test_summary_is_a_line_a_transformer_and_one_sentence():
    """Block 10 comes after block 2, as in the model, and all of one transformer are one line."""
    network = sdxl_unet(transformer_layers_per_block=(1, 11, 1))
    with attach(network, unet_recipe(capacity=None, schedule=TWICE, levels="all")) as session, torch.no_grad():
        for step in range(3):
            session.begin_step(step, 4)
            SDXL.predict(network, seed=step)
        summary = session.summary()
        text = str(summary)
    names = list(dict.fromkeys(row.site for row in summary.rows))
    assert names == [site.name for site in session.sites]
    first = next(line for line in text.splitlines() if line.startswith("down_blocks.1.attentions.0"))
    assert first.split()[1:6] == ["x", "11", "3", "2", "64"]
    assert sum(line.startswith("total") for line in text.splitlines()) == 1
    assert max(map(len, text.splitlines()[:-1])) <= 125
    sentence = text.splitlines()[-1]
    merged = (
        f"{summary.merged_fraction:.1%} of the tokens merged in 3 steps, 2 checkpoints, overflow {summary.overflow}"
    )
    assert sentence.startswith(merged)
    assert f"predicted {summary.speedup:.2f}x for the network, measured" in sentence and sentence.endswith(
        "s for 2 steps"
    )
    # Nobody has seen the third one end.
    assert session.summary().timed_steps == 2


def test_quartiles_of_the_similarity_are_those_of_the_scores():
    unet, inputs = sd_unet(), {}
    with attach(unet, unet_recipe(threshold=0.5, capacity=None, schedule=ONCE)) as session, torch.no_grad():
        for site in session.sites:
            site.block.register_forward_pre_hook(lambda _, args, name=site.name: inputs.update({name: args[0]}))
        session.begin_step(0, 10)
        predict(unet, noise(2, 4, 16, 16))
        rows = session.summary().rows
        for row in rows:
            scores = match_tokens(inputs[row.site], square_grid(row.tokens)).score
            expected = scores.quantile(torch.tensor([0, 0.25, 0.5, 0.75, 1]))
            assert row.similarity == pytest.approx(expected.tolist(), abs=1e-6)
        session.begin_step(1, 10)
        predict(unet, noise(2, 4, 16, 16, seed=1))
        assert [row.similarity for row in session.summary().rows[len(rows) :]] == [row.similarity for row in rows]


def test_summary_as_json_has_every_figure():
    pipe = class_pipeline()
    with attach(pipe, MergeRecipe(schedule=TWICE)) as session:
        draw(pipe, steps=4)
        summary, values = session.summary(), json.loads(session.summary().to_json())
        assert summary.memory == sum(
            part.nbytes for pairs in session._runs.each[0].attachment.pairs for part in pairs.cache.buffers()
        )
    assert [values[name] for name in ("steps", "checkpoints")] == [[0, 1, 2, 3], list(summary.checkpoints)]
    for name in ("merged_fraction", "overflow", "speedup", "seconds", "timed_steps", "memory"):
        assert values[name] == getattr(summary, name)
    assert [SiteStep(**row | {"similarity": tuple(row["similarity"])}) for row in values["rows"]] == list(summary.rows)
    assert 0 < summary.seconds < 60 and summary.timed_steps == 4
