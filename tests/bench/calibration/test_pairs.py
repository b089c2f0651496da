"""How pairs change: the figures of layers against plans that are recorded by hand."""

from typing import Any

import pytest
import torch

from catome_adapters import attach, find_sites, sessions
from catome_adapters.recipes.named import EVERY_STEP
from catome_bench.calibration.candidates import half_matched
from catome_bench.calibration.pairs import (
    Layer,
    average,
    distances,
    mean_distance,
    neighbors,
    partner_of,
    record_layers,
)
from catome_bench.plots import jaccard_curves, similarity_curves
from catome_core import AdaptiveMerge, MergePlan, TokenGrid, jaccard_distance
from zoo.class_pipelines import tiny_shipped
from zoo.pipeline_parts import quiet
from zoo.transformer_pipelines import PIPELINES


def plans(count: int) -> list[MergePlan]:
    policy, generator = AdaptiveMerge(threshold=0.2), torch.Generator().manual_seed(0)
    return [policy(torch.randn(2, 24, 3, generator=generator), TokenGrid((4, 6))) for _ in range(count)]


def test_distances_are_jaccard_distances():
    every = plans(4)
    found = distances(torch.stack([partner_of(plan) for plan in every]))
    wanted = [[jaccard_distance(one, other).mean().item() for other in every] for one in every]
    assert found.tolist() == [pytest.approx(row) for row in wanted]


def draw(pipe: Any, steps: int = 4) -> Any:
    generator = torch.Generator().manual_seed(0)
    return pipe(["cat"], size=16, num_inference_steps=steps, generator=generator)


def test_a_layer_has_the_pairs_and_similarities_of_every_step():
    pipe = quiet(tiny_shipped())
    layers = record_layers(pipe, find_sites(pipe), lambda: draw(pipe))
    assert sessions(pipe) == [] and not pipe.unet._forward_hooks
    history: list[dict[str, MergePlan]] = []
    with attach(pipe, half_matched("keys", EVERY_STEP), sites=find_sites(pipe)) as session:
        handle = pipe.unet.register_forward_hook(lambda *_: history.append(session.plans()))
        draw(pipe)
        handle.remove()
        similarity = similarity_curves(session.summary())
    assert len(layers) == len(find_sites(pipe)) and len(history) == 4
    for name, distances_of_layer in jaccard_curves(history).items():
        layer = layers[name]
        assert layer.steps == (0, 1, 2, 3)
        assert neighbors(layer) == pytest.approx(distances_of_layer)
        assert max(distances_of_layer) > 0
        assert [(step, *row) for step, row in zip(layer.steps, layer.similarity.tolist(), strict=True)] == [
            pytest.approx(row) for row in similarity[name]
        ]


@pytest.mark.parametrize("name", ["Flux", "Wan 2.2"])
def test_calls_and_networks_have_the_steps_in_which_they_ran(name):
    case = PIPELINES[name]
    pipe = case.build()
    layers = record_layers(pipe, find_sites(pipe), lambda: case.run(pipe, steps=4))
    assert len(layers) == len(find_sites(pipe)) * len(case.contexts)
    ran = {
        network: {layer.steps for one, layer in layers.items() if one.startswith(network)} for network in networks(pipe)
    }
    assert all(len(steps) == 1 for steps in ran.values())
    assert sorted(step for (steps,) in ran.values() for step in steps) == [0, 1, 2, 3]
    assert mean_distance(layers).shape == (4, 4)


def networks(pipe: Any) -> list[str]:
    return ["transformer.", "transformer_2."] if getattr(pipe, "transformer_2", None) else [""]


def layer(steps: tuple[int, ...], value: float) -> Layer:
    return Layer(steps, value * (1 - torch.eye(len(steps))), torch.full((len(steps), 5), value))


def test_runs_and_layers_are_averaged_and_a_layer_that_did_not_run_has_no_distance():
    mean = average(
        [{"a": layer((0, 1), 0.25), "b": layer((1, 2), 0.5)}, {"a": layer((0, 1), 0.75), "b": layer((1, 2), 0.5)}]
    )
    assert neighbors(mean["a"]) == [0.5] and mean["a"].similarity.unique().tolist() == [0.5]
    assert mean_distance(mean).tolist() == [[0, 0.25, 0], [0.25, 0, 0.25], [0, 0.25, 0]]


def test_runs_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"the calls make \[2, 3\] steps"):
        average([{"a": layer((0, 1), 0.5)}, {"a": layer((0, 1, 2), 0.5)}])


def test_a_layer_travels_as_json():
    one = layer((0, 2), 0.123456)
    back = Layer.from_json(one.to_json())
    assert back.steps == one.steps
    assert torch.allclose(back.distance, one.distance, atol=1e-4)
    assert torch.allclose(back.similarity, one.similarity, atol=1e-4)
