"""Every kind of diffusers pipeline around a transformer gives the session its steps and its calls."""

import inspect
from itertools import chain, repeat
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from catome_adapters import MergeRecipe, attach
from catome_core import MergeWarning
from probes import CountingMerge, anatomy
from running import TOTAL, make_recipe
from tiers import tiered
from zoo.transformer_pipelines import PIPELINES, Pipeline


@pytest.fixture(params=tiered(PIPELINES, [*PIPELINES][::4]))
def name(request) -> str:
    return request.param


@pytest.fixture
def subject(name) -> Pipeline:
    return PIPELINES[name]


@pytest.fixture
def pipe(subject) -> Any:
    return subject.build()


def networks(pipe: Any) -> list[nn.Module]:
    return [net for net in (pipe.transformer, getattr(pipe, "transformer_2", None)) if net is not None]


def watched(pipe: Any, **options: Any) -> MergeRecipe:
    """A recipe that counts, in all networks of the pipeline."""
    recipe = make_recipe("keys", CountingMerge, **options)
    for network in networks(pipe):
        recipe.policy.watch(network)
    return recipe


def first_step(name: str) -> int:
    return TOTAL // 2 if "img2img" in name else 0


def second_network(pipe: Any) -> int:
    """The step at which another network takes over, which recomputes."""
    if len(networks(pipe)) == 1:
        return 0
    limit = pipe.config.boundary_ratio * pipe.scheduler.config.num_train_timesteps
    return sum(timestep.item() >= limit for timestep in pipe.scheduler.timesteps)


def test_checkpoints_are_the_steps_of_the_schedule(name, subject, pipe):
    recipe = watched(pipe)
    with attach(pipe, recipe) as session:
        subject.run(pipe)
        start = first_step(name)
        steps = sorted({start, 0, 3, second_network(pipe)} & set(range(start, TOTAL)))
        assert session.summary().checkpoints == tuple(steps)
        assert {row.step for row in session.summary().rows} == set(range(start, TOTAL))
        assert session.summary().merged_fraction > 0.2
    calls = chain.from_iterable(repeat(step, subject.calls) for step in range(start, TOTAL))
    assert recipe.policy.recomputed == [call for call, step in enumerate(calls) if step in steps]


def test_every_call_of_a_step_has_its_own_row(subject, pipe):
    with attach(pipe, make_recipe("keys")) as session:
        subject.run(pipe)
        rows = session.summary().rows
    labels = {f" ({context})" if context else "" for context in subject.contexts}
    assert {row.site for row in rows} == {site.name + label for site in session.sites for label in labels}


def test_next_image_is_the_first_one_again(subject, pipe):
    with attach(pipe, make_recipe("keys")):
        first = subject.run(pipe)
        assert first.isfinite().all()
        subject.run(pipe, seed=1, steps=4)
        assert torch.equal(subject.run(pipe), first)


def test_detach_restores_pipeline_and_networks(subject, pipe):
    unpatched = subject.run(pipe)
    before, members = [anatomy(network) for network in networks(pipe)], set(vars(pipe.scheduler))
    signatures = inspect.signature(pipe.scheduler.step), inspect.signature(pipe.scheduler.set_timesteps)
    with attach(pipe, make_recipe("keys")):
        assert (inspect.signature(pipe.scheduler.step), inspect.signature(pipe.scheduler.set_timesteps)) == signatures
        assert not torch.equal(subject.run(pipe), unpatched)
    assert [anatomy(network) for network in networks(pipe)] == before
    assert set(vars(pipe.scheduler)) == members
    assert torch.equal(subject.run(pipe), unpatched)


def test_interrupted_run_leaves_the_next_one_alone(subject, pipe):
    if not hasattr(type(pipe), "interrupt"):
        pytest.skip("it cannot be interrupted")
    with attach(pipe, make_recipe("keys")) as session:
        expected = subject.run(pipe)
        subject.run(pipe, callback_on_step_end=interrupt)
        assert max(row.step for row in session.summary().rows) < TOTAL - 1
        assert torch.equal(subject.run(pipe), expected)


