"""A warning of the library has a category of its own, and points at the caller's line."""

from linecache import getline

import pytest
import torch

from catome_adapters import MergeSite, attach
from catome_adapters.architectures.unet import LAYOUT
from catome_adapters.prediction import rates
from catome_core import MergeWarning
from running import ONCE, unet_recipe
from zoo.noise import noise
from zoo.unets import conditions, sd_unet


def attach_at_a_loss(unet, monkeypatch):
    monkeypatch.setitem(rates.DEVICE_RATES, "cpu", rates.DeviceRates(1e12, 1e12, 1e15, 1.0))
    attach(unet)


@torch.no_grad()
def call_without_steps(unet, monkeypatch):
    attach(unet)
    unet(noise(1, 4, 16, 16), 500, **conditions(unet, 1))


@torch.no_grad()
def leave_a_block_out(unet, monkeypatch):
    block = sd_unet().down_blocks[0].attentions[0].transformer_blocks[0]
    site = MergeSite("stranger", block, block.attn1, unet.down_blocks[0].attentions[0], layout=LAYOUT)
    session = attach(unet, unet_recipe(schedule=ONCE), sites=[site])
    for step in range(2):
        session.begin_step(step, 4)
        unet(noise(1, 4, 16, 16), 500, **conditions(unet, 1))


@pytest.mark.parametrize(
    ("cause", "line"),
    [
        (attach_at_a_loss, "attach(unet)"),
        (call_without_steps, "unet(noise(1, 4, 16, 16), 500, **conditions(unet, 1))"),
        (leave_a_block_out, "session.begin_step(step, 4)"),
    ],
)
def test_a_warning_points_at_the_callers_line(cause, line, monkeypatch):
    with pytest.warns(MergeWarning) as caught:
        cause(sd_unet(), monkeypatch)
    assert [(one.filename, getline(one.filename, one.lineno).strip()) for one in caught] == [(__file__, line)]
