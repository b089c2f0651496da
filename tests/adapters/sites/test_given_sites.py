"""Sites that the caller chooses."""

import pytest
import torch
from torch import nn

from catome_adapters import MergeRecipe, MergeSite, attach, find_sites
from catome_adapters.architectures.unet import LAYOUT
from catome_core import AdaptiveMerge
from probes import anatomy
from running import ONCE, run, unet_recipe
from zoo.noise import noise, seeded
from zoo.own_blocks import HEADS, WIDTH, Trunk
from zoo.own_models import ENCODER_LAYOUT
from zoo.unets import SD, predict, sd_unet


def test_sessions_may_share_a_network_but_no_site():
    """Settings for each module: every level by a recipe of its own."""
    unet = sd_unet()
    before = anatomy(unet)
    finest = attach(unet, MergeRecipe(AdaptiveMerge(), levels=(1,)))
    middle = attach(unet, MergeRecipe(AdaptiveMerge(0.5), scope="block", levels=(2,)))
    with pytest.raises(RuntimeError, match=r"call its detach\(\) first"):
        attach(unet, MergeRecipe(levels="all"))
    for session in (finest, middle):
        session.begin_step(0, 10)
    with torch.no_grad():
        predict(unet, noise(1, 4, 16, 16))
    for session in (finest, middle):
        session.begin_step(1, 10)
        assert {row.site for row in session.summary().rows} == {site.name for site in session.sites}
        assert session.summary().merged_fraction > 0
        session.detach()
    assert anatomy(unet) == before


def test_given_sites_are_exactly_the_attached_ones():
    unet = sd_unet()
    chosen = find_sites(unet)[1:3]
    with attach(unet, sites=chosen) as session:
        assert session.sites == tuple(chosen)


def test_same_site_twice_is_refused():
    unet = sd_unet()
    with pytest.raises((ValueError, RuntimeError), match=r"down_blocks\.0\.attentions\.0\.transformer_blocks\.0"):
        attach(unet, sites=find_sites(unet) + find_sites(unet))


@pytest.mark.parametrize(
    ("sites", "message"), [([], "sites is empty; expected MergeSites"), (["down_blocks.0"], r"'down_blocks\.0'")]
)
def test_sites_that_are_none_are_refused(sites, message):
    with pytest.raises((ValueError, TypeError), match=message):
        attach(sd_unet(), sites=sites)


@torch.no_grad()
def test_grid_is_that_of_the_first_argument_in_whatever_order_they_are_named():
    class Guided(Trunk):
        def forward(self, image, guide):
            return super().forward(image) * guide.mean()

    with seeded():
        model = Guided(lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True)).eval()
    sites = [MergeSite("block", model.stack[0], model.stack[0].self_attn, model, layout=ENCODER_LAYOUT)]
    with attach(model, MergeRecipe(), sites=sites) as session:
        session.begin_step(0, 10)
        model(guide=noise(1, 3, 4, 4), image=noise(1, 3, 8, 8))
        session.begin_step(1, 10)
        assert session.summary().rows[0].tokens == 64


def test_site_whose_block_the_model_never_calls_is_found_out():
    unet = sd_unet()
    stranger = sd_unet().down_blocks[0].attentions[0].transformer_blocks[0]
    host = unet.down_blocks[0].attentions[0]
    site = MergeSite("stranger", stranger, stranger.attn1, host, layout=LAYOUT)
    recipe = unet_recipe(capacity=None, schedule=ONCE)
    message = r"stranger is attached and its host was called, but its block never was"
    with attach(unet, recipe, sites=[*find_sites(unet), site]) as session, pytest.warns(UserWarning, match=message):
        run(SD, unet, session, steps=range(2), total=10)


def test_step_that_failed_before_its_blocks_is_no_reason_to_warn():
    unet = sd_unet()
    with attach(unet, unet_recipe(capacity=None, schedule=ONCE)) as session:
        session.begin_step(0, 10)
        with pytest.raises(RuntimeError):
            predict(unet, noise(2, 3, 16, 16))
        run(SD, unet, session, steps=range(2), total=10)