def interrupt(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    pipe._interrupt = True
    return tensors


@pytest.mark.parametrize("name", ["Flux", "Wan", "PixArt"])
def test_several_images_of_a_prompt(name, subject, pipe):
    """The other pipelines multiply what they encode themselves alone."""
    check_batch_of_two(subject, pipe, {MANY.get(name, "num_images_per_prompt"): 2})


MANY = {"Wan": "num_videos_per_prompt"}


def test_batch_of_two(subject, pipe):
    options = {key: value for key, value in subject.options.items() if "prompt" in key and value is not None}
    doubled = {key: 2 * value if isinstance(value, list) else torch.cat([value] * 2) for key, value in options.items()}
    check_batch_of_two(subject, pipe, doubled or {"class_labels": [1, 2]})


def check_batch_of_two(subject: Pipeline, pipe: Any, options: dict[str, Any]) -> None:
    with attach(pipe, make_recipe("keys")) as session:
        one = subject.run(pipe)
        two = subject.run(pipe, **options)
        rows = session.summary().rows
        assert len(two) == 2 * len(one) and two.isfinite().all()
        assert {row.checkpoint for row in rows if row.step == rows[0].step} == {True}
        assert torch.equal(subject.run(pipe, **options), two)
        assert torch.equal(subject.run(pipe), one)


@pytest.mark.parametrize("name", ["SD3 img2img", "Flux img2img"])
def test_part_of_a_run_is_that_of_the_schedule_in_image_to_image(name, subject, pipe):
    """Half of the noise: only the second half of the schedule runs."""
    unpatched = subject.run(pipe)
    over = pytest.warns(MergeWarning, match=r"nothing merged in this run of steps \d to \d, .* during=\(0\.0, 0\.5\)")
    with attach(pipe, make_recipe("keys", during=(0.0, 0.5))), over:
        assert torch.equal(subject.run(pipe), unpatched)
    with attach(pipe, make_recipe("keys")):
        merged = subject.run(pipe)
    with attach(pipe, make_recipe("keys", during=(0.5, 1.0))) as session:
        assert torch.equal(subject.run(pipe), merged)
        assert min(row.merged_fraction for row in session.summary().rows) > 0.2


@pytest.mark.parametrize("name", ["Wan 2.2"])
def test_both_networks_have_sites_and_the_second_begins_in_the_middle(name, subject, pipe):
    with attach(pipe, make_recipe("keys")) as session:
        subject.run(pipe)
        change = second_network(pipe)
        rows = session.summary().rows
        assert 0 < change < TOTAL and change not in (0, 3)
        assert change in session.summary().checkpoints
    steps = {
        part: {row.step for row in rows if row.site.startswith(f"{part}.")} for part in ("transformer", "transformer_2")
    }
    assert steps == {"transformer": set(range(change)), "transformer_2": set(range(change, TOTAL))}


@pytest.mark.parametrize("name", ["Wan"])
def test_network_alone_takes_its_steps_from_the_contexts_fields(name, subject, pipe):
    with attach(pipe, make_recipe("keys")):
        expected = subject.run(pipe)
    recipe = watched(pipe)
    with attach(pipe.transformer, recipe):
        assert torch.equal(subject.run(pipe), expected)
        assert torch.equal(subject.run(pipe), expected)
    assert recipe.policy.recomputed == [0, 1, 6, 7, 12, 13, 18, 19]


@pytest.mark.parametrize("name", ["SD3"])
def test_guidance_that_skips_layers_keeps_both_calls_pairs(name, subject, pipe):
    """From the second step to the fourth it calls the network once more, for half of the batch."""
    recipe = watched(pipe)
    skipping = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.01, "skip_layer_guidance_stop": 0.7}
    with attach(pipe, recipe):
        subject.run(pipe, **skipping)
    assert recipe.policy.recomputed == [0, 2, 5, 6]
