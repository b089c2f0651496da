"""A warning of the library has a category of its own, and points at the caller's line."""

import warnings
from linecache import getline
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from catome_adapters import MergeSite, attach, find_sites
from catome_adapters.architectures.unet import LAYOUT
from catome_adapters.prediction import rates
from catome_core import MergeWarning
from running import ONCE, unet_recipe
from zoo.noise import noise
from zoo.pipeline_parts import ddim
from zoo.transformers import ARCHITECTURES
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


@pytest.mark.parametrize(
    ("change", "warns"),
    [
        (lambda unet: sd_unet(), True),
        (lambda unet: torch.compile(sd_unet()), True),
        (lambda unet: unet, False),
        (lambda unet: torch.compile(unet), False),
        (nn.Sequential, False),
        (lambda unet: None, False),
    ],
    ids=["another", "another, compiled", "itself", "compiled", "wrapped", "none"],
)
def test_network_that_replaces_an_attached_one_is_warned_of_where_a_run_begins(change, warns):
    pipe = SimpleNamespace(unet=sd_unet(), scheduler=ddim())
    with attach(pipe, unet_recipe()), warnings.catch_warnings(record=True, action="always") as caught:
        pipe.unet = change(pipe.unet)
        pipe.scheduler.set_timesteps(4)
    messages = [str(one.message) for one in caught if one.category is MergeWarning]
    assert len(messages) == warns
    assert all("the pipeline's unet is another" in one and "attach(pipeline" in one for one in messages)


def test_network_without_attached_blocks_may_be_replaced():
    """Wan 2.2 has two; and a bare network has no pipeline that could."""
    pipe = SimpleNamespace(unet=sd_unet(), transformer=ARCHITECTURES["DiT"].network(), scheduler=ddim())
    with attach(pipe, unet_recipe(), sites=find_sites(pipe.unet)), warnings.catch_warnings():
        warnings.simplefilter("error", MergeWarning)
        pipe.transformer = ARCHITECTURES["DiT"].network()
        pipe.scheduler.set_timesteps(4)
    with attach(pipe.unet, unet_recipe()) as session, warnings.catch_warnings():
        warnings.simplefilter("error", MergeWarning)
        session.begin_step(0, 4)
