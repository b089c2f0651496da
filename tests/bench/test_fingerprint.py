"""What tells one call from another, and one pipeline from another."""

from functools import partial

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from torch import nn

from catome_bench.comparison.calls import fingerprint
from catome_bench.comparison.identity import identify
from changes import add_lora
from zoo.class_pipelines import tiny_shipped


def call_with(steps, image=None):
    def draw(pipe, generator):
        return pipe(["cat"], num_inference_steps=steps, image=image, generator=generator)

    return draw


PROMPT, CALLED = "a cat", [0]


def call_of_the_module(pipe, generator):
    return pipe(PROMPT, callback=lambda *_: CALLED.append(called_again(0)))


def called_again(times):
    return called_again(times - 1) if times else 0


class Drawing:
    def __init__(self, prompt):
        self.prompt = prompt

    def draw(self, pipe, generator):
        return pipe(self.prompt, generator=generator)


def tensor(value, dtype=torch.float32):
    return torch.full((2, 2), value, dtype=dtype)


def picture(value):
    return Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": "a cat"}, {"prompt": "a dog"}),
        ({"prompt": "a cat"}, {"negative_prompt": "a cat"}),
        ({"steps": 4}, {"steps": 4.0}),
        ({"sizes": [1, 2]}, {"sizes": [[1], 2]}),
        ({"image": tensor(0.0)}, {"image": tensor(1.0)}),
        ({"image": tensor(0)}, {"image": tensor(0, torch.int64)}),
        ({"image": tensor(0.0).view(4)}, {"image": tensor(0.0)}),
        ({"image": picture(0)}, {"image": picture(1)}),
        ({"image": np.zeros(2)}, {"image": np.ones(2)}),
        ({"image": np.zeros(2)}, {"image": np.zeros(2, np.float32)}),
        ({"scale": np.float32(3)}, {"scale": np.float32(9)}),
        (call_with(4), call_with(50)),
        (partial(call_with(4), strength=0.5), partial(call_with(4), strength=0.6)),
        (Drawing("a cat").draw, Drawing("a dog").draw),
        (lambda pipe, generator: pipe(generator in {4, 5}), lambda pipe, generator: pipe(generator in {4, 6})),
        (call_with(4, tensor(0.0)), call_with(4, tensor(1.0))),
        (lambda pipe, generator: pipe(steps=4), lambda pipe, generator: pipe(steps=50)),
        (lambda pipe, generator: pipe.first(generator), lambda pipe, generator: pipe.second(generator)),
        (lambda pipe, generator: lambda step: step + 1, lambda pipe, generator: lambda step: step + 2),
    ],
)
def test_other_calls_have_another_fingerprint(one, other):
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize(("name", "value"), [("PROMPT", "a dog"), ("called_again", lambda times: times)])
def test_a_function_that_reads_something_else_in_its_module_is_another(name, value, monkeypatch):
    first = fingerprint(call_of_the_module)
    assert fingerprint(call_of_the_module) == first
    monkeypatch.setitem(globals(), name, value)
    assert fingerprint(call_of_the_module) != first


def test_equal_calls_have_one():
    assert fingerprint(call_with(4, tensor(0.0))) == fingerprint(call_with(4, tensor(0.0)))
    same = ({"image": picture(3), "embeds": tensor(1.0, torch.bfloat16)} for _ in range(2))
    assert len(set(map(fingerprint, same))) == 1


def test_a_pipeline_is_another_with_other_weights_anywhere_or_another_scheduler():
    pipe = tiny_shipped("dit")
    first = identify(pipe)
    assert identify(pipe) == first
    pipe.text_encoder = nn.Linear(2, 2)
    second = identify(pipe)
    with torch.no_grad():
        pipe.text_encoder.weight += 1
    assert len({one["weights"] for one in (first, second, identify(pipe))}) == 3
    pipe.scheduler.register_to_config(clip_sample=not pipe.scheduler.config.clip_sample)
    assert identify(pipe)["scheduler"] != first["scheduler"]


def test_a_pipeline_is_another_with_its_lora_weaker_or_off():
    pipe = tiny_shipped("dit")
    add_lora(pipe.transformer)
    layers = [module for module in pipe.transformer.modules() if isinstance(module, BaseTunerLayer)]
    found = [identify(pipe)["weights"]]
    for change in (lambda layer: layer.scale_layer(0.25), lambda layer: layer.enable_adapters(False)):
        for layer in layers:
            change(layer)
        found.append(identify(pipe)["weights"])
    assert len(set(found)) == 3
