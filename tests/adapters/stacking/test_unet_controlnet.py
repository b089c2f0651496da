"""A ControlNet beside a UNet, with sites of its own."""

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline

from catome_adapters import attach, find_sites
from probes import CountingMerge, anatomy
from running import unet_recipe
from zoo.noise import noise
from zoo.pipeline_parts import ddim
from zoo.unet_pipelines import picture, sd_pipeline
from zoo.unets import controlnet, sd_unet


@pytest.fixture
def guided():
    """A text-to-image pipeline with a ControlNet."""
    unet = sd_unet()
    parts = {"unet": unet, "controlnet": controlnet(unet), "scheduler": ddim()}
    pipe = sd_pipeline(StableDiffusionControlNetPipeline, **parts)
    return pipe, {"image": noise(1, 3, 32, 32).clamp(0, 1)}


def test_sites_of_network_and_controlnet_share_a_session(guided):
    pipe, image = guided
    parts = pipe.unet, pipe.controlnet
    before, unpatched = [anatomy(part) for part in parts], picture(pipe, **image)
    recipe = unet_recipe(policy=CountingMerge)
    pictures = []
    for sites in (None, find_sites(pipe.unet) + find_sites(pipe.controlnet)):
        with attach(pipe, recipe, sites=sites) as session:
            pictures.append(picture(pipe, **image))
            assert torch.equal(picture(pipe, **image), pictures[-1])
            assert session.summary().checkpoints == (0, 2)
    assert not torch.equal(pictures[0], unpatched) and not torch.equal(*pictures)
    assert [anatomy(part) for part in parts] == before
    assert torch.equal(picture(pipe, **image), unpatched)


def test_sites_of_network_and_controlnet_have_names_of_their_own(guided):
    pipe, image = guided
    with attach(pipe, unet_recipe(), sites=find_sites(pipe.unet) + find_sites(pipe.controlnet)) as session:
        picture(pipe, **image)
        assert len({row.site for row in session.summary().rows}) == len(session.sites)


def test_run_with_controlnet_after_an_interrupted_one_and_a_new_scheduler(guided):
    """The ControlNet is called before the network: what it kept of the interrupted run must be gone by then."""
    pipe, image = guided
    sites = find_sites(pipe.unet) + find_sites(pipe.controlnet)
    with attach(pipe, unet_recipe(), sites=sites):
        expected = picture(pipe, **image)
    with attach(pipe, unet_recipe(), sites=sites):
        with pytest.raises(KeyboardInterrupt):
            picture(pipe, image=1 - image["image"], callback_on_step_end=interrupt)
        pipe.scheduler = ddim()
        assert torch.equal(picture(pipe, **image), expected)


def interrupt(*_):
    raise KeyboardInterrupt
